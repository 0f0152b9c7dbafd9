//! The process: puts thread, tasks and sockets together.

use std::{fs, io, os::unix::fs::DirBuilderExt, path::PathBuf, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use topnet_account::ChannelId;
use topnet_api::{ChainName, Metering as _, SocketName, listen, serve_connections};
use topnet_books::{Books, facts::Served};
use topnet_channel::{Offer, PROTOCOL_VERSION, RecordError};
use topnet_config::{Config, ConfigError, Metering};
use topnet_link::{Limits, LinkError, Listener};
use topnet_wallet::key_file::{self, KeyFileError};
use tracing::info;

use crate::{
    archive::{self, Progress},
    dataplane,
    event::{Event, Handle},
    journal::{Journal, JournalError},
    keeper, payments,
    service::Service,
    settlement::{self, LookUp},
};

/// How long payers' links may take to be told that they end.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Why metering cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The payment identity.
    #[error("[metering] key_file: {0}")]
    Key(#[from] KeyFileError),
    /// The journal.
    #[error("[metering] journal_dir: {0}")]
    Journal(#[from] JournalError),
    /// A record in it.
    #[error("[metering] journal_dir: channel {channel}: {error}")]
    Record {
        /// Whose.
        channel: ChannelId,
        /// What is wrong.
        error: RecordError,
    },
    /// The payment port.
    #[error("[metering] payment_listen: {0}")]
    Link(#[from] LinkError),
    /// The socket for other processes.
    #[error(
        "cannot listen at {path}: {source}; does the directory exist, and may this user write there?"
    )]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What a process needs of its system.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs metering until a signal ends it or the journal fails.
pub async fn run(config: Config) -> Result<(), RunError> {
    let metering = config.metering()?;
    let passphrase = key_file::passphrase(metering.passphrase_file.as_deref())?;
    let secret = key_file::read(&metering.key_file, &passphrase)?;
    let journal = open_journal(metering)?;
    let stored = journal.stored()?;
    info!(channels = stored.len(), "journal read");
    let chain = LookUp::below(&config.runtime_dir);
    let sealed = journal.sealed();

    let system = |what| move |source| RunError::System { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("wait for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("wait for signals"))?;

    let books = Books::restore(served(metering), offer(metering), stored)
        .map_err(|(channel, error)| RunError::Record { channel, error })?;
    let keeper::Running {
        handle,
        errands,
        ended,
    } = keeper::start(books, journal).map_err(system("start the keeper's thread"))?;

    let known = handle.known.clone();
    let limits = Limits {
        connections_max: metering.connections_max as usize,
        known: std::sync::Arc::new(move |key| known.contains(key)),
    };
    let listener = Listener::bind(metering.payment_listen, &secret, limits)?;
    let path = SocketName::Metering.below(&config.runtime_dir);
    let incoming = listen(&path)
        .await
        .map_err(|source| RunError::Socket { path, source })?;
    let progress = Progress::default();
    let service = Service {
        handle: handle.clone(),
        identity: secret.public_key(),
        archive: progress.clone(),
    };
    info!(identity = %service.identity, listen = %metering.payment_listen, "metering runs");

    tokio::spawn(serve_connections(incoming, service.serve()));
    let payments = tokio::spawn(payments::serve(listener, handle.clone(), chain.clone()));
    let service_chain = ChainName(metering.service.clone());
    tokio::spawn(settlement::watch_chains(
        handle.clone(),
        chain.clone(),
        service_chain,
    ));
    tokio::spawn(settlement::watch_channels(handle.clone(), chain.clone()));
    tokio::spawn(settlement::hand_over_claims(handle.clone(), chain.clone()));
    tokio::spawn(archive::keep(archiving(metering), sealed, progress));
    tokio::spawn(dataplane::follow(
        config.runtime_dir.clone(),
        handle.clone(),
        chain,
        errands,
    ));

    let mut ended = ended;
    let ended = tokio::select! {
        ended = &mut ended => ended,
        _ = terminate.recv() => stop(&handle, ended).await,
        _ = interrupt.recv() => stop(&handle, ended).await,
    };
    // Payers that are told need not wait until they miss us.
    let _ = tokio::time::timeout(FAREWELL_TIMEOUT, payments).await;
    match ended {
        Ok(result) => Ok(result?),
        Err(_) => Err(system("keep the journal")(io::Error::other(
            "its thread panicked",
        ))),
    }
}

async fn stop<T>(
    handle: &Handle,
    ended: tokio::sync::oneshot::Receiver<T>,
) -> Result<T, tokio::sync::oneshot::error::RecvError> {
    info!("metering ends; slots run to their limits");
    // It fails only if the thread has ended already.
    let _ = handle.tell(Event::Stop).await;
    ended.await
}

fn open_journal(metering: &Metering) -> Result<Journal, RunError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&metering.journal_dir)
        .map_err(|source| RunError::System {
            what: "make [metering] journal_dir",
            source,
        })?;
    Ok(Journal::open_with_log(
        &metering.journal_dir,
        &metering.service_log_dir,
        metering.service_log_segment_lines,
    )?)
}

fn archiving(metering: &Metering) -> archive::Settings {
    let days = metering.service_log_days;
    archive::Settings {
        log_dir: metering.service_log_dir.clone(),
        archive: metering.archive.clone(),
        kept: (days > 0).then(|| DAY * days),
        patience: archive::PATIENCE,
    }
}

fn served(metering: &Metering) -> Served {
    Served {
        service: ChainName(metering.service.clone()),
        payee: None,
        close_window_blocks_min: metering.close_window_blocks_min,
        write_off_units_max: metering.write_off_units_max,
    }
}

fn offer(metering: &Metering) -> Offer {
    Offer {
        version: PROTOCOL_VERSION,
        unit_price: metering.unit_price(),
        epsilon_ppm: metering.epsilon_ppm,
        window_max: metering.window_units_max,
    }
}
