//! The operator's own peer beside a paying client: `topnet vpn`, and `wg-quick` with this project's
//! interface.

use std::{fs, net::Ipv4Addr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    files::digest,
    origin::Origin,
    process::{User, output},
    report::{Report, Transferred},
};

use super::{
    TRANSFER_WAIT,
    lab::{Lab, Opened, number, text},
    paid_download::{ALLOCATION_UNITS, DOWNLOAD_BYTES},
};

/// Where the operator's own peers are.
pub(super) const UNMETERED: &str = "subnet = \"10.78.255.0/24\"\nsocket_dir = \"../run\"";
const OWN_BYTES: u64 = 16 << 20;
/// Another address of the origin's.
const ORIGIN_TOO: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 3);
const COMMAND_WAIT: Duration = Duration::from_secs(30);
/// The operator has the machine.
const ROOT: User = User {
    uid: 0,
    gid: 0,
    capabilities: &["dac_override", "net_admin", "chown"],
};

/// A tunnel that `wg-quick` made, taken away when dropped.
pub(super) struct Quick<'a> {
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
        let reaches = format!("{ORIGIN_TOO}/32");
        let words = ["vpn", "add", "--allowed-ips", &reaches, "--out", &path];
        let added = self.as_root(&words)?;
        let key = text(&added["public_key"]).context("no key")?;
        let own = text(&added["allowed_ips"][0]).context("no address")?;
        self.add_origin_address(ORIGIN_TOO)?;

        // Both at once: a client that pays, and one that nobody pays for.
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        let quick = Quick::up(self, conf)?;
        let paid = self.begin_download(DOWNLOAD_BYTES)?;
        let free_bytes = self.download_free(&[("own", ORIGIN_TOO)], OWN_BYTES, report)?;
        self.finish_download(paid, report)?;
        let peers = self.as_root(&["vpn", "peers"])?;
        let peers = peers.as_array().context("no list of peers")?;
        let one = |paid: bool| peers.iter().find(|peer| peer["paid"] == paid);
        let (own_peer, payer) = (one(false), one(true));
        ensure!(peers.len() == 2 && payer.is_some(), "{peers:?}");
        let own_peer = own_peer.filter(|peer| peer["public_key"] == key);
        let own_peer = own_peer.context("the operator's own peer is not listed")?;
        let down = number(&own_peer["down_bytes"]).context("no count")?;
        ensure!(
            down >= free_bytes,
            "{down} bytes down, {free_bytes} downloaded"
        );
        // Each is seen with its own address.
        let clients = self.origin.clients_of("own")?;
        let seen = clients.iter().map(|address| format!("{address}/32"));
        ensure!(seen.eq([own]), "the origin saw {clients:?}");
        drop(quick);
        let removed = self.as_root(&["vpn", "remove", &key])?;
        ensure!(removed["removed"] == true, "{removed}");
        self.close_and_reconcile(&channel, report)?;
        let most = DOWNLOAD_BYTES + free_bytes;
        ensure!(report.bytes.usage < most, "what nobody pays for was billed");
        Ok(channel)
    }

    /// Another address of the origin's, so that each client has a way of its own there.
    pub(super) fn add_origin_address(&self, address: Ipv4Addr) -> Result<()> {
        let mut add = Command::new("ip");
        add.args(["address", "add", &format!("{address}/24"), "dev", "access"]);
        let interrupt = self.options.interrupt;
        output(&self.topology.origin, add, interrupt, COMMAND_WAIT).map(drop)
    }

    pub(super) fn as_root(&self, words: &[&str]) -> Result<Value> {
        let topnet = self.provider.topnet.run_by(ROOT);
        topnet.ask(&self.topology.provider, self.options.interrupt, words)
    }

    /// Downloads a file by each of these names from that address of the origin's, all at once, through
    /// the operator's own peers, for whom nobody pays; the bytes of one.
    pub(super) fn download_free(
        &self,
        files: &[(&str, Ipv4Addr)],
        bytes: u64,
        report: &mut Report,
    ) -> Result<u64> {
        let mut under_way = Vec::new();
        for (name, origin) in files {
            let served = self.origin.offer_random(name, bytes)?;
            let here = self.wallet.home.join(name);
            let url = Origin::download_url((*origin).into(), name);
            under_way.push((name, served, self.client().download(&url, &here)?, here));
        }
        for (name, served, transfer, here) in under_way {
            transfer.finish(self.options.interrupt, TRANSFER_WAIT, |_| ())?;
            report.files.push(Transferred {
                bytes: served.bytes,
                sha256_origin: served.sha256,
                sha256_client: digest(&here)?.sha256,
            });
            fs::remove_file(&here)?;
            self.origin.withdraw(name)?;
        }
        Ok(bytes)
    }
}

impl<'a> Quick<'a> {
    pub(super) fn up(lab: &'a Lab<'a>, conf: PathBuf) -> Result<Self> {
        let quick = Self { lab, conf };
        quick.run("up")?;
        Ok(quick)
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
