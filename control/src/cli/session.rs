//! `topnet session`: service for a WireGuard key, paid by the wallet's channel.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use topnet_api::SessionGrant;
use zeroize::Zeroizing;

use super::{
    arguments::{ConfigFormat, Options, SessionArguments, SessionCommand},
    error::CliError,
    output::Output,
    wallet::OpenWallet,
};

pub(super) async fn execute(
    options: &Options,
    command: SessionCommand,
    output: Output,
) -> Result<(), CliError> {
    let wallet = OpenWallet::open(options)?;
    match command {
        SessionCommand::Start {
            session:
                SessionArguments {
                    channel,
                    wg_public_key,
                },
            format,
            private_key_file,
            out,
        } => {
            let signer = wallet.signer_of(channel).await?;
            let grant = wallet
                .rpc
                .start_session(&signer, channel, wg_public_key, nonce()?)
                .await?;
            if !grant.installed {
                output.progress("the data plane has yet to learn of the session; it will");
            }
            deliver(&grant, format, private_key_file, out, output)
        }
        SessionCommand::Stop {
            session:
                SessionArguments {
                    channel,
                    wg_public_key,
                },
        } => {
            let signer = wallet.signer_of(channel).await?;
            let stopped = wallet
                .rpc
                .stop_session(&signer, channel, wg_public_key, nonce()?)
                .await?;
            output.print(&stopped);
            Ok(())
        }
    }
}

/// Higher than any before it, as long as the clock is not put back.
pub(super) fn nonce() -> Result<u64, CliError> {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|now| u64::try_from(now.as_millis()).ok())
        .ok_or_else(|| {
            CliError::new(
                "clock",
                "the clock is before 1970",
                "set the clock: `date --set`",
            )
        })
}

/// Prints the grant, or writes the configuration where it was asked for.
fn deliver(
    grant: &SessionGrant,
    format: ConfigFormat,
    private_key_file: Option<PathBuf>,
    out: Option<PathBuf>,
    output: Output,
) -> Result<(), CliError> {
    let private_key = private_key_file
        .as_deref()
        .map(read_private_key)
        .transpose()?;
    let private_key = private_key.as_ref().map(|key| key.as_str());
    let text = Zeroizing::new(match format {
        ConfigFormat::WgQuick => grant.wireguard.to_wg_quick(private_key),
        ConfigFormat::Wg => grant.wireguard.to_wg(private_key),
    });
    match &out {
        Some(path) => {
            write_private(path, text.as_bytes())?;
            output.progress(&format!("written to {}", path.display()));
        }
        // With --json the grant is printed below, and never a private key.
        None if !output.json => print!("{}", *text),
        None => {}
    }
    if output.json {
        output.print(grant);
    }
    Ok(())
}

fn read_private_key(path: &Path) -> Result<Zeroizing<String>, CliError> {
    let text = fs::read_to_string(path).map_err(|error| CliError::file(path, error))?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}

/// Writes what nobody else may read, in the place of what was there.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    PrivateFile::stage(path, bytes)?.put()
}

/// A file that nobody else may read, written beside its place. Unless it is [put](Self::put) there,
/// what was there stays.
pub(super) struct PrivateFile {
    fresh: PathBuf,
    path: PathBuf,
}

impl PrivateFile {
    pub(super) fn stage(path: &Path, bytes: &[u8]) -> Result<Self, CliError> {
        let mut fresh = path.to_owned().into_os_string();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        // What is there may be open to others, or lead elsewhere.
        let _ = fs::remove_file(&fresh);
        let staged = Self {
            fresh,
            path: path.to_owned(),
        };
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&staged.fresh)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            })
            .map_err(|error| CliError::file(path, error))?;
        Ok(staged)
    }

    /// Puts it in its place.
    pub(super) fn put(self) -> Result<(), CliError> {
        let Self { fresh, path } = &self;
        fs::rename(fresh, path).map_err(|error| CliError::file(path, error))
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        // It is not there any more if it was put in its place.
        let _ = fs::remove_file(&self.fresh);
    }
}
