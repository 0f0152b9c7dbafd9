//! Hands the shared tables to whoever connects to their Unix socket.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use topnet_unit::{Handover, HandoverError};

/// A receiver of the tables that does not read is given up.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(1);
/// Who can connect can write credit: only the processes of our group.
const SOCKET_MODE: u32 = 0o660;

pub(crate) fn listen_for_tables(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    restrict(path)?;
    Ok(listener)
}

/// Who can connect can write credit: only the processes of our group.
fn restrict(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))
}

/// Gives the tables to everybody who connects, for ever.
pub(crate) async fn hand_over(listener: &UnixListener, handover: &Arc<Handover>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let handover = Arc::clone(handover);
                tokio::task::spawn_blocking(move || {
                    let sent = stream.into_std().and_then(ready_to_send);
                    let sent = sent
                        .map_err(HandoverError::from)
                        .and_then(|s| handover.send(&s));
                    if let Err(error) = sent {
                        tracing::debug!(%error, "a reader of the tables went away");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a reader of the tables");
                tokio::time::sleep(HANDOVER_PATIENCE).await;
            }
        }
    }
}

fn ready_to_send(stream: UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(HANDOVER_PATIENCE))?;
    Ok(stream)
}
