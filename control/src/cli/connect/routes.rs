//! What the system is told about a tunnel: addresses, routes, rules and name servers, and how all
//! of it is taken back.
//!
//! What goes through the tunnel stands in a table of its own, so that no route of the machine's is
//! replaced. Two rules lead there: what the main table has a route for keeps it (the local network),
//! the rest goes by the tunnel's table, and the tunnel's own packets, which are marked, by neither.
//! If the device dies, a route that leads nowhere stays until all is taken back: what was to go
//! through the tunnel does not go beside it meanwhile.
//!
//! Rules and name servers do not go with the device. What is about to be done is written down first,
//! as facts and not as commands, so that the next run takes back what a killed one left.

use std::{
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use topnet_uapi::IpNetwork;

use crate::cli::error::CliError;

use super::names::{self, Keeper};

/// Mark of the tunnel's own packets, and the table of what goes into it: "to" in ASCII.
pub(super) const MARK: u32 = 0x746f;
/// Rules that are asked before the main table's own (32766).
const PRIORITY_BESIDE: u32 = 32_000;
const PRIORITY_MAIN: u32 = 32_001;
const PRIORITY_TUNNEL: u32 = 32_002;
/// Addresses that are reached beside the tunnel, at most.
const RULES_MAX: u32 = 64;
/// A command that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
const SRC_VALID_MARK: &str = "/proc/sys/net/ipv4/conf/all/src_valid_mark";

/// First bytes of public addresses, from all parts of the space.
const PROBES: [u8; 12] = [1, 23, 45, 62, 77, 93, 104, 142, 151, 185, 203, 217];

/// What is to be set up.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// The device.
    pub(super) device: &'a str,
    /// Its addresses.
    pub(super) addresses: &'a [IpAddr],
    /// Largest packet.
    pub(super) mtu_bytes: u16,
    /// What goes through it.
    pub(super) networks: &'a [IpNetwork],
    /// What never does: payments and RPC, without which the tunnel would stand still.
    pub(super) beside: &'a [IpAddr],
    /// Name servers to use meanwhile; none if the system's are to stay.
    pub(super) dns: Option<&'a [IpAddr]>,
}

impl Plan<'_> {
    fn has(&self, version: Version) -> bool {
        self.addresses.iter().any(|at| Version::of(*at) == version)
    }

    fn networks_of(&self, version: Version) -> Vec<&IpNetwork> {
        let of_version = |network: &&IpNetwork| Version::of(network.address()) == version;
        self.networks.iter().filter(of_version).collect()
    }

    /// True if all of a version goes through the tunnel.
    fn takes_all(&self, version: Version) -> bool {
        // Defaults come in halves, or without private networks, as well.
        let networks = self.networks_of(version);
        let within = |probe: &&IpAddr| networks.iter().any(|network| network.contains(**probe));
        let probes: Vec<IpAddr> = PROBES
            .into_iter()
            .map(|first| version.probe(first))
            .collect();
        probes.iter().filter(within).count() * 4 >= probes.len() * 3
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    V4,
    V6,
}

impl Version {
    /// An address that anybody may want to reach.
    fn probe(self, first: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(first, 1, 1, 1).into(),
            Self::V6 => Ipv6Addr::new(0x2000 | u16::from(first), 1, 0, 0, 0, 0, 0, 1).into(),
        }
    }

    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    const fn option(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    const fn address_bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// Something that stays when the device goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Done {
    /// What has a route of its own in the main table goes by it.
    MainFirst(Version),
    /// What is not the tunnel's own goes by the tunnel's table.
    Tunnel(Version),
    /// This address is reached beside the tunnel.
    Beside(IpAddr),
    /// The tunnel's table.
    Table(Version),
    /// Name servers, told to systemd-resolved for a device.
    Resolved(String),
    /// Name servers, told to resolvconf for a device.
    Resolvconf(String),
}

impl Done {
    /// The words of `ip` about a rule.
    fn rule(&self) -> Option<(Version, String)> {
        match self {
            Self::MainFirst(version) => Some((
                *version,
                format!("table main suppress_prefixlength 0 priority {PRIORITY_MAIN}"),
            )),
            Self::Tunnel(version) => Some((
                *version,
                format!("not fwmark {MARK} table {MARK} priority {PRIORITY_TUNNEL}"),
            )),
            Self::Beside(address) => {
                let version = Version::of(*address);
                let bits = version.address_bits();
                Some((
                    version,
                    format!("to {address}/{bits} table main priority {PRIORITY_BESIDE}"),
                ))
            }
            Self::Table(_) | Self::Resolved(_) | Self::Resolvconf(_) => None,
        }
    }

