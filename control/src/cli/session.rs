//! `topnet session`: service for a WireGuard key, paid by the wallet's channel.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use topnet_api::SessionGrant;
use zeroize::Zeroizing;

use super::{
    arguments::{ConfigFormat, Options, SessionArguments, SessionCommand},
    error::CliError,
    output::Output,
    private_file::PrivateFile,
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
            PrivateFile::stage(path, text.as_bytes())?.put()?;
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
