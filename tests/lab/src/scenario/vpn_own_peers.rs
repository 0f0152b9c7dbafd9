//! The operator's own peer beside a paying client: `topnet vpn`, and `wg-quick` with this project's
//! interface.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    files::digest,
    origin::Origin,
    process::{User, output},
    report::{Report, Transferred},
    topology::ORIGIN,
};

use super::{
    TRANSFER_WAIT,
    lab::{Lab, ORIGIN_NETWORK, Opened, number, text},
    paid_download::{ALLOCATION_UNITS, DOWNLOAD_BYTES},
};

/// Where the operator's own peers are.
pub(super) const UNMETERED: &str = "subnet = \"10.78.255.0/24\"\nsocket_dir = \"../run\"";
const OWN_BYTES: u64 = 16 << 20;
const COMMAND_WAIT: Duration = Duration::from_secs(30);
/// The operator has the machine.
const ROOT: User = User {
    uid: 0,
    gid: 0,
    capabilities: &["dac_override", "net_admin", "chown"],
};

/// A tunnel that `wg-quick` made, taken away when dropped.
struct Quick<'a> {
    lab: &'a Lab<'a>,
    conf: PathBuf,
}

impl Lab<'_> {
    pub(super) fn vpn_own_peers(&mut self, report: &mut Report) -> Result<Opened> {
        self.say("adding a peer of the operator's own");
        let name = format!("own{}", std::process::id());
        let conf = self.run_dir.join(&format!("{name}.conf"));
        let path = conf
            .to_str()
            .context("a path that is not UTF-8")?
            .to_owned();
        let added = self.as_root(&[
            "vpn",
            "add",
            "--allowed-ips",
            ORIGIN_NETWORK,
            "--out",
            &path,
        ])?;
        let key = text(&added["public_key"]).context("no key")?;
        let quick = Quick { lab: self, conf };
        quick.run("up")?;
        let free = self.download_own(report)?;
        drop(quick);
        let peers = self.as_root(&["vpn", "peers"])?;
        let own = &peers[0];
        ensure!(own["public_key"] == key && own["paid"] == false, "{peers}");
        let down = number(&own["down_bytes"]).context("no count")?;
        ensure!(down >= free, "{down} bytes down, {free} downloaded");

        // A client that pays has another address, and pays for what is its own alone.
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        let download = self.begin_download(DOWNLOAD_BYTES)?;
        self.finish_download(download, report)?;
        let peers = self.as_root(&["vpn", "peers"])?;
        let paid = peers.as_array().map(|peers| {
            let paid = peers.iter().filter(|peer| peer["paid"] == true);
            paid.count()
        });
        ensure!(paid == Some(1), "{peers}");
        let removed = self.as_root(&["vpn", "remove", &key])?;
        ensure!(removed["removed"] == true, "{removed}");
        self.close_and_reconcile(&channel, report)?;
        Ok(channel)
    }

    fn as_root(&self, words: &[&str]) -> Result<Value> {
        let topnet = self.provider.topnet.run_by(ROOT);
        topnet.ask(&self.topology.provider, self.options.interrupt, words)
    }

    /// Downloads through the operator's own peer, which nobody pays for.
    fn download_own(&self, report: &mut Report) -> Result<u64> {
        let served = self.origin.offer_random("own", OWN_BYTES)?;
        let here = self.wallet.home.join("own");
        let transfer = self
            .client()
            .download(&Origin::download_url(ORIGIN.into(), "own"), &here)?;
        transfer.finish(self.options.interrupt, TRANSFER_WAIT, |_| ())?;
        report.files.push(Transferred {
            bytes: served.bytes,
            sha256_origin: served.sha256,
            sha256_client: digest(&here)?.sha256,
        });
        fs::remove_file(&here)?;
        self.origin.withdraw("own")?;
        Ok(OWN_BYTES)
    }
}

impl Quick<'_> {
    fn run(&self, what: &str) -> Result<()> {
        let implementation = self.lab.run_dir.program("topnet-wireguard")?;
        let mut command = Command::new("wg-quick");
        command.arg(what).arg(&self.conf);
        command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", implementation);
        let (client, interrupt) = (&self.lab.topology.client, self.lab.options.interrupt);
        output(client, command, interrupt, COMMAND_WAIT).map(drop)
    }
}

impl Drop for Quick<'_> {
    fn drop(&mut self) {
        // The process ends with its device; an end that fails is the namespace's to clean up.
        let _ = self.run("down");
    }
}
