//! Paid downloads over everything that can be between a client and the world: shared addresses,
//! IPv6, a client that moves, keys that age.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    origin::Origin,
    probe::Probe,
    process::output,
    report::{Report, Restart},
    topology::{CLIENT, ORIGIN6},
    users,
};

use super::{
    TRANSFER_WAIT,
    lab::{Lab, Opened, number, tunnel_name},
    outage::millis,
    paid_download::{ALLOCATION_UNITS, DOWNLOAD_BYTES, Download},
};

/// The addresses that clients share, of RFC 5737.
pub(super) const POOL: &str = "198.51.100.0/28";
/// The clients' IPv6 network.
pub(super) const INNER_SUBNET6: &str = "fd78::/64";
/// Slow enough that something can happen in the middle.
const RATE_BYTES_PER_S: u64 = 16 << 20;
/// How long datagrams come back before a restart, and after it.
const PROBED: Duration = Duration::from_millis(500);
/// Packets that the operator looks at.
const CAPTURED_PACKETS: u64 = 50;
/// Where the client goes.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 3);
/// WireGuard's keys are changed after two minutes of use (REKEY_AFTER_TIME).
const REKEY_AFTER: Duration = Duration::from_secs(120);
const COMMAND_WAIT: Duration = Duration::from_secs(10);

