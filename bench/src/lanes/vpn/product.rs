//! This process in the place of the product's control and metering: it installs the sessions, and
//! answers every unit record with credit, as metering does for a payer who never stops paying.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::runtime::{Builder, Runtime};
use topnet_account::ChannelId;
use topnet_api::{
    DataplaneClient, DataplaneStatus, DesiredSession, DesiredSessions, SocketName, connect,
};
use topnet_config::Config;
use topnet_lab::topology::INNER_SUBNET;
use topnet_unit::{Attachment, Slot};

use super::gateway::{Backend, Peer};
use super::links::{CLIENTS_INTERFACE, UPLINK_INTERFACE};
use super::{GATEWAY_CPU, INNER_MTU, WIREGUARD_PORT};
use crate::lanes::credit;

/// How often metering looks at its ring.
const METERING_INTERVAL: Duration = Duration::from_millis(1);
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Room for sessions and channels. The tables' size is no matter of speed.
const SESSIONS_MAX: u32 = 1024;

/// Control and metering of one running data plane.
pub struct Product {
    runtime: Runtime,
    socket: PathBuf,
    ended: Arc<AtomicBool>,
    metering: Option<JoinHandle<()>>,
}

impl Product {
    /// Writes a configuration below `home` and returns its file.
    pub fn configure(
        home: &Path,
        key_file: &Path,
        backend: Backend,
        nat: Option<&str>,
    ) -> Result<PathBuf> {
        let runtime_dir = runtime_dir(home);
        fs::create_dir(&runtime_dir)?;
        let file = home.join("topnet.toml");
        let text = format!(
            "runtime_dir = \"{}\"\ndata_dir = \"{}\"\n[dataplane]\n\
             client_interface = \"{CLIENTS_INTERFACE}\"\nuplink_interface = \"{UPLINK_INTERFACE}\"\n\
             wireguard_port = {WIREGUARD_PORT}\nkey_file = \"{}\"\ninner_subnet = \"{INNER_SUBNET}\"\n\
             inner_mtu = {INNER_MTU}\nio = \"{}\"\ncpus = [{GATEWAY_CPU}]\nslots_max = {SESSIONS_MAX}\n\
             sessions_max = {SESSIONS_MAX}\n{}",
            runtime_dir.display(),
            home.join("data").display(),
            key_file.display(),
            backend.io(),
            nat.unwrap_or_default(),
        );
        // The measured world is private.
        let text = text + "[dataplane.reach]\nprivate = [\"10.77.2.0/24\"]\n";
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// There once the data plane is.
    pub fn tables_socket(home: &Path) -> PathBuf {
        SocketName::Tables.below(&runtime_dir(home))
    }

    /// Installs the sessions, each with a channel of its own, and begins to pay.
    pub fn take(home: &Path, peers: &[Peer]) -> Result<Product> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let mut product = Product {
            runtime,
            socket: SocketName::Dataplane.below(&runtime_dir(home)),
            ended: Arc::default(),
            metering: None,
        };
        let slots = product.install(peers)?;
        let tables = UnixStream::connect(Product::tables_socket(home))?;
        tables.set_read_timeout(Some(ANSWER_WAIT))?;
        let metering = Attachment::receive(&tables)?;
        for slot in slots {
            metering.credit.grant(slot, credit::unlimited(0)?);
        }
        let ended = Arc::clone(&product.ended);
        let thread = thread::Builder::new().name("metering".to_owned());
        product.metering = Some(thread.spawn(move || {
            if let Err(error) = credit::pay(metering, METERING_INTERVAL, &ended) {
                eprintln!("metering ended: {error:#}");
            }
        })?);
        Ok(product)
    }

    /// What the data plane has dropped, by reason.
    pub fn drops(&self) -> String {
        let Ok(status) = self.status() else {
            return "it does not say what it dropped".to_owned();
        };
        let counted: Vec<String> = status
            .drops
            .iter()
            .filter(|count| count.packets > 0)
            .map(|count| format!("{} {}", count.reason, count.packets))
            .collect();
        format!("dropped: {}; io: {}", counted.join(", "), status.io.mode)
    }

    /// Flows through the shared addresses; none where there are none.
    pub fn nat_flows(&self) -> Result<Option<u32>> {
        Ok(self.status()?.nat.map(|nat| nat.flows))
    }

    fn status(&self) -> Result<DataplaneStatus> {
        self.ask(async |api| Ok(api.status(tarpc::context::current()).await?))
    }

    fn install(&self, peers: &[Peer]) -> Result<Vec<Slot>> {
        let sessions = peers.iter().map(|peer| DesiredSession {
            // Any name that nobody else has.
            channel: ChannelId(peer.public_key),
            wireguard_public_key: peer.public_key,
            inner_address: peer.inner,
        });
        let desired = DesiredSessions {
            revision: 1,
            sessions: sessions.collect(),
        };
        let report = self.ask(async |api| {
            let answer = api.install(tarpc::context::current(), desired).await?;
            answer.map_err(|error| anyhow::anyhow!("{error:?}"))
        })?;
        ensure!(
            report.refused.is_empty(),
            "sessions were refused: {:?}",
            report.refused
        );
        ensure!(
            report.installed.len() == peers.len(),
            "{} of {} sessions were installed",
            report.installed.len(),
            peers.len()
        );
        let slots = report.installed.iter().map(|installed| Slot {
            index: installed.slot,
            generation: installed.generation,
        });
        Ok(slots.collect())
    }

    fn ask<T>(&self, question: impl AsyncFnOnce(DataplaneClient) -> Result<T>) -> Result<T> {
        self.runtime.block_on(async {
            let transport = connect(&self.socket).await?;
            let api = DataplaneClient::new(tarpc::client::Config::default(), transport).spawn();
            question(api).await
        })
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(metering) = self.metering.take() {
            // It has told what went wrong.
            let _ = metering.join();
        }
    }
}

/// Runs the product's data plane until it is told to end.
pub fn run_data_plane(config: &Path) -> Result<()> {
    topnet_config::log_to_stderr("info,boringtun=off,tarpc=warn");
    let loaded = Config::load(config)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(topnet_dataplane::run(&loaded, config))?;
    Ok(())
}

fn runtime_dir(home: &Path) -> PathBuf {
    home.join("run")
}
