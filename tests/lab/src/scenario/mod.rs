//! The scenarios: what a provider and a client do, step by step, with nothing in their place.
//!
//! Each has a file of its own, over one [`Lab`]: the parts of a run and the steps that scenarios
//! share. [`reconcile`] is how each of them ends.

mod chaos;
mod cheats;
mod crash;
mod lab;
mod outage;
mod paid_download;
mod payer_closes;
mod reconcile;
mod service_dead;
mod settlement;
mod tower;
mod unpaid_stops;
mod vpn_connect;
mod vpn_many_peers;
mod vpn_names;
mod vpn_own_peers;
mod vpn_soak;
mod vpn_ways;
mod without_metering;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{interrupt::Interrupt, report::Report};

use self::lab::{Lab, Needs};

const READY_WAIT: Duration = Duration::from_secs(30);
const TRANSFER_WAIT: Duration = Duration::from_secs(180);
const STILL_WAIT: Duration = Duration::from_secs(30);
/// TCP waits longer and longer while nothing passes.
const RESUME_WAIT: Duration = Duration::from_secs(120);

/// A scenario by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Download, upload, close, settle.
    PaidDownload,
    /// The same over the kernel's sockets.
    VpnKernel,
    /// One command connects, pays and closes.
    VpnConnect,
    /// A peer of the operator's own, beside a client that pays.
    VpnOwnPeers,
    /// Thousands of configured peers, some at work.
    VpnManyPeers,
    /// Behind shared addresses, over a restart of the data plane.
    VpnNat,
    /// IPv6 through the tunnel.
    VpnIpv6,
    /// The same with the kernel's sockets.
    VpnIpv6Kernel,
    /// The client's address changes in the middle.
    VpnRoaming,
    /// A download that is longer than keys live.
    VpnRekey,
    /// An hour of ordinary work, and what is left of it.
    VpnSoak,
    /// The wallet is stopped in the middle of the download and returns.
    UnpaidStops,
    /// Every process is killed in the middle of a download.
    Crash,
    /// The payer closes in mid-download while metering is dead.
    Settlement,
    /// The payer closes in mid-download while metering is dead and settlement has lost its claims.
    Tower,
    /// The service's chain dies in mid-download.
    ServiceDead,
    /// Everybody tries to get more than is due.
    Cheats,
    /// Whatever can happen to processes and disks, by chance.
    Chaos,
}

impl Scenario {
    /// Every scenario, in the order in which `all` runs them.
    pub const ALL: [Self; 18] = [
        Self::PaidDownload,
        Self::VpnKernel,
        Self::VpnConnect,
        Self::VpnOwnPeers,
        Self::VpnManyPeers,
        Self::VpnNat,
        Self::VpnIpv6,
        Self::VpnIpv6Kernel,
        Self::VpnRoaming,
        Self::VpnRekey,
        Self::VpnSoak,
        Self::UnpaidStops,
        Self::Crash,
        Self::Settlement,
        Self::Tower,
        Self::ServiceDead,
        Self::Cheats,
        Self::Chaos,
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::PaidDownload => "paid-download",
            Self::VpnKernel => "vpn-kernel",
            Self::VpnConnect => "vpn-connect",
            Self::VpnOwnPeers => "vpn-own-peers",
            Self::VpnManyPeers => "vpn-many-peers",
            Self::VpnNat => "vpn-nat",
            Self::VpnIpv6 => "vpn-ipv6",
            Self::VpnIpv6Kernel => "vpn-ipv6-kernel",
            Self::VpnRoaming => "vpn-roaming",
            Self::VpnRekey => "vpn-rekey",
            Self::VpnSoak => "vpn-soak",
            Self::UnpaidStops => "unpaid-stops",
            Self::Crash => "crash",
            Self::Settlement => "settlement",
            Self::Tower => "tower",
            Self::ServiceDead => "service-dead",
            Self::Cheats => "cheats",
            Self::Chaos => "chaos",
        }
    }

    /// What it shows, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Self::PaidDownload => {
                "a WireGuard client downloads and uploads, pays by the unit, and the main chain settles"
            }
            Self::VpnKernel => {
                "paid-download with the kernel's UDP sockets and a TUN device in the place of AF_XDP"
            }
            Self::VpnConnect => {
                "`topnet connect` opens a channel, brings the tunnel up, pays by its own exact count, and closes; whenever it is killed, all is taken back"
            }
            Self::VpnOwnPeers => {
                "`topnet vpn add` and `wg-quick` beside a client that pays: nobody pays for the operator's own peer"
            }
            Self::VpnManyPeers => {
                "2,000 configured peers, four of them at work at once, beside a client that pays"
            }
            Self::VpnNat => {
                "behind shared addresses, a download goes on over an orderly restart of the data plane"
            }
            Self::VpnIpv6 => "IPv6 through the tunnel, at the address that the session was given",
            Self::VpnIpv6Kernel => {
                "vpn-ipv6 with the kernel's UDP sockets and a TUN device in the place of AF_XDP"
            }
            Self::VpnRoaming => {
                "the client's address changes in mid-download: tunnel and payments follow it"
            }
            Self::VpnRekey => {
                "a download that is longer than WireGuard's keys live; not part of `all`"
            }
            Self::VpnSoak => {
                "ordinary work of a client and own peers for an hour (--minutes): no process keeps more and more; not part of `all`"
            }
            Self::UnpaidStops => {
                "the wallet stops in mid-download: traffic stops within the window, and goes on when it returns"
            }
            Self::Crash => {
                "metering, wallet, data plane, settlement and control are killed in mid-download: not a unit is lost"
            }
            Self::Settlement => {
                "the payer closes in mid-download while metering is dead: what settlement holds is claimed in time"
            }
            Self::Tower => {
                "metering dies, settlement loses its claims, the payer closes: a tower on another machine claims in time"
            }
            Self::ServiceDead => {
                "the service's chain dies in mid-download: everybody's money comes home from main, to the nTOP"
            }
            Self::Cheats => {
                "a provider that overstates, a payer that forges or closes, claims that are false: all for nothing"
            }
            Self::Chaos => {
                "kills, pauses and full disks by chance over traffic both ways (--rounds, --seed); not part of `all`"
            }
        }
    }

    /// Short enough that `all` runs it.
    pub fn is_short(self) -> bool {
        !matches!(self, Self::Chaos | Self::VpnRekey | Self::VpnSoak)
    }

    fn needs(self) -> Needs {
        Needs {
            namespaces: match self {
                // Others are not to wait for an hour until the usual names are free.
                Self::VpnSoak => "topnet-soak-",
                _ => "topnet-",
            },
            forger: self == Self::Cheats,
            small_disk: self == Self::Chaos,
            tower: self == Self::Tower,
            own_peers: match self {
                Self::VpnOwnPeers => Some(vpn_own_peers::UNMETERED),
                Self::VpnManyPeers | Self::VpnSoak => Some(vpn_many_peers::UNMETERED),
                _ => None,
            },
            many_peers: self == Self::VpnManyPeers,
            name_server: self == Self::VpnConnect,
            nat: matches!(self, Self::VpnNat | Self::VpnSoak),
            ipv6: matches!(self, Self::VpnIpv6 | Self::VpnIpv6Kernel),
            kernel_sockets: matches!(self, Self::VpnKernel | Self::VpnIpv6Kernel),
            workers: match self {
                Self::VpnConnect
                | Self::VpnOwnPeers
                | Self::VpnManyPeers
                | Self::VpnNat
                | Self::VpnIpv6
                | Self::VpnSoak
                | Self::Crash => 2,
                _ => 1,
            },
            rules: match self {
                Self::ServiceDead => service_dead::RULES,
                _ => &[],
            },
        }
    }
}

