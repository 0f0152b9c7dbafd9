//! A signing key on disk, encrypted under a passphrase.
//!
//! A JSON file that says of itself how it is read: Argon2id turns passphrase and salt into a
//! key, ChaCha20-Poly1305 under that key and a nonce seals the 32-byte seed, and everything
//! else in the file is authenticated with it. Written whole beside its place and linked there,
//! readable by its owner only; no key is ever overwritten. A key that was derived says from which
//! path; what else the key is for is not this file's business.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::{AeadInPlace, ChaCha20Poly1305, KeyInit};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use topnet_account::PublicKey;
use topnet_channel::SecretKey;
use zeroize::Zeroizing;

use crate::phrase::{KeyPath, Phrase};

/// The only version so far.
const VERSION: u32 = 1;
const KDF: &str = "argon2id";
const CIPHER: &str = "chacha20-poly1305";
const DOMAIN: &[u8] = b"topnet/key-file/1";
const PASSPHRASE_VARIABLE: &str = "TOPNET_PASSPHRASE";
/// A key file is a few hundred bytes.
const FILE_BYTES_MAX: u64 = 4096;
/// A file that asks for more memory than this is not opened: it came from somebody else.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 64;
const LANES_MAX: u32 = 16;
const SEED_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const DERIVATION_BYTES_MAX: usize = 64;

/// What deriving the file's key costs whoever guesses passphrases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes that may be filled at once.
    pub lanes: u32,
}

impl Cost {
    /// RFC 9106's choice for machines where memory is short: a fraction of a second.
    pub const DEFAULT: Self = Self {
        memory_kib: 64 * 1024,
        passes: 3,
        lanes: 4,
    };
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read or written: mend its path or permissions.
    #[error("cannot {what} the key file {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A key is there already, and is not overwritten.
    #[error("{0} exists already; choose another path, or move that key away first")]
    Exists(PathBuf),
    /// Others can read the file.
    #[error("others may read the key file {path} (mode {mode:o}); run `chmod 600` on it")]
    Readable {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Not a key file of a version that is known here.
    #[error("{path} is no key file that this version can read: {reason}")]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// The passphrase is not the file's, or the file was changed.
    #[error("the passphrase does not open {0}, or the file was changed; try another passphrase")]
    Passphrase(PathBuf),
    /// Nobody said what opens the key.
    #[error(
        "there is no passphrase; set passphrase_file in the configuration, or {PASSPHRASE_VARIABLE}"
    )]
    NoPassphrase,
    /// The system has no randomness or not enough memory for the derivation.
    #[error("cannot derive the key of {path}: {reason}")]
    Derivation {
        /// Which file.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    topnet_key: u32,
    public_key: PublicKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    derivation: Option<String>,
    kdf: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: Hex<16>,
    cipher: String,
    nonce: Hex<12>,
    sealed: Hex<{ SEED_BYTES + TAG_BYTES }>,
}

/// Makes a new random key and writes it to `path`, which must not exist yet.
pub fn create(path: &Path, passphrase: &[u8], cost: Cost) -> Result<SecretKey, KeyFileError> {
    let mut seed = Zeroizing::new([0; SEED_BYTES]);
    random(path, seed.as_mut())?;
    let secret = SecretKey::from_seed(*seed).map_err(|error| underivable(path, error))?;
    write(path, &secret, passphrase, cost)?;
    Ok(secret)
}

/// Writes `secret` to `path`, which must not exist yet.
pub fn write(
    path: &Path,
    secret: &SecretKey,
    passphrase: &[u8],
    cost: Cost,
) -> Result<(), KeyFileError> {
    let content = Content::new(path, secret, cost)?;
    store(path, seal(path, &content, passphrase)?.as_bytes())
}