    /// Takes it back. Said again, it is no error.
    fn undo(&self) -> Result<(), CliError> {
        if let Some((version, rule)) = self.rule() {
            let listed = output("ip", &[version.option(), "rule", "list"])?;
            let priority = rule.rsplit(' ').next().unwrap_or_default();
            let begin = format!("{priority}:");
            let about = match self {
                Self::Beside(address) => format!(" to {address} "),
                _ => String::new(),
            };
            let stands = |line: &str| line.starts_with(&begin) && line.contains(&about);
            if !listed.lines().any(stands) {
                return Ok(());
            }
            return ip(&format!("{} rule del {rule}", version.option()));
        }
        match self {
            Self::Table(version) => {
                // A table that was never filled is not there to be emptied.
                let _ = ip(&format!("{} route flush table {MARK}", version.option()));
                Ok(())
            }
            Self::Resolved(device) => Keeper::Resolved.forget(device),
            Self::Resolvconf(device) => Keeper::Resolvconf.forget(device),
            Self::MainFirst(_) | Self::Tunnel(_) | Self::Beside(_) => Ok(()),
        }
    }
}

/// What is set up. Taken back when dropped.
#[derive(Debug)]
pub(super) struct Routes {
    journal: PathBuf,
    done: Vec<Done>,
    /// What is not as it should be, for people.
    pub(super) warnings: Vec<String>,
}

impl Routes {
    /// Says what the system will not let be set up, before money is bound to it.
    pub(super) fn check() -> Result<(), CliError> {
        for version in [Version::V4, Version::V6] {
            if version == Version::V4 || has_ipv6() {
                output("ip", &[version.option(), "rule", "list"])?;
            }
        }
        source_marks()
    }

    /// Takes back what an earlier run left behind; an error says what is left.
    pub(super) fn recover(journal: &Path, device: &str) -> Result<(), CliError> {
        let done = match fs::read(journal) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|_| {
                // Written by another version: everything has its fixed place, and names theirs by
                // the device.
                for version in [Version::V4, Version::V6] {
                    let beside =
                        format!("{} rule del priority {PRIORITY_BESIDE}", version.option());
                    let _ = (0..RULES_MAX).take_while(|_| ip(&beside).is_ok()).count();
                }
                [Version::V4, Version::V6]
                    .into_iter()
                    .flat_map(|v| [Done::Table(v), Done::Tunnel(v), Done::MainFirst(v)])
                    // systemd-resolved forgets by itself what it was told for a device that is gone.
                    .chain([Done::Resolvconf(device.to_owned())])
                    .collect()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(CliError::file(journal, error)),
        };
        let mut routes = Self {
            journal: journal.to_owned(),
            done,
            warnings: Vec::new(),
        };
        routes.take_back()
    }

    /// Sets everything up, or nothing.
    pub(super) fn set_up(plan: &Plan<'_>, journal: &Path) -> Result<Self, CliError> {
        let mut routes = Self {
            journal: journal.to_owned(),
            done: Vec::new(),
            warnings: Vec::new(),
        };
        let device = plan.device;
        for address in plan.addresses {
            let version = Version::of(*address);
            let (option, bits) = (version.option(), version.address_bits());
            // There is nobody else on the link whose address it could be.
            let nodad = if version == Version::V6 { " nodad" } else { "" };
            ip(&format!(
                "{option} address add {address}/{bits} dev {device}{nodad}"
            ))?;
        }
        ip(&format!("link set dev {device} mtu {} up", plan.mtu_bytes))?;
        for version in [Version::V4, Version::V6] {
            let networks = plan.networks_of(version);
            // Who sends all of IPv4 through a tunnel does not expect IPv6 to go beside it.
            let closed = version == Version::V6
                && plan.takes_all(Version::V4)
                && (networks.is_empty() || !plan.has(version))
                && has_ipv6();
            if closed {
                routes.lead(version, plan, &[])?;
                routes
                    .warnings
                    .push("IPv6 is switched off meanwhile: the provider has none".to_owned());
            } else if !networks.is_empty() && plan.has(version) {
                routes.lead(version, plan, &networks)?;
            }
        }
        routes.name_servers(plan)?;
        Ok(routes)
    }

