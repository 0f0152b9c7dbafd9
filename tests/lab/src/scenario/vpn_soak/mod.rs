//! An hour of ordinary work, and what is left of it in memory, in open files and in the tables: a
//! client that pays, peers of the operator's own, and all that happens to a gateway by itself
//! (rekeys, roaming, reloads, peers that come and go).
//!
//! The rate is low: time and the number of events find a leak, not the load.

mod levels;
mod traffic;

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    flows::Flows,
    process::output,
    report::{Done, Report, Soak},
    topology::ORIGIN,
    vitals::pid_of,
};

use self::{
    levels::{Levels, numbers_of},
    traffic::{Downloads, FILE_BYTES},
};
use super::{
    lab::{Lab, Opened, number, text},
    vpn_own_peers::Quick,
};

/// Units that the channel can pay for: more than any run uses.
const ALLOCATION_UNITS: u64 = 1_000_000;
/// All that the origin sends, 25 Mbit/s, so that small machines stay mostly idle.
const RATE_BYTES_PER_S: u64 = 3 << 20;
/// Peers of the operator's own that stay.
const OWN_PEERS: u8 = 2;
/// What the origin is for a peer that comes and goes.
const GUEST_ORIGIN: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 40);
const GUEST_BYTES: u64 = 1 << 20;

const LOOK_PERIOD: Duration = Duration::from_secs(5);
const TELL_PERIOD: Duration = Duration::from_secs(60);
const RELOAD_PERIOD: Duration = Duration::from_secs(60);
const GUEST_PERIOD: Duration = Duration::from_secs(90);
const MOVE_PERIOD: Duration = Duration::from_secs(140);
const POLL: Duration = Duration::from_millis(100);
const COMMAND_WAIT: Duration = Duration::from_secs(30);

/// WireGuard's keys are made anew every two minutes (REKEY_AFTER_TIME); with twice that a run that
/// ends between two has enough.
const REKEY_WITHIN: Duration = Duration::from_secs(240);
/// Where the operator's monitoring asks.
const METRICS: &str = "http://127.0.0.1:8546/metrics";
/// What the data plane logs of a reload.
const RELOADED: &str = "dataplane.rates and dataplane.reach are as the file says";
/// The client's rate, before a reload and after it: above what the origin sends, so that the change is
/// all that there is of it.
const RATES: [&str; 2] = ["down_bits_per_s = 90000000", "down_bits_per_s = 80000000"];

/// What happens again and again, each at its own pace.
struct Due {
    period: Duration,
    next: Duration,
}

impl Due {
    const fn every(period: Duration) -> Self {
        Self {
            period,
            next: period,
        }
    }

    /// True once in a period; what was missed is not made up for.
    fn is_now(&mut self, now: Duration) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.period;
        }
        due
    }
}

/// Handshakes that replaced keys, as seen by their age.
#[derive(Default)]
struct Rekeys {
    /// Of each peer: the age last seen, and how often it fell.
    peers: BTreeMap<String, (u64, u64)>,
}

impl Rekeys {
    fn note(&mut self, peer: String, age_s: u64) {
        let (age, seen) = self.peers.entry(peer).or_insert((age_s, 0));
        *seen += u64::from(*age > age_s);
        *age = age_s;
    }

    fn seen(&self) -> u64 {
        self.peers.values().map(|(_, seen)| seen).sum()
    }

    /// Peers that had so many.
    fn peers_with(&self, least: u64) -> usize {
        let seen = self.peers.values().map(|(_, seen)| *seen);
        seen.filter(|seen| *seen >= least).count()
    }
}

