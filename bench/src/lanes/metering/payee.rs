//! The payee in a process of its own: books, journal, keeper and payment port as the product
//! puts them together. In the place of the chains stands whoever says at once that every channel
//! is open, and in the place of the data plane's list one that never changes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use topnet_account::PublicKey;
use topnet_api::ChannelStatus;
use topnet_books::Books;
use topnet_link::{Limits, Listener};
use topnet_metering::{
    event::{Event, Handle},
    journal::Journal,
    keeper, payments,
    settlement::LookUp,
};
use topnet_unit::Attachment;

use crate::taken::Taken;

use super::{
    feed::{Feed, Prepared},
    parties::{PAYEE, assignments, channel, identity, offer, served, tips, view},
    process::Asked,
};

/// How often the product asks for the newest headers.
const TIPS_INTERVAL: Duration = Duration::from_millis(100);
/// The product's threads for its sockets.
const WORKER_THREADS: usize = 2;
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);

/// What the payee needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Needs {
    /// Channels that are open.
    pub channels: u32,
    /// Channels besides, that are open and have no slot.
    pub idle_channels: u32,
    /// Where the data plane hands over its tables, if there is one.
    pub tables: Option<PathBuf>,
    /// Where the journal is.
    pub journal: PathBuf,
    /// Units of each channel that are paid from within this process.
    pub feed_units: Option<u64>,
}

/// The payee is ready.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Where it takes payments.
    pub address: SocketAddr,
    /// As whom.
    pub identity: PublicKey,
}

/// What can be asked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Question {
    /// How it stands; answered with [`Status`].
    Status,
    /// How the channel with this number stands; answered with a [`ChannelStatus`].
    Channel(u32),
}

/// How the payee stands.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Tokens that were not refused.
    pub tokens: u64,
    /// Unit records drained.
    pub records: u64,
    /// Batches that were committed.
    pub commits: u64,
    /// Links with payers.
    pub connections: u64,
    /// What it has taken of the machine.
    pub taken: Taken,
}

impl Status {
    /// Since `before`.
    #[must_use]
    pub fn since(self, before: Status) -> Status {
        Status {
            tokens: self.tokens - before.tokens,
            records: self.records - before.records,
            commits: self.commits - before.commits,
            connections: self.connections,
            taken: self.taken.since(before.taken),
        }
    }
}

/// The role.
pub fn play() -> Result<()> {
    let (needs, mut asked) = Asked::begin::<Needs>()?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()?;
    let (handle, ready) = runtime.block_on(start(&needs))?;
    let feed = match needs.feed_units {
        Some(units) => Some(feed(&runtime, &needs, &handle, units)?),
        None => None,
    };
    asked.answer(&ready)?;
    while let Some(question) = asked.next()? {
        if let Some(feed) = &feed {
            feed.check()?;
        }
        match question {
            Question::Status => asked.answer(&runtime.block_on(status(&handle))?)?,
            Question::Channel(number) => {
                let status = runtime.block_on(channel_status(&handle, number))?;
                asked.answer(&status)?;
            }
        }
    }
    Ok(())
}

async fn start(needs: &Needs) -> Result<(Handle, Ready)> {
    let journal = Journal::open(&needs.journal)?;
    let books = Books::restore(served(), offer(), journal.stored()?)
        .map_err(|(channel, error)| anyhow!("channel {channel}: {error}"))?;
    let keeper::Running {
        handle,
        mut errands,
        ended,
    } = keeper::start(books, journal)?;
    tokio::spawn(async move { while errands.recv().await.is_some() {} });
    tokio::spawn(async move {
        if let Ok(Err(error)) = ended.await {
            eprintln!("error: {error}");
        }
    });
    handle.tell(Event::Payee(PAYEE)).await?;
    handle.tell(Event::Tips(tips())).await?;
    for number in 0..needs.channels + needs.idle_channels {
        handle.tell(Event::Channel(Box::new(view(number)?))).await?;
    }
    if let Some(tables) = &needs.tables {
        let attachment = attach(tables)?;
        handle.tell(Event::Attached(Box::new(attachment))).await?;
        let slots = assignments(needs.channels);
        handle.tell(Event::Assignments(slots)).await?;
    }
    let fresh = handle.clone();
    tokio::spawn(async move {
        while fresh.tell(Event::Tips(tips())).await.is_ok() {
            tokio::time::sleep(TIPS_INTERVAL).await;
        }
    });

    let known = handle.known.clone();
    let limits = Limits {
        // From half of it on the listener takes it for a crowd.
        connections_max: 2 * needs.channels as usize + 64,
        known: Arc::new(move |key| known.contains(key)),
    };
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), &identity()?, limits)?;
    let ready = Ready {
        address: listener.local_addr()?,
        identity: identity()?.public_key(),
    };
    // Every channel is known, so nobody is ever asked there.
    let chain = LookUp::below(&needs.journal);
    tokio::spawn(payments::serve(listener, handle.clone(), chain));
    Ok((handle, ready))
}

/// What the data plane shares.
pub fn attach(tables: &Path) -> Result<Attachment> {
    let socket = UnixStream::connect(tables)
        .with_context(|| format!("cannot reach the data plane at {}", tables.display()))?;
    socket.set_read_timeout(Some(HANDOVER_TIMEOUT))?;
    Ok(Attachment::receive(&socket)?)
}

fn feed(runtime: &Runtime, needs: &Needs, handle: &Handle, units: u64) -> Result<Feed> {
    let tables = needs.tables.as_deref();
    let tables = tables.context("nothing is fed without a data plane")?;
    let prepared = Prepared::new(needs.channels, units)?;
    let usage = attach(tables)?.usage;
    runtime
        .block_on(prepared.greet(handle))?
        .start(handle.clone(), usage)
}

async fn status(handle: &Handle) -> Result<Status> {
    let overview = handle.ask(Event::Overview).await?;
    Ok(Status {
        tokens: overview.counters.tokens,
        records: overview.counters.records,
        commits: overview.counters.commits,
        connections: overview.connections,
        taken: Taken::now()?,
    })
}

async fn channel_status(handle: &Handle, number: u32) -> Result<ChannelStatus> {
    let status = handle.ask(|answer| Event::Status(channel(number), answer));
    status.await?.context("the payee does not know the channel")
}