    /// Lets nothing more through the device, and takes everything back.
    pub(super) fn take_down(mut self, device: &str) -> Result<(), CliError> {
        // A device that is gone is down.
        let _ = ip(&format!("link set dev {device} down"));
        self.take_back()
    }

    /// Leads a version's networks through the device; all of it nowhere, if there are none.
    fn lead(
        &mut self,
        version: Version,
        plan: &Plan<'_>,
        networks: &[&IpNetwork],
    ) -> Result<(), CliError> {
        let (option, device) = (version.option(), plan.device);
        self.note(Done::Table(version))?;
        for network in networks {
            ip(&format!(
                "{option} route replace {network} dev {device} table {MARK}"
            ))?;
        }
        // What is left when the device goes, which takes its routes along.
        let ends: Vec<String> = match networks {
            [] => vec!["default".to_owned()],
            some => some.iter().map(ToString::to_string).collect(),
        };
        for network in ends {
            let nowhere = format!("unreachable {network} metric 4294967294 table {MARK}");
            ip(&format!("{option} route replace {nowhere}"))?;
        }
        let beside = plan.beside.iter().filter(|at| Version::of(**at) == version);
        let beside = beside.map(|address| Done::Beside(*address));
        let rules = [Done::Tunnel(version), Done::MainFirst(version)];
        for rule in beside.chain(rules) {
            self.note(rule.clone())?;
            if let Some((_, words)) = rule.rule() {
                ip(&format!("{option} rule add {words}"))?;
            }
        }
        if version == Version::V4 {
            source_marks()?;
        }
        Ok(())
    }

    /// Has names resolved through the tunnel, where it takes everything and the system has a way
    /// to say so.
    fn name_servers(&mut self, plan: &Plan<'_>) -> Result<(), CliError> {
        if !plan.takes_all(Version::V4) {
            return Ok(());
        }
        let Some(dns) = plan.dns else {
            return Ok(());
        };
        let device = plan.device;
        let told = match (dns, Keeper::find()) {
            ([], _) => Err((
                "no name server is given".to_owned(),
                "set one that is reached through the tunnel",
            )),
            (_, None) => Err((
                "there is neither systemd-resolved nor resolvconf".to_owned(),
                "install openresolv",
            )),
            (_, Some(keeper)) => {
                self.note(match keeper {
                    Keeper::Resolved => Done::Resolved(device.to_owned()),
                    Keeper::Resolvconf => Done::Resolvconf(device.to_owned()),
                })?;
                keeper
                    .tell(device, dns)
                    .map_err(|error| (error.0.what, "run this as root, or allow that to this user"))
                    .and_then(|()| match names::asked_instead_of(dns) {
                        None => Ok(()),
                        Some(other) => Err((
                            format!("/etc/resolv.conf names {other} first"),
                            "have it written by systemd-resolved or resolvconf alone",
                        )),
                    })
            }
        };
        if let Err((what, mend)) = told {
            let servers: Vec<String> = dns.iter().map(ToString::to_string).collect();
            let not_by = match &*servers {
                [] => String::new(),
                some => format!(", and not by {}", some.join(", ")),
            };
            self.warnings.push(format!(
                "names are resolved as before, perhaps beside the tunnel{not_by}: {what}\n  {mend}; \
                 --no-dns leaves names as they are"
            ));
        }
        Ok(())
    }

    /// Writes down what is done next, as a whole and for good.
    fn note(&mut self, done: Done) -> Result<(), CliError> {
        self.done.push(done);
        self.write_down()
    }

    fn write_down(&self) -> Result<(), CliError> {
        let fresh = self.journal.with_extension("new");
        let written = serde_json::to_vec(&self.done)
            .map_err(std::io::Error::from)
            .and_then(|text| {
                let mut file = fs::File::create(&fresh)?;
                file.write_all(&text)?;
                file.sync_all()?;
                fs::rename(&fresh, &self.journal)
            });
        written.map_err(|error| CliError::file(&self.journal, error))
    }

    /// Takes everything back. What cannot be stays written down.
    fn take_back(&mut self) -> Result<(), CliError> {
        let mut left = Vec::new();
        let mut first = None;
        while let Some(done) = self.done.pop() {
            if let Err(error) = done.undo() {
                left.push(done);
                first.get_or_insert(error);
            }
        }
        left.reverse();
        let Some(error) = first else {
            let _ = fs::remove_file(&self.journal);
            return Ok(());
        };
        self.done = left;
        let _ = self.write_down();
        // The next run tries again; this one must not for ever.
        self.done.clear();
        Err(CliError::new(
            "routes",
            format!("not everything is taken back: {}", error.0.what),
            "mend that, then take back the rest with `topnet connect --undo`",
        ))
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        if !self.done.is_empty()
            && let Err(error) = self.take_back()
        {
            // A panic here would leave the rest; a terminal may be gone.
            let _ = writeln!(
                std::io::stderr(),
                "topnet: {}\n  {}",
                error.0.what,
                error.0.mend
            );
        }
    }
}