/// How a scenario is run.
pub struct Options<'a> {
    /// Signals.
    pub interrupt: &'a Interrupt,
    /// Has the kernel's sockets carry the packets, whatever the scenario is.
    pub kernel_sockets: bool,
    /// Workers of the data plane, whatever the scenario is.
    pub workers: Option<u32>,
    /// Leaves everything running.
    pub keep: bool,
    /// Rounds of chaos.
    pub rounds: u64,
    /// What chaos does, and when.
    pub seed: u64,
    /// How long a soak is.
    pub minutes: u64,
    /// Told what is done now.
    pub progress: &'a dyn Fn(&str),
}

/// What `--keep` leaves.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Keys, logs, state, programs.
    pub directory: PathBuf,
    /// Its namespaces' names.
    pub namespaces: [String; 3],
    /// The channel.
    pub channel: String,
}

/// Runs a scenario from nothing to the removal of all that it made.
pub fn run(scenario: Scenario, options: &Options<'_>) -> Result<(Report, Option<Kept>)> {
    let began = Instant::now();
    let mut needs = scenario.needs();
    needs.kernel_sockets |= options.kernel_sockets;
    needs.workers = options.workers.unwrap_or(needs.workers);
    let mut lab = Lab::build(options, needs)?;
    let mut report = Report::default();
    let played = match scenario {
        Scenario::PaidDownload | Scenario::VpnKernel => lab.paid_download(&mut report),
        Scenario::VpnConnect => lab.vpn_connect(&mut report),
        Scenario::VpnOwnPeers => lab.vpn_own_peers(&mut report),
        Scenario::VpnManyPeers => lab.vpn_many_peers(&mut report),
        Scenario::VpnNat => lab.vpn_nat(&mut report),
        Scenario::VpnIpv6 | Scenario::VpnIpv6Kernel => lab.vpn_ipv6(&mut report),
        Scenario::VpnRoaming => lab.vpn_roaming(&mut report),
        Scenario::VpnRekey => lab.vpn_rekey(&mut report),
        Scenario::VpnSoak => lab.vpn_soak(&mut report),
        Scenario::UnpaidStops => lab.unpaid_stops(&mut report),
        Scenario::Crash => lab.crash(&mut report),
        Scenario::Settlement => lab.settlement(&mut report),
        Scenario::Tower => lab.tower_elsewhere(&mut report),
        Scenario::ServiceDead => lab.service_dead(&mut report),
        Scenario::Cheats => lab.cheats(&mut report),
        Scenario::Chaos => lab.chaos(&mut report),
    };
    let channel = match played {
        Ok(channel) => channel.id,
        Err(error) => {
            let words = lab.last_words();
            // Whoever ended the run wants nothing left of it.
            if options.interrupt.check().is_err() {
                return Err(error.context(words));
            }
            let logs = match lab.run_dir.save_logs() {
                Ok(saved) => format!("all logs are in {}", saved.display()),
                Err(error) => format!("the logs are lost: {error:#}"),
            };
            return Err(error.context(format!("{words}\n{logs}")));
        }
    };
    report.scenario = scenario.name().to_owned();
    report.ok = report.mismatches().is_empty();
    report.seconds = began.elapsed().as_secs_f64();
    report.machine = topnet_machine::machine();
    report.commit = topnet_machine::commit();
    let kept = options.keep.then(|| lab.keep(channel));
    Ok((report, kept))
}
