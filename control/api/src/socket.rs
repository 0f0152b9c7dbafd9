//! Where the processes find one another, and how many bytes a request may have.

use std::{
    fmt, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use futures::{Stream, StreamExt, future};
use serde::{Serialize, de::DeserializeOwned};
use tarpc::{
    serde_transport::{self, unix},
    server::{BaseChannel, Channel as _, Serve},
    tokio_serde::formats::Json,
};

/// The longest request or answer on a process's socket.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;

/// Connections that a process answers at once; more wait.
const CONNECTIONS_MAX: usize = 64;

/// Requests that a process answers at once, per connection; more wait.
const REQUESTS_MAX: usize = 256;

/// Owner and group may connect, nobody else: the processes have a user each and one group.
const SOCKET_MODE: u32 = 0o660;

/// The sockets below the runtime directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketName {
    /// Requests to the data plane.
    Dataplane,
    /// The data plane's tables, handed over as file descriptors.
    Tables,
    /// Copies of inner packets, handed over by the data plane.
    Captures,
    /// Requests to metering.
    Metering,
    /// Requests to settlement.
    Settlement,
}

impl SocketName {
    /// The socket's path.
    pub fn below(self, runtime_dir: &Path) -> PathBuf {
        runtime_dir.join(self.to_string())
    }
}

impl fmt::Display for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dataplane => "dataplane.sock",
            Self::Tables => "tables.sock",
            Self::Captures => "captures.sock",
            Self::Metering => "metering.sock",
            Self::Settlement => "settlement.sock",
        })
    }
}

/// A process that does not answer.
#[derive(Debug, thiserror::Error)]
#[error("no process answers at {path}: {source}; start it or wait until it is back")]
pub struct ConnectError {
    path: PathBuf,
    source: io::Error,
}

/// A transport of requests `Item` and answers `SinkItem`.
pub type Transport<Item, SinkItem> =
    serde_transport::Transport<tokio::net::UnixStream, Item, SinkItem, Json<Item, SinkItem>>;

/// Connects to the process at `path`; give the transport to the service's client.
pub async fn connect<Item, SinkItem>(path: &Path) -> Result<Transport<Item, SinkItem>, ConnectError>
where
    Item: DeserializeOwned,
    SinkItem: Serialize,
{
    let mut connecting = unix::connect(path, Json::default);
    connecting.config_mut().max_frame_length(REQUEST_BYTES_MAX);
    connecting.await.map_err(|source| ConnectError {
        path: path.to_owned(),
        source,
    })
}

/// Listens at `path`, in place of a socket that an earlier run left there. Makes the directory if
/// there is none.
pub async fn listen<Item, SinkItem>(
    path: &Path,
) -> io::Result<impl Stream<Item = Transport<Item, SinkItem>> + use<Item, SinkItem>>
where
    Item: DeserializeOwned,
    SinkItem: Serialize,
{
    if let Some(runtime_dir) = path.parent() {
        std::fs::create_dir_all(runtime_dir)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut incoming = unix::listen(path, Json::default).await?;
    incoming.config_mut().max_frame_length(REQUEST_BYTES_MAX);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    // A connection that broke before it began is nobody's error but its own.
    Ok(incoming.filter_map(|connection| future::ready(connection.ok())))
}

/// Answers every connection of `incoming` with `service` until the stream ends. Garbage ends
/// the connection that it came on and no other.
///
/// Nothing is spawned here, because a service's futures can only be proved `Send` where its
/// type is known: spawn the whole.
pub async fn serve_connections<S>(
    incoming: impl Stream<Item = Transport<tarpc::ClientMessage<S::Req>, tarpc::Response<S::Resp>>>,
    service: S,
) where
    S: Serve + Clone,
    S::Req: DeserializeOwned + tarpc::RequestName,
    S::Resp: Serialize,
{
    incoming
        .for_each_concurrent(CONNECTIONS_MAX, |transport| {
            BaseChannel::with_defaults(transport)
                .execute(service.clone())
                .for_each_concurrent(REQUESTS_MAX, |request| request)
        })
        .await;
}
