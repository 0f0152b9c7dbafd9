//! What `topnet connect` tells the client's machine: whom to ask for names, and where packets go.
//! And that all of it is taken back, whenever it is killed.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;

use crate::{
    machine::{Machine, Tools, Turn},
    name_server::NameServer,
    process::{Lifetime, as_user},
    topology::{ORIGIN, PROVIDER},
    users,
};

use super::{
    TRANSFER_WAIT,
    lab::{Lab, tunnel_name},
    paid_download::ALLOCATION_UNITS,
    vpn_connect::is_paying,
};

/// What only the name server of the client's network knows.
const NEAR: &str = "near.lab";
/// What only the name server behind the tunnel knows.
const BEHIND: &str = "behind.lab";
const BEHIND_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// Where systemd-resolved listens.
const RESOLVED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
/// From the end of a command until its device is gone.
const GONE_WAIT: Duration = Duration::from_secs(10);
/// Commands that a connection takes at least: an address, two routes, three rules and name servers,
/// and four to take them back.
const TURNS_MIN: u32 = 11;
/// More than it may ever take.
const TURNS_MAX: u32 = 64;

/// The client's machine, and who answers it.
pub(super) struct Names {
    pub(super) machine: Machine,
    /// In the client's own network.
    near: NameServer,
    /// The one that is offered.
    behind: NameServer,
}

impl Names {
    /// Starts both servers, and has the machine ask the near one.
    pub(super) fn start(lab: &Lab<'_>) -> Result<Self> {
        let (topology, run_dir) = (&lab.topology, &lab.run_dir);
        let names = Self {
            machine: Machine::create(run_dir, users::CLIENT)?,
            near: NameServer::start(&topology.provider, PROVIDER, NEAR, PROVIDER)?,
            behind: NameServer::start(&topology.origin, ORIGIN, BEHIND, BEHIND_ADDRESS)?,
        };
        names.machine.set_name_server(PROVIDER)?;
        names.check_near_is_asked(lab)?;
        if !names.machine.has_openresolv() {
            lab.say("names through the tunnel are skipped, because openresolv is not here");
        }
        Ok(names)
    }

    /// All that the machine is told: rules, routes, devices, whom to ask for names.
    pub(super) fn told(&self, lab: &Lab<'_>) -> Result<String> {
        let mut told = self.machine.resolv_conf()?;
        for words in [
            &["-4", "rule"][..],
            &["-6", "rule"],
            &["-4", "route", "show", "table", "all"],
            &["-6", "route", "show", "table", "all"],
            &["-brief", "link"],
        ] {
            let mut command = Command::new("ip");
            command.args(words);
            told += &lab.client_runs(command)?;
        }
        Ok(told)
    }

    /// While connected: names come through the tunnel.
    pub(super) fn check_meanwhile(&self, lab: &Lab<'_>) -> Result<()> {
        if !self.machine.has_openresolv() {
            return self.check_near_is_asked(lab);
        }
        let conf = self.machine.resolv_conf()?;
        let servers: Vec<&str> = conf
            .lines()
            .filter(|line| line.starts_with("nameserver"))
            .collect();
        ensure!(
            servers == [format!("nameserver {ORIGIN}")],
            "programs ask others than the offered name server:\n{conf}"
        );
        let address = self.look_up(lab, BEHIND)?;
        ensure!(
            address.starts_with(&BEHIND_ADDRESS.to_string()),
            "{BEHIND} is resolved to `{address}`"
        );
        let askers = self.behind.askers(BEHIND);
        let in_tunnel = |at: &IpAddr| matches!(at, IpAddr::V4(at) if at.octets()[..2] == [10, 78]);
        ensure!(
            !askers.is_empty() && askers.iter().all(in_tunnel),
            "{BEHIND} was asked for from beside the tunnel: {askers:?}"
        );
        ensure!(
            self.near.askers(BEHIND).is_empty(),
            "the network's own name server was asked too"
        );
        Ok(())
    }