impl Lab<'_> {
    /// Works for as long as it is told, holds what is there at the end against what there was early
    /// on, and reconciles.
    pub(super) fn vpn_soak(&mut self, report: &mut Report) -> Result<Opened> {
        self.say("adding the operator's own peers");
        let own: Vec<_> = (0..OWN_PEERS)
            .map(|number| (name_of(number), origin_of(number)))
            .collect();
        let mut confs = Vec::new();
        for (name, origin) in &own {
            self.add_origin_address(*origin)?;
            confs.push(self.add_peer(name, *origin)?.0);
        }
        self.add_origin_address(GUEST_ORIGIN)?;
        self.provider.add_section("dataplane.rates", RATES[0])?;
        self.topology.limit_origin(RATE_BYTES_PER_S)?;
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        let tunnels: Vec<Quick<'_>> = confs
            .into_iter()
            .map(|conf| Quick::up(self, conf))
            .collect::<Result<_>>()?;
        report.soak = Some(self.soak(&own, report)?);
        drop(tunnels);
        self.close_and_reconcile(&channel, report)?;
        Ok(channel)
    }

    fn soak(&self, own: &[(String, Ipv4Addr)], report: &mut Report) -> Result<Soak> {
        let ran = Duration::from_secs(60 * self.options.minutes);
        let origins: Vec<_> = std::iter::once(ORIGIN)
            .chain(own.iter().map(|(_, origin)| *origin))
            .collect();
        let mut levels = Levels::new(self.watched(own)?, self.directories());
        let mut done = Done::default();
        let mut rekeys = Rekeys::default();
        let flows = Flows::start(&self.topology, &self.origin)?;
        let mut downloads = Downloads::start(self, &origins)?;
        let [mut look, mut tell, mut reload, mut guest, mut moving] = [
            LOOK_PERIOD,
            TELL_PERIOD,
            RELOAD_PERIOD,
            GUEST_PERIOD,
            MOVE_PERIOD,
        ]
        .map(Due::every);
        let mut reloads = 0;
        let began = Instant::now();
        while began.elapsed() < ran {
            self.options.interrupt.sleep(POLL)?;
            downloads.poll(self)?;
            let now = began.elapsed();
            if reload.is_now(now) {
                self.reload(reloads)?;
                reloads += 1;
            }
            if guest.is_now(now) {
                self.guest(report)?;
                done.guests += 1;
            }
            if moving.is_now(now) {
                let is_away = !done.moves.is_multiple_of(2);
                self.is_known_there(is_away)?;
                self.move_client(!is_away)?;
                done.moves += 1;
            }
            if look.is_now(now) {
                levels.look(now, &self.metrics()?)?;
                self.note_handshakes(&mut rekeys)?;
            }
            if tell.is_now(now) {
                let files: u64 = downloads.through().iter().sum();
                self.say(&format!(
                    "minute {} of {}, {files} files, {} flows, {} rekeys, MiB of memory {}",
                    now.as_secs() / 60,
                    self.options.minutes,
                    flows.opened().connections + flows.opened().datagrams,
                    rekeys.seen(),
                    levels.memory_now()
                ));
            }
        }
        self.say("letting the last files come through");
        done.flows = flows.stop();
        downloads.finish(self)?;
        let through = downloads.through();
        done.paid_files = through[0];
        done.own_files = through[1..].iter().sum::<u64>() + done.guests;
        done.file_bytes = through.iter().sum::<u64>() * FILE_BYTES + done.guests * GUEST_BYTES;
        done.rekeys = rekeys.seen();
        self.is_known_there(!done.moves.is_multiple_of(2))?;
        done.reloads = self.reloads_done()?;
        ensure!(
            done.reloads == reloads,
            "{reloads} reloads were asked for, {} were done",
            done.reloads
        );
        done.flows.check()?;
        let least = ran.as_secs() / REKEY_WITHIN.as_secs();
        let (had, stay) = (rekeys.peers_with(least), usize::from(OWN_PEERS) + 1);
        ensure!(
            had >= stay,
            "{had} peers had {least} rekeys, and {stay} were there all the time"
        );
        Ok(Soak {
            done,
            ..levels.judge(ran)?
        })
    }

    /// Every process of the product's, at both ends.
    fn watched(&self, own: &[(String, Ipv4Addr)]) -> Result<Vec<(String, u32)>> {
        let processes = self.provider.processes.iter().chain(&self.paying);
        let mut watched: Vec<_> = processes
            .map(|process| (process.name().to_owned(), process.pid()))
            .collect();
        for (number, (name, _)) in own.iter().enumerate() {
            // It went into the background by itself.
            let pid = pid_of("topnet-wireguard", name)?;
            watched.push((format!("topnet-wireguard {number}"), pid));
        }
        Ok(watched)
    }

    fn directories(&self) -> Vec<(String, PathBuf)> {
        let data = self.provider.processes.iter().map(|process| {
            let name = process.name();
            let path = self.run_dir.join(&format!("data/{name}"));
            (format!("data of {name}"), path)
        });
        let others = [
            ("data of wallet".to_owned(), self.wallet.state_dir()),
            ("logs".to_owned(), self.run_dir.join("logs")),
        ];
        data.chain(others).collect()
    }

    /// Adds a peer of the operator's own who reaches that address; its configuration and key.
    fn add_peer(&self, name: &str, reaches: Ipv4Addr) -> Result<(PathBuf, String)> {
        let conf = self.run_dir.join(&format!("{name}.conf"));
        let path = conf.to_str().context("a path that is not UTF-8")?;
        let reaches = format!("{reaches}/32");
        let words = ["vpn", "add", "--allowed-ips", &reaches, "--out", path];
        let key = text(&self.as_root(&words)?["public_key"]).context("no key")?;
        Ok((conf, key))
    }

    /// A peer that comes, fetches something and is removed.
    fn guest(&self, report: &mut Report) -> Result<()> {
        let (conf, key) = self.add_peer(&name_of(OWN_PEERS), GUEST_ORIGIN)?;
        let tunnel = Quick::up(self, conf.clone())?;
        self.download_free(&[("guest", GUEST_ORIGIN)], GUEST_BYTES, report)?;
        drop(tunnel);
        let removed = self.as_root(&["vpn", "remove", &key])?;
        ensure!(removed["removed"] == true, "{removed}");
        fs::remove_file(&conf).with_context(|| format!("cannot remove {}", conf.display()))
    }

    /// Changes the client's rate in the file, and has the data plane read it.
    fn reload(&self, number: u64) -> Result<()> {
        let config = self.provider.topnet.config();
        let text = fs::read_to_string(config)?;
        let [from, to] = match number % 2 {
            0 => RATES,
            _ => [RATES[1], RATES[0]],
        };
        ensure!(text.contains(from), "{} lacks `{from}`", config.display());
        fs::write(config, text.replace(from, to))?;
        let mut processes = self.provider.processes.iter();
        let dataplane = processes.find(|process| process.name() == "dataplane");
        dataplane.context("no data plane")?.signal(Signal::HUP)
    }

    fn reloads_done(&self) -> Result<u64> {
        let log = self.run_dir.log("dataplane");
        let text =
            fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
        Ok(text.matches(RELOADED).count() as u64)
    }

    /// What the product says of itself.
    fn metrics(&self) -> Result<BTreeMap<String, u64>> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", METRICS]);
        let interrupt = self.options.interrupt;
        let page = output(&self.topology.provider, curl, interrupt, COMMAND_WAIT)?;
        Ok(numbers_of(&page))
    }

    fn note_handshakes(&self, rekeys: &mut Rekeys) -> Result<()> {
        let peers: Value = self.as_root(&["vpn", "peers"])?;
        for peer in peers.as_array().context("no list of peers")? {
            let key = text(&peer["public_key"]).context("a peer without a key")?;
            if let Some(age_s) = number(&peer["handshake_age_s"]) {
                rekeys.note(key, age_s);
            }
        }
        Ok(())
    }
}

/// A peer's interface.
fn name_of(number: u8) -> String {
    format!("s{number}x{}", std::process::id())
}

/// The address at the origin that only this peer reaches.
fn origin_of(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 2, 20 + number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_once_in_a_period() {
        let mut due = Due::every(Duration::from_secs(10));
        let at = [0, 9, 10, 11, 19, 20, 55, 56, 64, 65];
        let came: Vec<u64> = at
            .into_iter()
            .filter(|seconds| due.is_now(Duration::from_secs(*seconds)))
            .collect();
        assert_eq!(came, [10, 20, 55, 65]);
    }

    #[test]
    fn a_rekey_is_an_age_that_falls() {
        let mut rekeys = Rekeys::default();
        for age in [3, 8, 13, 118, 2, 2, 7, 0] {
            rekeys.note("one".to_owned(), age);
        }
        rekeys.note("another".to_owned(), 1);
        assert_eq!(rekeys.seen(), 2);
        assert_eq!(
            [0, 1, 2, 3].map(|least| rekeys.peers_with(least)),
            [2, 1, 1, 0]
        );
    }
}
