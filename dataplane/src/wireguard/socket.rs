//! The Unix socket that `wg` finds an interface by: `/run/wireguard/INTERFACE.sock`.
//!
//! Who may open it is told the interface's private key, so it is root's alone. Connections are
//! answered a few at a time, and one that says nothing is closed: `wg` never pauses.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use topnet_uapi::{DeviceStatus, Errno, Limits, Request, RequestReader, Set};
use zeroize::Zeroizing;

use crate::files::listen_private;

/// Where WireGuard's tools look.
pub const WIREGUARD_DIR: &str = "/run/wireguard";
/// Connections that are answered at once; more wait.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may say nothing, or take nothing.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 16;
/// How long is rested when the system has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is configured through the socket.
pub trait Interface: Send + Sync + 'static {
    /// Its state, for `wg show`.
    fn status(&self) -> impl Future<Output = DeviceStatus> + Send;

    /// Does what a request says, or nothing of it.
    fn apply(&self, set: Set) -> impl Future<Output = Errno> + Send;
}

/// A socket that stands; it goes with this value.
#[derive(Debug)]
pub struct ConfigurationSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ConfigurationSocket {
    /// Listens for requests about `interface` in `directory`, in place of a socket that a dead run
    /// left there. An error if somebody answers at it.
    pub fn listen(directory: &Path, interface: &str) -> io::Result<Self> {
        if !directory.exists() {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o755).create(directory)?;
        }
        let path = directory.join(format!("{interface}.sock"));
        let listener = listen_private(&path)?;
        Ok(Self { path, listener })
    }

    /// Answers for ever.
    pub async fn serve<I: Interface>(&self, interface: Arc<I>) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            let connection = match self.listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    tracing::warn!(%error, path = %self.path.display(), "no connection is taken");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let interface = Arc::clone(&interface);
            tokio::spawn(async move {
                // A connection that breaks is nobody's error but its own.
                let _ = answer(connection, &*interface).await;
                drop(permit);
            });
        }
    }
}

impl Drop for ConfigurationSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

async fn answer<I: Interface>(mut connection: UnixStream, interface: &I) -> io::Result<()> {
    let mut reader = RequestReader::new(Limits::default());
    let mut buffer = Zeroizing::new(vec![0; READ_BYTES]);
    loop {
        let read = timeout(PATIENCE, connection.read(&mut buffer)).await??;
        if read == 0 {
            return Ok(());
        }
        let mut bytes = &buffer[..read];
        while let Some(request) = reader.read(&mut bytes) {
            let mut closes = false;
            let text = match request {
                Ok(Request::Get) => interface.status().await.to_text(),
                Ok(Request::Set(set)) => Zeroizing::new(interface.apply(set).await.answer()),
                Err(refusal) => {
                    tracing::warn!(%refusal, "a request about the interface is refused");
                    closes = refusal.closes;
                    Zeroizing::new(refusal.answer())
                }
            };
            timeout(PATIENCE, connection.write_all(text.as_bytes())).await??;
            if closes {
                return Ok(());
            }
        }
    }
}
