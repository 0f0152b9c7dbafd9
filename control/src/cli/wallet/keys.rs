//! The wallet's keys: made from a phrase, and opened.

use std::{
    cell::OnceCell,
    fs,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer};
use topnet_account::{Address, PublicKey};
use topnet_channel::SecretKey;
use topnet_config::Wallet;
use topnet_wallet::{
    KeyPath, Phrase,
    key_file::{self, Cost, KeyFileError, Label},
};
use zeroize::Zeroizing;

use crate::cli::{
    arguments::PhraseSource,
    error::CliError,
    output::Output,
    passphrase::{ask_unseen, passphrase},
    text::{Table, Text},
};

/// A file with a phrase is a few hundred bytes.
const PHRASE_BYTES_MAX: u64 = 4_096;

/// The keys that a wallet's files hold, and the phrase where it is new.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Keys {
    /// The account's; `None` on a machine that only pays.
    address: Option<Address>,
    public_key: Option<PublicKey>,
    /// Where the account's key is from; `None` for one that no phrase brings back.
    derivation: Option<String>,
    /// The key that signs vouchers; the account's own does where this is `None`.
    session: Option<SessionKey>,
    /// In the moment of its making, and never again.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "words")]
    phrase: Option<Phrase>,
}

/// A session key's file.
#[derive(Debug, Serialize)]
struct SessionKey {
    key_file: PathBuf,
    public_key: PublicKey,
    derivation: Option<String>,
}

/// Where a wallet's keys are.
pub(in crate::cli) struct KeyFiles<'a> {
    pub(in crate::cli) account: Option<&'a Path>,
    pub(in crate::cli) session: Option<&'a Path>,
}

impl<'a> KeyFiles<'a> {
    fn of(wallet: &'a Wallet) -> Self {
        Self {
            account: wallet.key_file.as_deref(),
            session: wallet.session_key_file.as_deref(),
        }
    }

    /// Makes a phrase, shows it to whoever sits at the terminal, and writes its keys. Nothing is
    /// made where a key stands already.
    pub(in crate::cli) fn create(
        &self,
        passphrase: &[u8],
        output: Output,
    ) -> Result<Keys, CliError> {
        self.must_be_free()?;
        let phrase = Phrase::generate()
            .map_err(|error| CliError::new("random", error.to_string(), "try again"))?;
        if !output.json {
            // Before the keys: whoever sees an address has seen the words that bring it back.
            show(&phrase);
        }
        let mut keys = self.write(&phrase, passphrase)?;
        keys.phrase = output.json.then_some(phrase);
        Ok(keys)
    }

    /// Makes the keys of the phrase that `source` gives.
    pub(in crate::cli) fn restore(
        &self,
        source: &PhraseSource,
        passphrase: &[u8],
    ) -> Result<Keys, CliError> {
        self.must_be_free()?;
        self.write(&read_phrase(source)?, passphrase)
    }

    fn write(&self, phrase: &Phrase, passphrase: &[u8]) -> Result<Keys, CliError> {
        let write = |path: Option<&Path>, key| match path {
            Some(path) => {
                key_file::write_derived(path, phrase, key, passphrase, Cost::DEFAULT).map(drop)
            }
            None => Ok(()),
        };
        write(self.account, KeyPath::Funding).map_err(key_error)?;
        write(self.session, KeyPath::Session(0)).map_err(key_error)?;
        self.read()
    }

    fn must_be_free(&self) -> Result<(), CliError> {
        let taken = [self.account, self.session].into_iter().flatten();
        match taken.into_iter().find(|path| path.exists()) {
            Some(path) => Err(key_error(KeyFileError::Exists(path.to_owned()))),
            None => Ok(()),
        }
    }