impl Lab<'_> {
    /// Behind shared addresses, with a data plane that is stopped and started in between: the
    /// connection goes on, by the same port.
    pub(super) fn vpn_nat(&mut self, report: &mut Report) -> Result<Opened> {
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        self.topology.limit_origin(RATE_BYTES_PER_S)?;
        let download = self.begin_download(DOWNLOAD_BYTES)?;
        self.until_half(&download)?;
        self.say("stopping and starting the data plane");
        let probe = Probe::start(&self.topology)?;
        let interrupt = self.options.interrupt;
        // A probe that has heard nothing yet measures nothing.
        let heard_beyond = |returned: u64| {
            interrupt.wait("datagrams come back", TRANSFER_WAIT, || {
                Ok((probe.returned() > returned).then_some(()))
            })
        };
        heard_beyond(0)?;
        interrupt.sleep(PROBED)?;
        self.capture()?;
        let began = Instant::now();
        self.provider
            .restart("dataplane", &self.topology, &self.run_dir, interrupt)?;
        let (before, returned) = (download.bytes(), probe.returned());
        interrupt.wait("the download goes on", TRANSFER_WAIT, || {
            Ok((download.bytes() > before).then_some(()))
        })?;
        let download_ms = millis(began.elapsed());
        heard_beyond(returned)?;
        interrupt.sleep(PROBED)?;
        let returns = probe.stop()?;
        let outage_ms = millis(returns.silence_max);
        self.say(&format!(
            "nothing came back for {outage_ms} ms; the download went on after {download_ms} ms"
        ));
        report.restarts.push(Restart {
            process: "dataplane".to_owned(),
            outage_ms,
            download_ms,
        });
        self.finish_download(download, report)?;
        let clients = self.origin.clients_of("download")?;
        let shared = |address: &IpAddr| match address {
            IpAddr::V4(address) => address.octets()[..3] == [198, 51, 100],
            IpAddr::V6(_) => false,
        };
        ensure!(
            clients.len() == 1 && clients.iter().all(shared),
            "the origin saw {clients:?}"
        );
        self.close_and_reconcile(&channel, report)?;
        Ok(channel)
    }

    /// IPv6 through the tunnel, at the address that the session's grant names.
    pub(super) fn vpn_ipv6(&mut self, report: &mut Report) -> Result<Opened> {
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        let address = self.inner6.context("the grant has no IPv6 address")?;
        let name = tunnel_name();
        for words in [
            format!("-6 address add {address}/128 dev {name} nodad"),
            format!("-6 route add fd77:2::/64 dev {name}"),
        ] {
            self.client_ip(&words)?;
        }
        let served = self.origin.offer_random("download", DOWNLOAD_BYTES)?;
        let here = self.wallet.home.join("download");
        let url = Origin::download_url(ORIGIN6.into(), "download");
        let transfer = self.client().download(&url, &here)?;
        self.finish_download(Download::of(served, here, transfer), report)?;
        let clients = self.origin.clients_of("download")?;
        let expected = BTreeSet::from([IpAddr::from(address)]);
        ensure!(clients == expected, "the origin saw {clients:?}");
        self.close_and_reconcile(&channel, report)?;
        Ok(channel)
    }

    /// The client gets another address in the middle: tunnel, payments and download go with it.
    pub(super) fn vpn_roaming(&mut self, report: &mut Report) -> Result<Opened> {
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        self.topology.limit_origin(RATE_BYTES_PER_S)?;
        let download = self.begin_download(DOWNLOAD_BYTES)?;
        self.until_half(&download)?;
        self.say("moving the client to another address");
        self.move_client(true)?;
        self.finish_download(download, report)?;
        self.is_known_there(true)?;
        self.close_and_reconcile(&channel, report)?;
        Ok(channel)
    }

    /// Fails if the gateway does not know the client where [`Self::move_client`] has moved it.
    pub(super) fn is_known_there(&self, away: bool) -> Result<()> {
        let address = if away { ELSEWHERE } else { CLIENT };
        let endpoint = self.sessions()?["traffic"]["endpoint"].clone();
        let moved = endpoint
            .as_str()
            .is_some_and(|at| at.starts_with(&format!("{address}:")));
        ensure!(
            moved,
            "the gateway knows the client at {endpoint}, not at {address}"
        );
        Ok(())
    }

    /// Gives the client another address, or the first one back.
    pub(super) fn move_client(&self, away: bool) -> Result<()> {
        self.topology
            .client
            .sysctl("net.ipv4.conf.uplink.promote_secondaries", "1")?;
        let [to, from] = match away {
            true => [ELSEWHERE, CLIENT],
            false => [CLIENT, ELSEWHERE],
        };
        for words in [
            format!("address add {to}/24 dev uplink"),
            format!("address del {from}/24 dev uplink"),
        ] {
            self.client_ip(&words)?;
        }
        Ok(())
    }

    /// A download that is longer than keys live.
    pub(super) fn vpn_rekey(&mut self, report: &mut Report) -> Result<Opened> {
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        let seconds = REKEY_AFTER.as_secs() + 30;
        self.topology.limit_origin(DOWNLOAD_BYTES / seconds)?;
        let began = Instant::now();
        let download = self.begin_download(DOWNLOAD_BYTES)?;
        self.finish_download(download, report)?;
        let age =
            number(&self.sessions()?["traffic"]["handshake_age_s"]).context("no handshake")?;
        ensure!(
            began.elapsed() > REKEY_AFTER && age < REKEY_AFTER.as_secs(),
            "the keys are {age} s old after {:?}",
            began.elapsed()
        );
        self.close_and_reconcile(&channel, report)?;
        Ok(channel)
    }

    /// The operator looks at what is in the tunnel, by the data plane's user, whose socket it is.
    fn capture(&self) -> Result<()> {
        let file = self.run_dir.join("data/dataplane/capture.pcap");
        let out = file.to_str().context("a path that is not UTF-8")?;
        let count = CAPTURED_PACKETS.to_string();
        let words = ["vpn", "capture", "--out", out, "--packets", &count];
        let (provider, interrupt) = (&self.topology.provider, self.options.interrupt);
        let topnet = self.provider.topnet.run_by(users::DATAPLANE);
        let captured: Value = topnet.ask(provider, interrupt, &words)?;
        ensure!(
            number(&captured["packets"]) == Some(CAPTURED_PACKETS),
            "`topnet vpn capture` said {captured}"
        );
        let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "the capture's mode is {mode:o}");
        let bytes = fs::read(&file)?;
        let inner = u32::from(Ipv4Addr::new(10, 78, 0, 0)).to_be_bytes();
        // Behind the file's header and a record's, the first packet: one end is the client's.
        let ends = bytes.get(24 + 16 + 12..24 + 16 + 20).context("no packet")?;
        ensure!(
            ends[..2] == inner[..2] || ends[4..6] == inner[..2],
            "the first packet is none of the tunnel's: {ends:?}"
        );
        Ok(())
    }

    fn until_half(&self, download: &Download) -> Result<()> {
        let interrupt = self.options.interrupt;
        interrupt.wait("half of the download", TRANSFER_WAIT, || {
            Ok((download.bytes() >= DOWNLOAD_BYTES / 2).then_some(()))
        })
    }

    /// The one session.
    fn sessions(&self) -> Result<Value> {
        let (provider, interrupt) = (&self.topology.provider, self.options.interrupt);
        let sessions: Value = self
            .provider
            .topnet
            .ask(provider, interrupt, &["sessions"])?;
        Ok(sessions[0].clone())
    }

    fn client_ip(&self, words: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(words.split(' '));
        let interrupt = self.options.interrupt;
        output(&self.topology.client, command, interrupt, COMMAND_WAIT)
    }
}
