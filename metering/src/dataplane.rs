//! How the data plane reaches the books: a task that attaches to its tables, follows its list of
//! slots and acknowledges what is journalled.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use tarpc::{client::RpcError, context};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use topnet_api::{ConnectError, DataplaneClient, SocketName, connect};
use topnet_channel::SlotUse;
use topnet_unit::{Attachment, BootId, HandoverError};
use tracing::{debug, info, warn};

use crate::{
    event::{Ended, Errand, Event, Handle},
    settlement::LookUp,
};

/// How often the list of slots is asked for: how long a new session waits for its credit.
const ASSIGNMENTS_INTERVAL: Duration = Duration::from_millis(50);
/// How often a data plane that is not there is looked for: clients wait for it, and to find no socket
/// costs nothing.
const LOOK_PERIOD: Duration = Duration::from_millis(10);
/// How often one that is there and fails is asked again: that costs both sides something.
const RETRY_PERIOD: Duration = Duration::from_millis(100);
/// The data plane hands its tables over at once, or not at all.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the data plane does not answer: {0}")]
    Rpc(#[from] RpcError),
    /// It had answered, and its connection is lost.
    #[error("the data plane is gone: {0}")]
    Gone(RpcError),
    #[error("cannot attach to the data plane's tables at {path}: {source}")]
    Tables {
        path: PathBuf,
        source: HandoverError,
    },
    #[error(transparent)]
    Ended(#[from] Ended),
}

impl Fault {
    /// How long it is left alone then.
    const fn pause(&self) -> Duration {
        match self {
            // Nobody is there, or nobody any more.
            Self::Connect(_) | Self::Gone(_) => LOOK_PERIOD,
            Self::Rpc(_) | Self::Tables { .. } | Self::Ended(_) => RETRY_PERIOD,
        }
    }
}

/// Follows whatever data plane runs at `runtime_dir`, and runs the keeper's errands, until
/// metering ends.
pub async fn follow(
    runtime_dir: PathBuf,
    handle: Handle,
    chain: LookUp,
    mut errands: mpsc::Receiver<Errand>,
) -> Result<(), Ended> {
    let mut attached = None;
    let mut complained = String::new();
    loop {
        let (fault, pause) =
            match session(&runtime_dir, &handle, &chain, &mut errands, &mut attached).await {
                Fault::Ended(ended) => return Err(ended),
                fault => (fault.to_string(), fault.pause()),
            };
        // The same fault again and again is one fault.
        if fault != complained {
            warn!(fault, "waiting for the data plane");
            complained = fault;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Follows one data plane until it is gone.
async fn session(
    runtime_dir: &Path,
    handle: &Handle,
    chain: &LookUp,
    errands: &mut mpsc::Receiver<Errand>,
    attached: &mut Option<BootId>,
) -> Fault {
    let client = match client(runtime_dir).await {
        Ok(client) => client,
        Err(fault) => return fault,
    };
    let mut ticks = interval(ASSIGNMENTS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut has_answered = false;
    loop {
        let done = tokio::select! {
            _ = ticks.tick() => assignments(runtime_dir, &client, handle, attached).await,
            errand = errands.recv() => match errand {
                Some(Errand::Acknowledge(slot_use)) => acknowledge(&client, handle, slot_use).await,
                Some(Errand::LookUp(channel)) => {
                    look_up(handle, chain, channel);
                    continue;
                }
                None => Err(Ended.into()),
            },
        };
        match done {
            Ok(()) => has_answered = true,
            Err(Fault::Rpc(
                error @ (RpcError::Shutdown | RpcError::Send(_) | RpcError::Channel(_)),
            )) if has_answered => {
                return Fault::Gone(error);
            }
            Err(fault) => return fault,
        }
    }
}

async fn client(runtime_dir: &Path) -> Result<DataplaneClient, Fault> {
    let transport = connect(&SocketName::Dataplane.below(runtime_dir)).await?;
    Ok(DataplaneClient::new(tarpc::client::Config::default(), transport).spawn())
}

async fn assignments(
    runtime_dir: &Path,
    client: &DataplaneClient,
    handle: &Handle,
    attached: &mut Option<BootId>,
) -> Result<(), Fault> {
    let assignments = client.assignments(context::current()).await?;
    if attached.is_none_or(|boot| assignments.boot.parse() != Ok(boot)) {
        let attachment = attach(SocketName::Tables.below(runtime_dir)).await?;
        *attached = Some(attachment.header.boot);
        handle.tell(Event::Attached(Box::new(attachment))).await?;
    }
    Ok(handle.tell(Event::Assignments(assignments)).await?)
}

async fn attach(path: PathBuf) -> Result<Attachment, Fault> {
    let fault = |path: PathBuf| move |source| Fault::Tables { path, source };
    let at = path.clone();
    tokio::task::spawn_blocking(move || {
        let socket = UnixStream::connect(&at)?;
        socket.set_read_timeout(Some(HANDOVER_TIMEOUT))?;
        Attachment::receive(&socket)
    })
    .await
    .unwrap_or_else(|panic| Err(HandoverError::Socket(std::io::Error::other(panic))))
    .map_err(fault(path))
}

async fn acknowledge(
    client: &DataplaneClient,
    handle: &Handle,
    slot_use: SlotUse,
) -> Result<(), Fault> {
    let SlotUse { boot, slot } = slot_use;
    let answer = client.acknowledge(
        context::current(),
        boot.to_string(),
        slot.index,
        slot.generation,
    );
    match answer.await? {
        Ok(()) => {
            info!(
                slot = slot.index,
                generation = slot.generation,
                "the slot's last totals are journalled"
            );
            handle.tell(Event::Acknowledged(slot_use)).await?;
        }
        // Its next list says how it sees the slot.
        Err(error) => debug!(%error, "the data plane does not take the acknowledgement"),
    }
    Ok(())
}

/// Asks beside, so that a slow settlement does not hold up the slots.
fn look_up(handle: &Handle, chain: &LookUp, channel: topnet_account::ChannelId) {
    let (handle, chain) = (handle.clone(), chain.clone());
    tokio::spawn(async move {
        match chain.channel(channel).await {
            Ok(view) => drop(handle.tell(Event::Channel(Box::new(view))).await),
            Err(error) => debug!(%channel, %error, "a slot's channel is not known"),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::{net::UnixListener, time::timeout};

    #[tokio::test]
    async fn only_a_data_plane_that_is_not_there_is_looked_for_all_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let away = client(dir.path()).await.unwrap_err();
        assert_eq!(away.pause(), LOOK_PERIOD, "{away}");

        let listener = UnixListener::bind(SocketName::Dataplane.below(dir.path())).unwrap();
        let connections = AtomicUsize::new(0);
        let failing = async {
            while listener.accept().await.is_ok() {
                connections.fetch_add(1, Ordering::Relaxed);
            }
        };
        let (events, _keeper) = mpsc::channel(1);
        let (payments, _payees) = mpsc::channel(1);
        let known = Default::default();
        let handle = Handle {
            events,
            payments,
            known,
        };
        let (_errands, errands) = mpsc::channel(1);
        let chain = LookUp::below(dir.path());
        let following = follow(dir.path().to_owned(), handle, chain, errands);
        let both = async { tokio::join!(failing, following) };
        assert!(timeout(5 * RETRY_PERIOD, both).await.is_err());
        let tried = connections.into_inner();
        assert!((1..=5).contains(&tried), "{tried} times in half a second");
    }
}