    /// What the files say of themselves.
    pub(in crate::cli) fn read(&self) -> Result<Keys, CliError> {
        let label = |path: Option<&Path>| path.map(key_file::read_label).transpose();
        let account = label(self.account).map_err(key_error)?;
        let session = self.session.map(|path| {
            let Label {
                public_key,
                derivation,
            } = key_file::read_label(path)?;
            Ok(SessionKey {
                key_file: path.to_owned(),
                public_key,
                derivation,
            })
        });
        Ok(Keys {
            address: account.as_ref().map(|key| Address::of(&key.public_key)),
            public_key: account.as_ref().map(|key| key.public_key),
            derivation: account.and_then(|key| key.derivation),
            session: session.transpose().map_err(key_error)?,
            phrase: None,
        })
    }
}

/// `topnet wallet create`.
pub(super) fn create(wallet: &Wallet, output: Output) -> Result<(), CliError> {
    let files = KeyFiles::of(wallet);
    files.must_be_free()?;
    let passphrase = passphrase(wallet.passphrase_file.as_deref(), true)?;
    output.print(&files.create(passphrase.as_bytes(), output)?);
    Ok(())
}

/// `topnet wallet restore`.
pub(super) fn restore(
    wallet: &Wallet,
    source: &PhraseSource,
    output: Output,
) -> Result<(), CliError> {
    let files = KeyFiles::of(wallet);
    files.must_be_free()?;
    let passphrase = passphrase(wallet.passphrase_file.as_deref(), true)?;
    output.print(&files.restore(source, passphrase.as_bytes())?);
    Ok(())
}

/// `topnet wallet session-key`.
pub(super) fn session_key(
    passphrase_file: Option<&Path>,
    index: u16,
    path: PathBuf,
    source: &PhraseSource,
    output: Output,
) -> Result<(), CliError> {
    if path.exists() {
        return Err(key_error(KeyFileError::Exists(path)));
    }
    let phrase = read_phrase(source)?;
    let passphrase = passphrase(passphrase_file, true)?;
    let key = KeyPath::Session(index);
    let cost = Cost::DEFAULT;
    let public_key = key_file::write_derived(&path, &phrase, key, passphrase.as_bytes(), cost)
        .map_err(key_error)?;
    output.print(&SessionKey {
        key_file: path,
        public_key,
        derivation: Some(key.to_string()),
    });
    Ok(())
}

/// `topnet wallet address`.
pub(super) fn address(wallet: &Wallet, output: Output) -> Result<(), CliError> {
    output.print(&KeyFiles::of(wallet).read()?);
    Ok(())
}

/// Opens a wallet's keys, each where it is used, and asks for their passphrase once.
pub(in crate::cli) struct Keyring {
    account: Option<PathBuf>,
    session: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    passphrase: OnceCell<Zeroizing<String>>,
}

impl Keyring {
    pub(super) fn of(wallet: &Wallet) -> Self {
        Self {
            account: wallet.key_file.clone(),
            session: wallet.session_key_file.clone(),
            passphrase_file: wallet.passphrase_file.clone(),
            passphrase: OnceCell::new(),
        }
    }

    /// The key that moves the account's money.
    pub(super) fn account_key(&self) -> Result<SecretKey, CliError> {
        self.open(self.account_file()?)
    }

    /// The account, without a passphrase.
    pub(in crate::cli) fn account(&self) -> Result<Address, CliError> {
        let key = key_file::read_public(self.account_file()?).map_err(key_error)?;
        Ok(Address::of(&key))
    }

    /// True on a machine that only pays.
    pub(super) fn has_no_account(&self) -> bool {
        self.account.is_none()
    }

    /// The key that signs for new channels.
    pub(super) fn session_key(&self) -> Result<SecretKey, CliError> {
        match &self.session {
            Some(file) => self.open(file),
            None => self.account_key(),
        }
    }

    /// The key of ours whose public half is `signer`: a channel says which key signs for it.
    pub(in crate::cli) fn key_of(&self, signer: PublicKey) -> Result<Option<SecretKey>, CliError> {
        for file in [&self.session, &self.account].into_iter().flatten() {
            if key_file::read_public(file).map_err(key_error)? == signer {
                return self.open(file).map(Some);
            }
        }
        Ok(None)
    }

