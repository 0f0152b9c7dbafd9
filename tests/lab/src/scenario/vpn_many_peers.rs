//! Thousands of configured peers, some of them at work at once, beside a paying client.

use std::{fmt::Write as _, fs, net::Ipv4Addr, os::unix::fs::chown, path::PathBuf};

use anyhow::{Context, Result, ensure};
use data_encoding::BASE64;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::{report::Report, run_dir::RunDir, users::DATAPLANE};

use super::{
    lab::{Lab, Opened, number, text},
    paid_download::{ALLOCATION_UNITS, DOWNLOAD_BYTES},
    vpn_own_peers::Quick,
};

/// Where the operator's own peers are: more of them than are configured.
pub(super) const UNMETERED: &str = "subnet = \"10.78.240.0/20\"\nsocket_dir = \"../run\"";
/// Peers that are configured and stay silent.
const CONFIGURED: u32 = 2_000;
/// Peers that are at work.
const AT_WORK: u8 = 4;
const OWN_BYTES: u64 = 8 << 20;

/// Leaves the data plane its list of peers, as an earlier run of it would have.
pub(super) fn configure(run_dir: &RunDir) -> Result<()> {
    // Nobody has their secrets, and nobody needs them.
    let mut keys = ChaCha8Rng::seed_from_u64(1);
    let mut conf = String::from("[Interface]\n");
    for number in 0..CONFIGURED {
        let mut key = [0; 32];
        keys.fill_bytes(&mut key);
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 78, 244, 0).to_bits() + number);
        writeln!(
            conf,
            "\n[Peer]\nPublicKey = {}\nAllowedIPs = {address}/32",
            BASE64.encode(&key)
        )?;
    }
    let path = run_dir.join("data/dataplane/unmetered.conf");
    fs::write(&path, conf).with_context(|| format!("cannot write {}", path.display()))?;
    chown(&path, Some(DATAPLANE.uid), Some(DATAPLANE.gid))?;
    Ok(())
}

impl Lab<'_> {
    pub(super) fn vpn_many_peers(&mut self, report: &mut Report) -> Result<Opened> {
        self.say("adding the peers that are to work");
        let name = |number: u8| format!("m{number}x{}", std::process::id());
        let mut confs: Vec<PathBuf> = Vec::new();
        let mut keys = Vec::new();
        for number in 0..AT_WORK {
            let conf = self.run_dir.join(&format!("{}.conf", name(number)));
            let path = conf.to_str().context("a path that is not UTF-8")?;
            let reaches = format!("{}/32", origin_of(number));
            let words = ["vpn", "add", "--allowed-ips", &reaches, "--out", path];
            keys.push(text(&self.as_root(&words)?["public_key"]).context("no key")?);
            self.add_origin_address(origin_of(number))?;
            confs.push(conf);
        }
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        let tunnels: Vec<Quick<'_>> = confs
            .into_iter()
            .map(|conf| Quick::up(self, conf))
            .collect::<Result<_>>()?;
        self.say("downloading through all of them at once");
        let paid = self.begin_download(DOWNLOAD_BYTES)?;
        let files = ["many0", "many1", "many2", "many3"];
        let numbers = 0..AT_WORK;
        let files: Vec<_> = files.into_iter().zip(numbers.map(origin_of)).collect();
        self.download_free(&files, OWN_BYTES, report)?;
        self.finish_download(paid, report)?;
        let peers = self.as_root(&["vpn", "peers"])?;
        let peers = peers.as_array().context("no list of peers")?;
        let expected = CONFIGURED as usize + usize::from(AT_WORK) + 1;
        ensure!(
            peers.len() == expected,
            "{} peers, not {expected}",
            peers.len()
        );
        for key in &keys {
            let peer = peers.iter().find(|peer| peer["public_key"] == **key);
            let down = peer.and_then(|peer| number(&peer["down_bytes"]));
            let down = down.context("a peer at work is not listed")?;
            ensure!(
                down >= OWN_BYTES,
                "{down} bytes down, {OWN_BYTES} downloaded"
            );
        }
        drop(tunnels);
        self.close_and_reconcile(&channel, report)?;
        ensure!(
            report.bytes.usage < DOWNLOAD_BYTES + OWN_BYTES,
            "what nobody pays for was billed"
        );
        Ok(channel)
    }
}

/// The address at the origin that only this peer reaches.
fn origin_of(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 2, 20 + number)
}