/// Answers to marked packets arrive where unmarked ones would not leave: without this the reverse
/// path filter drops them. It harms nobody, and stays.
fn source_marks() -> Result<(), CliError> {
    let path = Path::new(SRC_VALID_MARK);
    if fs::read_to_string(path).is_ok_and(|text| text.trim() == "1") {
        return Ok(());
    }
    fs::write(path, "1").map_err(|error| {
        CliError::new(
            "routes",
            format!("{SRC_VALID_MARK}: {error}"),
            "set it: `sysctl -w net.ipv4.conf.all.src_valid_mark=1`, or run this with CAP_NET_ADMIN",
        )
    })
}

/// True if any device of this machine has an IPv6 address.
fn has_ipv6() -> bool {
    let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6");
    addresses.is_ok_and(|text| !text.trim().is_empty())
}

fn ip(arguments: &str) -> Result<(), CliError> {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

pub(super) fn run(program: &str, arguments: &[&str]) -> Result<(), CliError> {
    pipe(program, arguments, "").map(drop)
}

fn output(program: &str, arguments: &[&str]) -> Result<String, CliError> {
    pipe(program, arguments, "")
}

/// Runs a program of the system's, and gives what it said.
pub(super) fn pipe(program: &str, arguments: &[&str], input: &str) -> Result<String, CliError> {
    let line = format!("{program} {}", arguments.join(" "));
    let failed = |why: &str| {
        CliError::new(
            "routes",
            format!("`{line}`: {}", why.trim()),
            "changing routes takes iproute2 and CAP_NET_ADMIN: run this as root, or allow it to \
             this user",
        )
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A Ctrl-C at the terminal is for this process, which takes things back in order.
        .process_group(0)
        .spawn()
        .map_err(|error| failed(&error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    let began = Instant::now();
    // What these programs say fits into a pipe, unless there are thousands of rules.
    while matches!(child.try_wait(), Ok(None)) {
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed("it does not end"));
        }
        std::thread::sleep(POLL);
    }
    let output = child
        .wait_with_output()
        .map_err(|error| failed(&error.to_string()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(failed(&String::from_utf8_lossy(&output.stderr)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_read_again_and_is_no_command() {
        let done = vec![
            Done::Table(Version::V4),
            Done::Beside("203.0.113.1".parse().unwrap()),
            Done::Tunnel(Version::V6),
            Done::Resolvconf("topnet-vpn".to_owned()),
        ];
        let text = serde_json::to_string(&done).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Done>>(&text).unwrap(), done);
        assert!(serde_json::from_str::<Vec<Done>>("[[\"sh\",\"-c\",\"id\"]]").is_err());
    }

    #[test]
    fn a_default_in_parts_takes_all() {
        let takes_all = |texts: &[&str]| {
            let networks: Vec<IpNetwork> = texts.iter().map(|text| text.parse().unwrap()).collect();
            let plan = Plan {
                device: "x",
                addresses: &[],
                mtu_bytes: 1_420,
                networks: &networks,
                beside: &[],
                dns: None,
            };
            (plan.takes_all(Version::V4), plan.takes_all(Version::V6))
        };
        assert_eq!(takes_all(&["0.0.0.0/0"]), (true, false));
        let halves = ["0.0.0.0/1", "128.0.0.0/1", "::/0"];
        assert_eq!(takes_all(&halves), (true, true));
        let some = ["10.0.0.0/8", "192.168.0.0/16", "2000::/3"];
        assert_eq!(takes_all(&some), (false, true));
    }

    #[test]
    fn rules_are_asked_in_their_order() {
        let rule = |done: Done| done.rule().unwrap().1;
        assert_eq!(
            rule(Done::Beside("2001:db8::1".parse().unwrap())),
            "to 2001:db8::1/128 table main priority 32000"
        );
        assert!(rule(Done::MainFirst(Version::V4)).ends_with("priority 32001"));
        assert!(rule(Done::Tunnel(Version::V4)).ends_with("priority 32002"));
    }
}
