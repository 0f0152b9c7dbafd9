//! Starts a tower from its configuration.

use std::{io, net::SocketAddr, sync::Arc};

use topnet_config::Tower as Config;

use crate::{
    desk::Desk,
    held::{Held, HeldError},
    listener::Listener,
    nodes::Nodes,
    watch::Watch,
};

/// Why a tower cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The claims cannot be opened.
    #[error(transparent)]
    Held(#[from] HeldError),
    /// A node's address is none.
    #[error("[tower] rpc_urls: {0}; write it as http://203.0.113.1:8545")]
    Node(String),
    /// The address is taken, or not ours.
    #[error(
        "cannot listen at {address} ([tower] listen): {source}; stop what listens there, or choose \
         an address and port of this machine"
    )]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// A tower that answers and watches.
pub struct Tower {
    listener: Listener,
    watching: tokio::task::JoinHandle<()>,
}

impl Tower {
    /// Opens what is held, and begins to answer and to watch.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let nodes = Nodes::new(&config.rpc_urls, config.main_genesis).map_err(StartError::Node)?;
        let watch = Watch {
            nodes,
            held: Held::open(&config.storage_dir)?,
            register: Arc::default(),
            news: Arc::default(),
            interval_ms: config.claim_interval_ms,
        };
        watch.begin()?;
        let desk = Desk::new(
            watch.clone(),
            config.payees.iter().copied(),
            config.main_genesis,
            config.channels_max.into(),
        );
        let listener = Listener::start(desk, config.listen).await;
        let listener = listener.map_err(|source| StartError::Listen {
            address: config.listen,
            source,
        })?;
        Ok(Self {
            listener,
            watching: tokio::spawn(watch.run()),
        })
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// Resolves when it watches no more, which only a fault does.
    pub async fn ended(&mut self) -> String {
        match (&mut self.watching).await {
            Ok(()) => "the watch ended".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Answers and watches no more.
    pub async fn stop(self) {
        self.listener.stop().await;
        self.watching.abort();
    }
}