    fn account_file(&self) -> Result<&Path, CliError> {
        self.account.as_deref().ok_or_else(|| {
            CliError::new(
                "key_file",
                "this machine has no account's key: [wallet] names a session_key_file alone",
                "do it where the account's key is; here you can pay, and start and stop sessions",
            )
        })
    }

    fn open(&self, file: &Path) -> Result<SecretKey, CliError> {
        if self.passphrase.get().is_none() {
            let given = passphrase(self.passphrase_file.as_deref(), false)?;
            // It was empty just now.
            let _ = self.passphrase.set(given);
        }
        let passphrase = self.passphrase.get().map_or("", |given| given.as_str());
        key_file::read(file, passphrase.as_bytes()).map_err(key_error)
    }
}

fn key_error(error: KeyFileError) -> CliError {
    let mend = "see [wallet] key_file and session_key_file; `topnet wallet create` makes the keys";
    CliError::new("key_file", error.to_string(), mend)
}

/// To standard error, so that it does not end up in a file with the result.
fn show(phrase: &Phrase) {
    eprintln!(
        "These words are the wallet. Whoever has them has its money, and without them nothing \
         brings\nit back when this machine is lost. They are shown now and never again: write \
         them on paper.\n"
    );
    let words: Vec<_> = phrase.words().collect();
    for (row, words) in words.chunks(6).enumerate() {
        let numbered = words.iter().enumerate().map(|(column, word)| {
            let number = 6 * row + column + 1;
            format!("{number:>2}. {word:<9}")
        });
        eprintln!("  {}", numbered.collect::<String>().trim_end());
    }
    eprintln!();
}

fn read_phrase(source: &PhraseSource) -> Result<Phrase, CliError> {
    let unreadable = |place: &str, error: io::Error| {
        let what = format!("the phrase cannot be read from {place}: {error}");
        CliError::new(
            "phrase",
            what,
            "give it with --phrase-file, or on a terminal",
        )
    };
    let text = match source.phrase_file.as_deref() {
        Some(path) if path != Path::new("-") => {
            let file = fs::File::open(path).map_err(|error| CliError::file(path, error))?;
            read_text(file).map_err(|error| unreadable(&path.display().to_string(), error))?
        }
        None if io::stdin().is_terminal() => ask_unseen("The wallet's words, in one line: ")
            .map_err(|error| unreadable("the terminal", error))?,
        _ => read_text(io::stdin()).map_err(|error| unreadable("standard input", error))?,
    };
    Phrase::parse(&text).map_err(|error| {
        CliError::new(
            "phrase",
            error.to_string(),
            "correct the words and try again",
        )
    })
}

fn read_text(source: impl Read) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(PHRASE_BYTES_MAX as usize + 1));
    source
        .take(PHRASE_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > PHRASE_BYTES_MAX {
        return Err(io::Error::other("it is too long for a phrase"));
    }
    Ok(text)
}

fn words<S: Serializer>(phrase: &Option<Phrase>, serializer: S) -> Result<S::Ok, S::Error> {
    match phrase {
        Some(phrase) => serializer.serialize_str(&phrase.text()),
        None => serializer.serialize_none(),
    }
}

impl Text for Keys {
    fn text(&self) -> String {
        let table = match &self.address {
            Some(address) => Table::new(address),
            None => Table::new("no account here"),
        };
        let table = table
            .row_if("public key", self.public_key)
            .row_if("derived", self.derivation.as_ref());
        match &self.session {
            Some(session) => session.rows(table),
            None => table,
        }
        .end()
    }
}

impl SessionKey {
    fn rows(&self, table: Table) -> Table {
        table
            .row("session key", self.public_key)
            .row_if("session derived", self.derivation.as_ref())
    }
}

impl Text for SessionKey {
    fn text(&self) -> String {
        self.rows(Table::new(self.key_file.display())).end()
    }
}