    /// Afterwards: the machine is as it was before it was `told` anything.
    pub(super) fn check_all_is_taken_back(&self, lab: &Lab<'_>, told: &str) -> Result<()> {
        let left = self.told(lab)?;
        ensure!(left == told, "there was:\n{told}\nand is now:\n{left}");
        self.check_near_is_asked(lab)
    }

    fn check_near_is_asked(&self, lab: &Lab<'_>) -> Result<()> {
        let address = self.look_up(lab, NEAR)?;
        ensure!(
            address.starts_with(&PROVIDER.to_string()),
            "{NEAR} is resolved to `{address}`"
        );
        Ok(())
    }

    /// What a program of the machine's is told of a name; nothing if nobody knows it.
    fn look_up(&self, lab: &Lab<'_>, name: &str) -> Result<String> {
        let mut command = as_user(users::CLIENT, Lifetime::Run, Path::new("sh"));
        command.args(["-c", "getent ahostsv4 \"$0\" || true", name]);
        lab.client_runs(self.machine.inside(&command, Tools::Openresolv))
    }
}

impl Lab<'_> {
    /// Kills the command before and after everything that it tells the system, and while it pays.
    pub(super) fn kill_connect(&self, names: &Names, told: &str) -> Result<()> {
        let (allocation, _) = self.fund_channel(&self.wallet, ALLOCATION_UNITS)?;
        let allocation = allocation.to_string();
        let words = ["--no-dns", "--allocation", &allocation, "--keep-channel"];
        self.say("with name servers left alone");
        let conf = names.machine.resolv_conf()?;
        let check_conf = |names: &Names| {
            ensure!(names.machine.resolv_conf()? == conf, "name servers changed");
            names.check_near_is_asked(self)
        };
        self.connect_for_a_moment(names, Tools::Openresolv, &words, check_conf)?;
        names.check_all_is_taken_back(self, told)?;
        if names.machine.has_openresolv() {
            self.kill_at_each_turn(names, told)?;
            self.say("killing it while it pays");
            self.connect_until_killed(names)?;
            let left = names.told(self)?;
            ensure!(left != told, "a killed command has left nothing");
            // The next one takes it back before it begins.
            self.connect_for_a_moment(names, Tools::Openresolv, &[], |names| {
                names.check_meanwhile(self)
            })?;
            names.check_all_is_taken_back(self, told)?;
            self.say("with a resolvconf that does not do it");
            names.machine.let_resolvconf_write(false)?;
            let said = self.connect_for_a_moment(names, Tools::Openresolv, &[], check_conf)?;
            ensure!(
                said.contains(&format!("/etc/resolv.conf names {PROVIDER} first")),
                "nobody was told that programs ask {PROVIDER}:\n{said}"
            );
            names.machine.let_resolvconf_write(true)?;
            names.check_all_is_taken_back(self, told)?;
            names.machine.let_tell_resolvconf(false)?;
            let said = self.connect_for_a_moment(names, Tools::Openresolv, &[], check_conf)?;
            ensure!(
                said.contains("Cannot write") && said.contains("root"),
                "nobody was told that resolvconf may not be told:\n{said}"
            );
            names.machine.let_tell_resolvconf(true)?;
            names.check_all_is_taken_back(self, told)?;
        }
        self.say("without anybody who keeps name servers");
        let said = self.connect_for_a_moment(names, Tools::Bare, &[], check_conf)?;
        ensure!(
            said.contains("neither systemd-resolved nor resolvconf") && said.contains("install"),
            "nobody was told whom programs ask for names:\n{said}"
        );
        names.check_all_is_taken_back(self, told)?;
        self.say("with what stands in for systemd-resolved");
        names.machine.set_name_server(RESOLVED)?;
        self.connect_for_a_moment(names, Tools::Resolvectl, &[], |_| Ok(()))?;
        let (words, device) = (names.machine.resolvectl_words()?, tunnel_name());
        // As resolvectl(1) has them.
        let expected =
            format!("status\ndns {device} {ORIGIN}\ndomain {device} ~.\nrevert {device}\n");
        ensure!(words == expected, "resolvectl was told:\n{words}");
        names.machine.set_name_server(PROVIDER)?;
        names.check_all_is_taken_back(self, told)
    }

    fn kill_at_each_turn(&self, names: &Names, told: &str) -> Result<()> {
        for number in 1..TURNS_MAX {
            for is_after in [false, true] {
                let when = if is_after { "after" } else { "before" };
                self.say(&format!("killing it {when} a command: {number}"));
                let turn = Turn { number, is_after };
                if !self.connect_until_turn(names, turn)? {
                    ensure!(number > TURNS_MIN, "only {number} commands were run");
                    return names.check_all_is_taken_back(self, told);
                }
                self.wait_until_device_is_gone()?;
                self.undo(names)
                    .and_then(|()| names.check_all_is_taken_back(self, told))
                    .map_err(|error| error.context(format!("killed {when} command {number}")))?;
            }
        }
        bail!("a connection takes {TURNS_MAX} commands and more");
    }

    /// Connects, and disconnects as soon as it pays. False if the turn did not come.
    fn connect_until_turn(&self, names: &Names, turn: Turn) -> Result<bool> {
        let log = self.fresh_log("connect-killed");
        names.machine.begin_turns();
        let mut connected = self.start_connect(&names.machine, Tools::Killing(turn), &[], &log)?;
        let interrupt = self.options.interrupt;
        let mut ends = false;
        interrupt.wait("the command has ended", TRANSFER_WAIT, || {
            match connected.ended()? {
                Some(status) if status.signal() == Some(Signal::KILL.as_raw()) => Ok(Some(true)),
                Some(status) if status.success() && ends => Ok(Some(false)),
                Some(status) => bail!("connect ended with {status}\n{}", connected.last_words()),
                None => {
                    if !ends && is_paying(&log) {
                        connected.signal_group(Signal::INT)?;
                        ends = true;
                    }
                    Ok(None)
                }
            }
        })
    }

    fn connect_until_killed(&self, names: &Names) -> Result<()> {
        let log = self.fresh_log("connect-killed");
        let mut connected = self.start_connect(&names.machine, Tools::Openresolv, &[], &log)?;
        connected.wait_ready(self.options.interrupt, TRANSFER_WAIT, || is_paying(&log))?;
        names.check_meanwhile(self)?;
        connected.kill()?;
        self.wait_until_device_is_gone()
    }

    /// Connects, looks around, disconnects in order, and gives what was said.
    fn connect_for_a_moment(
        &self,
        names: &Names,
        tools: Tools,
        words: &[&str],
        look: impl FnOnce(&Names) -> Result<()>,
    ) -> Result<String> {
        let interrupt = self.options.interrupt;
        let log = self.fresh_log("connect-short");
        let mut connected = self.start_connect(&names.machine, tools, words, &log)?;
        connected.wait_ready(interrupt, TRANSFER_WAIT, || is_paying(&log))?;
        look(names)?;
        connected.signal_group(Signal::INT)?;
        connected.wait_success(interrupt, TRANSFER_WAIT)?;
        Ok(fs::read_to_string(&log)?)
    }

    fn undo(&self, names: &Names) -> Result<()> {
        let log = self.fresh_log("connect-undo");
        let words = ["--undo"];
        let mut undo = self.start_connect(&names.machine, Tools::Openresolv, &words, &log)?;
        undo.wait_success(self.options.interrupt, TRANSFER_WAIT)
    }

    fn wait_until_device_is_gone(&self) -> Result<()> {
        let interrupt = self.options.interrupt;
        interrupt.wait("the device is gone", GONE_WAIT, || {
            let mut links = Command::new("ip");
            links.args(["-brief", "link"]);
            Ok((!self.client_runs(links)?.contains(&tunnel_name())).then_some(()))
        })
    }

    /// A log without an earlier run's words.
    fn fresh_log(&self, name: &str) -> std::path::PathBuf {
        let log = self.run_dir.log(name);
        // There may be none yet.
        let _ = fs::remove_file(&log);
        log
    }
}
