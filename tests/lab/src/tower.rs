//! A tower on a machine of its own, which is the origin's: it holds the provider's claims and
//! reaches nothing of the provider's but its public RPC.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    interrupt::Interrupt,
    process::{Lifetime, Process},
    product::{Provider, Topnet},
    run_dir::RunDir,
    topology::{ORIGIN, PROVIDER_UPLINK, Topology},
    users::TOWER,
};

const PORT: u16 = 8547;
const READY_WAIT: Duration = Duration::from_secs(30);

/// The tower and the command as its owner uses it. Ended when dropped.
#[derive(Debug)]
pub struct Tower {
    /// The process.
    pub process: Process,
    topnet: Topnet,
    url: String,
}

/// Where a tower answers.
pub fn url() -> String {
    format!("http://{ORIGIN}:{PORT}")
}

impl Tower {
    /// Starts a tower that holds the provider's claims.
    pub fn start(
        topology: &Topology,
        run_dir: &RunDir,
        provider: &Provider,
        lifetime: Lifetime,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let home = run_dir.private("tower", TOWER.uid, TOWER.gid)?;
        run_dir.program("topnet-tower")?;
        let config = home.join("topnet.toml");
        let text = format!(
            "data_dir = {:?}\n\
             [tower]\n\
             listen = \"{ORIGIN}:{PORT}\"\n\
             rpc_urls = [\"http://{PROVIDER_UPLINK}:8545\"]\n\
             main_genesis = \"{}\"\n\
             payees = [\"{}\"]\n",
            home.join("data"),
            provider.main_genesis,
            provider.payee
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let topnet = Topnet::new(run_dir.program("topnet")?, config, TOWER, lifetime);
        let command = topnet.with(&["run", "tower"]);
        let process = Process::start(&topology.origin, "tower", command, &run_dir.log("tower"))?;
        let url = url();
        let mut tower = Self {
            process,
            topnet,
            url,
        };
        // Before it listens the command says so at once.
        let asking = (tower.topnet.clone(), tower.url.clone());
        let answers = || claims(&asking.0, &asking.1, topology, interrupt).is_ok();
        tower.process.wait_ready(interrupt, READY_WAIT, answers)?;
        Ok(tower)
    }

    /// What it holds of a channel; `None` if nothing.
    pub fn claim(
        &self,
        topology: &Topology,
        interrupt: &Interrupt,
        channel: &str,
    ) -> Result<Option<Value>> {
        let claims = claims(&self.topnet, &self.url, topology, interrupt)?;
        Ok(claims.into_iter().find(|claim| claim["channel"] == channel))
    }
}

/// Its claims are asked for as settlement's are.
fn claims(
    topnet: &Topnet,
    url: &str,
    topology: &Topology,
    interrupt: &Interrupt,
) -> Result<Vec<Value>> {
    topnet.ask(&topology.origin, interrupt, &["--rpc", url, "claims"])
}