/// Writes the key at `key` of `phrase` to `path`, which must not exist yet. The file says which
/// key it is.
pub fn write_derived(
    path: &Path,
    phrase: &Phrase,
    key: KeyPath,
    passphrase: &[u8],
    cost: Cost,
) -> Result<PublicKey, KeyFileError> {
    let secret = phrase.key(key);
    let content = Content {
        derivation: Some(key.to_string()),
        ..Content::new(path, &secret, cost)?
    };
    store(path, seal(path, &content, passphrase)?.as_bytes())?;
    Ok(secret.public_key())
}

/// Reads the key in `path`.
pub fn read(path: &Path, passphrase: &[u8]) -> Result<SecretKey, KeyFileError> {
    let failed = |what| {
        move |source| KeyFileError::File {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let metadata = fs::metadata(path).map_err(failed("open"))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Readable {
            path: path.to_owned(),
            mode,
        });
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(format(path, "it is too long"));
    }
    let text = fs::read_to_string(path).map_err(failed("read"))?;
    open(path, &text, passphrase)
}

/// What a key file says without its passphrase. It is not proved by one either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The key's public half.
    pub public_key: PublicKey,
    /// The path from a phrase, for a key that was derived.
    pub derivation: Option<String>,
}

/// What the file at `path` says of its key.
pub fn read_label(path: &Path) -> Result<Label, KeyFileError> {
    let failed = |source| KeyFileError::File {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let text = fs::read_to_string(path).map_err(failed)?;
    let document = parse(path, &text)?;
    Ok(Label {
        public_key: document.public_key,
        derivation: document.derivation,
    })
}

/// The public half of the key in `path`, as the file says it.
pub fn read_public(path: &Path) -> Result<PublicKey, KeyFileError> {
    Ok(read_label(path)?.public_key)
}

/// A process's passphrase: the first line of `file`, or the environment's
/// `TOPNET_PASSPHRASE` where no file is named.
pub fn passphrase(file: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let Some(path) = file else {
        let text = std::env::var(PASSPHRASE_VARIABLE).map(Zeroizing::new);
        return match text {
            Ok(text) if !text.is_empty() => Ok(Zeroizing::new(text.as_bytes().to_vec())),
            _ => Err(KeyFileError::NoPassphrase),
        };
    };
    let failed = |source| KeyFileError::File {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let text = Zeroizing::new(fs::read(path).map_err(failed)?);
    let line = text
        .split(|byte| matches!(byte, b'\n' | b'\r'))
        .next()
        .unwrap_or_default();
    if line.is_empty() {
        Err(KeyFileError::NoPassphrase)
    } else {
        Ok(line.to_vec().into())
    }
}

/// What a file is made of.
struct Content<'a> {
    secret: &'a SecretKey,
    derivation: Option<String>,
    cost: Cost,
    salt: [u8; 16],
    nonce: [u8; 12],
}

impl<'a> Content<'a> {
    /// With fresh salt and nonce.
    fn new(path: &Path, secret: &'a SecretKey, cost: Cost) -> Result<Self, KeyFileError> {
        let (mut salt, mut nonce) = ([0; 16], [0; 12]);
        random(path, &mut salt)?;
        random(path, &mut nonce)?;
        Ok(Self {
            secret,
            derivation: None,
            cost,
            salt,
            nonce,
        })
    }
}

fn seal(path: &Path, content: &Content<'_>, passphrase: &[u8]) -> Result<String, KeyFileError> {
    let mut document = Document {
        topnet_key: VERSION,
        public_key: content.secret.public_key(),
        derivation: content.derivation.clone(),
        kdf: KDF.to_owned(),
        memory_kib: content.cost.memory_kib,
        passes: content.cost.passes,
        lanes: content.cost.lanes,
        salt: Hex(content.salt),
        cipher: CIPHER.to_owned(),
        nonce: Hex(content.nonce),
        sealed: Hex([0; SEED_BYTES + TAG_BYTES]),
    };
    let cipher = document.cipher(path, passphrase)?;
    let mut seed = Zeroizing::new(*content.secret.seed());
    let tag = cipher
        .encrypt_in_place_detached(
            &content.nonce.into(),
            &document.authenticated(),
            seed.as_mut(),
        )
        .map_err(|error| underivable(path, error))?;
    document.sealed.0[..SEED_BYTES].copy_from_slice(seed.as_ref());
    document.sealed.0[SEED_BYTES..].copy_from_slice(&tag);
    let text = serde_json::to_string_pretty(&document).map_err(|error| underivable(path, error))?;
    Ok(text + "\n")
}

fn open(path: &Path, text: &str, passphrase: &[u8]) -> Result<SecretKey, KeyFileError> {
    let document = parse(path, text)?;
    let mut seed = Zeroizing::new([0; SEED_BYTES]);
    seed.copy_from_slice(&document.sealed.0[..SEED_BYTES]);
    let tag = &document.sealed.0[SEED_BYTES..];
    let nonce = &document.nonce.0;
    document
        .cipher(path, passphrase)?
        .decrypt_in_place_detached(
            nonce.into(),
            &document.authenticated(),
            seed.as_mut(),
            tag.into(),
        )
        .map_err(|_| KeyFileError::Passphrase(path.to_owned()))?;
    let secret = SecretKey::from_seed(*seed).map_err(|error| underivable(path, error))?;
    if secret.public_key() != document.public_key {
        return Err(format(path, "its public key is not the sealed key's"));
    }
    Ok(secret)
}

fn parse(path: &Path, text: &str) -> Result<Document, KeyFileError> {
    #[derive(Deserialize)]
    struct Header {
        topnet_key: u32,
    }
    let header: Header = serde_json::from_str(text).map_err(|error| format(path, error))?;
    if header.topnet_key != VERSION {
        return Err(format(
            path,
            format_args!("it has version {}; known is {VERSION}", header.topnet_key),
        ));
    }
    let document: Document = serde_json::from_str(text).map_err(|error| format(path, error))?;
    if document.kdf != KDF || document.cipher != CIPHER {
        return Err(format(
            path,
            format_args!("known are {KDF} and {CIPHER} only"),
        ));
    }
    if document.memory_kib > MEMORY_KIB_MAX
        || document.passes > PASSES_MAX
        || document.lanes > LANES_MAX
    {
        return Err(format(
            path,
            "opening it would cost more than any key file of ours",
        ));
    }
    let derivation_bytes = document.derivation.as_ref().map_or(0, String::len);
    if derivation_bytes > DERIVATION_BYTES_MAX {
        return Err(format(
            path,
            "its derivation is longer than any path of ours",
        ));
    }
    Ok(document)
}

impl Document {
    fn cipher(&self, path: &Path, passphrase: &[u8]) -> Result<ChaCha20Poly1305, KeyFileError> {
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32))
            .map_err(|error| format(path, error))?;
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase, &self.salt.0, key.as_mut())
            .map_err(|error| underivable(path, error))?;
        Ok(ChaCha20Poly1305::new(key.as_ref().into()))
    }

    /// What is not secret and must not be changed either.
    fn authenticated(&self) -> Vec<u8> {
        let numbers = [self.topnet_key, self.memory_kib, self.passes, self.lanes];
        let mut bytes = DOMAIN.to_vec();
        numbers
            .iter()
            .for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        bytes.extend_from_slice(&self.salt.0);
        bytes.extend_from_slice(&self.nonce.0);
        bytes.extend_from_slice(self.public_key.as_bytes());
        bytes.extend_from_slice(self.derivation.as_deref().unwrap_or_default().as_bytes());
        bytes
    }
}

