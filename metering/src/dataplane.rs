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
/// Between attempts to reach a data plane that does not answer: clients wait for it, and to find no
/// socket costs nothing.
const RETRY: Duration = Duration::from_millis(10);
/// The data plane hands its tables over at once, or not at all.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the data plane does not answer: {0}")]
    Rpc(#[from] RpcError),
    #[error("cannot attach to the data plane's tables at {path}: {source}")]
    Tables {
        path: PathBuf,
        source: HandoverError,
    },
    #[error(transparent)]
    Ended(#[from] Ended),
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
        let fault = match session(&runtime_dir, &handle, &chain, &mut errands, &mut attached).await
        {
            Fault::Ended(ended) => return Err(ended),
            fault => fault.to_string(),
        };
        // The same fault again and again is one fault.
        if fault != complained {
            warn!(fault, "waiting for the data plane");
            complained = fault;
        }
        tokio::time::sleep(RETRY).await;
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
    loop {
        let done = tokio::select! {
            _ = ticks.tick() => assignments(runtime_dir, &client, handle, attached).await,
            errand = errands.recv() => match errand {
                Some(Errand::Acknowledge(slot_use)) => acknowledge(&client, handle, slot_use).await,
                Some(Errand::LookUp(channel)) => look_up(handle, chain, channel),
                None => Err(Ended.into()),
            },
        };
        if let Err(fault) = done {
            return fault;
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
fn look_up(
    handle: &Handle,
    chain: &LookUp,
    channel: topnet_account::ChannelId,
) -> Result<(), Fault> {
    let (handle, chain) = (handle.clone(), chain.clone());
    tokio::spawn(async move {
        match chain.channel(channel).await {
            Ok(view) => drop(handle.tell(Event::Channel(Box::new(view))).await),
            Err(error) => debug!(%channel, %error, "a slot's channel is not known"),
        }
    });
    Ok(())
}
