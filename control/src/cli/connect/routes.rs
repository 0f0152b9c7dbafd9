//! What the system is told about a tunnel: addresses, routes, rules and name servers, and how all
//! of it is taken back.
//!
//! Addresses and routes go with the device. Rules and name servers stay, so each step that is done
//! is written down first: whoever connects next takes back what a killed process left.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};
use topnet_uapi::IpNetwork;

use crate::cli::error::CliError;

/// Mark of the tunnel's own packets, and the table of what goes into it: "to" in ASCII.
pub(super) const MARK: u32 = 0x746f;
/// Rules that are asked before the main table's own (32766).
const RULE_MAIN: &str = "32001";
const RULE_TUNNEL: &str = "32002";
const RULE_EXCEPTION: &str = "32000";

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
    /// Name servers to use meanwhile.
    pub(super) dns: &'a [IpAddr],
}

/// A command that takes something back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Undo(Vec<String>);

/// What is set up. Taken back when dropped.
#[derive(Debug)]
pub(super) struct Routes {
    journal: PathBuf,
    undo: Vec<Undo>,
    /// Why the name servers are as they were.
    pub(super) dns_left: Option<String>,
}

impl Routes {
    /// Takes back what an earlier run left behind.
    pub(super) fn recover(journal: &Path) {
        let left = fs::read(journal).ok();
        let undo = left.and_then(|text| serde_json::from_slice::<Vec<Undo>>(&text).ok());
        drop(Self {
            journal: journal.to_owned(),
            undo: undo.unwrap_or_default(),
            dns_left: None,
        });
    }

    /// Sets everything up, or nothing.
    pub(super) fn set_up(plan: &Plan<'_>, journal: &Path) -> Result<Self, CliError> {
        let mut routes = Self {
            journal: journal.to_owned(),
            undo: Vec::new(),
            dns_left: None,
        };
        let device = plan.device;
        for address in plan.addresses {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let version = version(*address);
            // There is nobody else on the link whose address it could be.
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            ip(&format!(
                "{version} address add {address}/{bits} dev {device}{nodad}"
            ))?;
        }
        ip(&format!("link set dev {device} mtu {} up", plan.mtu_bytes))?;
        for version in ["-4", "-6"] {
            let of_version = |network: &&IpNetwork| {
                (version == "-4") == network.address().is_ipv4() && has(plan.addresses, version)
            };
            let networks = plan.networks.iter().filter(of_version);
            let (all, some): (Vec<&IpNetwork>, Vec<&IpNetwork>) =
                networks.partition(|network| network.prefix_bits() == 0);
            for network in some {
                ip(&format!("{version} route replace {network} dev {device}"))?;
            }
            if !all.is_empty() {
                routes.everything(version, plan)?;
            }
        }
        routes.name_servers(plan)?;
        Ok(routes)
    }

    /// Lets nothing more through the device, and takes everything back.
    pub(super) fn take_down(self, device: &str) {
        // A device that is gone is down.
        let _ = ip(&format!("link set dev {device} down"));
        drop(self);
    }

    /// Everything but the tunnel's own packets, what has a route of its own, and the exceptions.
    fn everything(&mut self, version: &str, plan: &Plan<'_>) -> Result<(), CliError> {
        let device = plan.device;
        ip(&format!(
            "{version} route replace default dev {device} table {MARK}"
        ))?;
        let marked = format!("not fwmark {MARK} table {MARK} priority {RULE_TUNNEL}");
        let mut rules = vec![
            marked,
            format!("table main suppress_prefixlength 0 priority {RULE_MAIN}"),
        ];
        for address in plan
            .beside
            .iter()
            .filter(|at| self::version(**at) == version)
        {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            rules.push(format!(
                "to {address}/{bits} table main priority {RULE_EXCEPTION}"
            ));
        }
        for rule in rules {
            self.note(&format!("ip {version} rule del {rule}"))?;
            ip(&format!("{version} rule add {rule}"))?;
        }
        if version == "-4" {
            // Answers to marked packets arrive where unmarked ones would not leave: without this the
            // reverse path filter drops them. It harms nobody, and stays.
            let path = "/proc/sys/net/ipv4/conf/all/src_valid_mark";
            fs::write(path, "1").map_err(|error| CliError::file(Path::new(path), error))?;
        }
        Ok(())
    }

    /// Has names resolved through the tunnel, where the system has a way to say so.
    fn name_servers(&mut self, plan: &Plan<'_>) -> Result<(), CliError> {
        if plan.dns.is_empty() {
            return Ok(());
        }
        let device = plan.device;
        let servers: Vec<String> = plan.dns.iter().map(ToString::to_string).collect();
        if works("resolvectl", &["status"]) {
            self.note(&format!("resolvectl revert {device}"))?;
            let words = [
                &["dns", device],
                &*servers.iter().map(String::as_str).collect::<Vec<_>>(),
            ]
            .concat();
            run("resolvectl", &words)?;
            return run("resolvectl", &["domain", device, "~."]);
        }
        if works("resolvconf", &["--version"]) {
            self.note(&format!("resolvconf -d tun.{device}"))?;
            let text: String = servers
                .iter()
                .map(|at| format!("nameserver {at}\n"))
                .collect();
            return pipe(
                "resolvconf",
                &["-a", &format!("tun.{device}"), "-m", "0", "-x"],
                &text,
            );
        }
        self.dns_left = Some(format!(
            "names are resolved as before, perhaps beside the tunnel: the system has neither \
             resolvectl nor resolvconf to name {} with",
            servers.join(", ")
        ));
        Ok(())
    }

    /// Writes down how the next step is taken back.
    fn note(&mut self, command: &str) -> Result<(), CliError> {
        let words = command.split(' ').map(str::to_owned).collect();
        self.undo.push(Undo(words));
        let text = serde_json::to_vec(&self.undo).unwrap_or_default();
        fs::write(&self.journal, text).map_err(|error| CliError::file(&self.journal, error))
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        while let Some(Undo(words)) = self.undo.pop() {
            let Some((program, arguments)) = words.split_first() else {
                continue;
            };
            // What was not done, or went with the device, cannot be taken back.
            let mut command = Command::new(program);
            let _ = command.args(arguments).stderr(Stdio::null()).status();
        }
        let _ = fs::remove_file(&self.journal);
    }
}

fn version(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "-4" } else { "-6" }
}

fn has(addresses: &[IpAddr], wanted: &str) -> bool {
    addresses.iter().any(|address| version(*address) == wanted)
}

fn ip(arguments: &str) -> Result<(), CliError> {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

fn run(program: &str, arguments: &[&str]) -> Result<(), CliError> {
    pipe(program, arguments, "")
}

fn pipe(program: &str, arguments: &[&str], input: &str) -> Result<(), CliError> {
    use std::io::Write;
    let line = format!("{program} {}", arguments.join(" "));
    let failed = |why: String| {
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
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