/// Writes the file beside `path`, syncs it, links it into place and syncs the directory. The
/// link fails where something stands already, so no key is ever overwritten.
fn store(path: &Path, bytes: &[u8]) -> Result<(), KeyFileError> {
    let failed = |what| {
        move |source| KeyFileError::File {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    let _ = fs::remove_file(&beside);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    let linked = written.map_err(failed("write")).and_then(|()| {
        fs::hard_link(&beside, path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeyFileError::Exists(path.to_owned()),
            _ => failed("create")(source),
        })
    });
    let _ = fs::remove_file(&beside);
    linked?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync"))
}

fn random(path: &Path, bytes: &mut [u8]) -> Result<(), KeyFileError> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|error| underivable(path, error))
}

fn underivable(path: &Path, reason: impl ToString) -> KeyFileError {
    KeyFileError::Derivation {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn format(path: &Path, reason: impl ToString) -> KeyFileError {
    KeyFileError::Format {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// Bytes as hex digits in JSON.
struct Hex<const N: usize>([u8; N]);

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let error = || serde::de::Error::custom(format_args!("expected {} hex digits", 2 * N));
        if text.len() != 2 * N || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(error());
        }
        let mut bytes = [0; N];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Cost = Cost {
        memory_kib: 64,
        passes: 1,
        lanes: 1,
    };

    fn secret() -> SecretKey {
        SecretKey::from_seed([7; 32]).unwrap()
    }

    fn golden(path: &Path, derivation: Option<String>) -> String {
        let secret = secret();
        let content = Content {
            secret: &secret,
            derivation,
            cost: CHEAP,
            salt: [1; 16],
            nonce: [2; 12],
        };
        seal(path, &content, b"golden").unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_only_with_its_passphrase() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wallet.key");
        let made = create(&path, b"open sesame", CHEAP).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(read_public(&path).unwrap(), made.public_key());
        let opened = read(&path, b"open sesame").unwrap();
        assert_eq!(opened.public_key(), made.public_key());
        assert!(matches!(
            read(&path, b"open barley"),
            Err(KeyFileError::Passphrase(_))
        ));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn a_derived_key_says_its_path_and_nobody_can_change_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("session.key");
        let phrase = Phrase::generate().unwrap();
        let key = KeyPath::Session(7);
        let made = write_derived(&path, &phrase, key, b"one", CHEAP).unwrap();
        let label = read_label(&path).unwrap();
        assert_eq!(label.public_key, made);
        assert_eq!(label.derivation, Some(key.to_string()));
        assert_eq!(read(&path, b"one").unwrap().public_key(), made);
        let text = fs::read_to_string(&path).unwrap();
        for changed in [
            text.replace("/7'", "/8'"),
            text.replace("/7'", &"/7'".repeat(40)),
        ] {
            assert!(open(&path, &changed, b"one").is_err(), "{changed}");
        }
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wallet.key");
        write(&path, &secret(), b"one", CHEAP).unwrap();
        assert!(matches!(
            create(&path, b"two", CHEAP),
            Err(KeyFileError::Exists(_))
        ));
        assert_eq!(
            read(&path, b"one").unwrap().public_key(),
            secret().public_key()
        );
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wallet.key");
        write(&path, &secret(), b"one", CHEAP).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            read(&path, b"one"),
            Err(KeyFileError::Readable { mode: 0o640, .. })
        ));
    }

    /// Files of this format are on disks: it changes only with the version.
    #[test]
    fn golden_key_file() {
        let path = Path::new("golden");
        let text = golden(path, None);
        assert_eq!(text, include_str!("../tests/golden/key_file.json"));
        assert_eq!(open(path, &text, b"golden").unwrap().seed(), &[7; 32]);
    }

    #[test]
    fn no_word_of_the_file_can_be_changed() {
        let path = Path::new("changed");
        let text = golden(path, None);
        let changes = [
            ("\"passes\": 1", "\"passes\": 2"),
            ("\"salt\": \"01", "\"salt\": \"02"),
            ("\"nonce\": \"02", "\"nonce\": \"03"),
            ("\"topnet_key\": 1", "\"topnet_key\": 2"),
            ("\"memory_kib\": 64", "\"memory_kib\": 4294967295"),
            ("argon2id", "argon2i"),
            ("\"public_key\": \"0x", "\"public_key\": \""),
            ("\"lanes\": 1", "\"lanes\": 1, \"extra\": 1"),
        ];
        for (from, to) in changes {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            assert!(open(path, &changed, b"golden").is_err(), "{from} → {to}");
        }
        assert!(open(path, "garbage", b"golden").is_err());
    }
}
