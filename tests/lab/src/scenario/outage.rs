//! Ends processes as a crash does, starts them again as systemd does, and sees what the traffic
//! makes of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{
    process::Process,
    report::{Kill, Report, Traffic},
};

use super::{
    RESUME_WAIT,
    lab::{Lab, number},
};

/// `RestartSec` of control/systemd.
pub(super) const RESTART_AFTER: Duration = Duration::from_secs(1);
/// Nothing for so long is more than a pause between two packets.
const STOPPED_FOR: Duration = Duration::from_millis(300);
/// Room that no packet of the tunnel's fits into.
const PACKET_BYTES: u64 = 1500;
/// A process that ends again and again is not started for ever.
const STARTS_MAX: u32 = 20;

/// A process that can be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    Metering,
    Wallet,
    Dataplane,
    Settlement,
    Control,
}

impl Victim {
    /// In the order in which `crash` ends them.
    pub(super) const ALL: [Self; 5] = [
        Self::Metering,
        Self::Wallet,
        Self::Dataplane,
        Self::Settlement,
        Self::Control,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Metering => "metering",
            Self::Wallet => "wallet",
            Self::Dataplane => "dataplane",
            Self::Settlement => "settlement",
            Self::Control => "control",
        }
    }
}

/// When bytes arrived last, the longest that none did, and what stopped them.
#[derive(Debug)]
struct Arrivals {
    bytes: u64,
    since: Instant,
    still_max: Duration,
    traffic: Traffic,
}

impl Arrivals {
    fn new(bytes: u64) -> Self {
        Self {
            bytes,
            since: Instant::now(),
            still_max: Duration::ZERO,
            traffic: Traffic::WentOn,
        }
    }

    /// `room_bytes` is what credit still allows, if there is any.
    fn note(&mut self, bytes: u64, room_bytes: Option<u64>) {
        let still = self.since.elapsed();
        self.still_max = self.still_max.max(still);
        if bytes > self.bytes {
            (self.bytes, self.since) = (bytes, Instant::now());
        } else if still >= STOPPED_FOR && self.traffic != Traffic::StoppedAtLimit {
            self.traffic = match room_bytes {
                Some(room) if room < PACKET_BYTES => Traffic::StoppedAtLimit,
                _ => Traffic::Stopped,
            };
        }
    }
}

impl Lab<'_> {
    /// Ends `victim`, starts it again and waits until the traffic flows. `bytes` counts what has
    /// arrived of `bytes_max`.
    pub(super) fn outage(
        &mut self,
        victim: Victim,
        channel: &str,
        bytes: &dyn Fn() -> u64,
        bytes_max: u64,
        report: &mut Report,
    ) -> Result<Kill> {
        let interrupt = self.options.interrupt;
        let runs = self.watch.boots().len();
        self.kill(victim, report)?;
        let at_bytes = bytes();
        let mut arrivals = Arrivals::new(at_bytes);
        let ended = Instant::now();
        interrupt.wait("systemd's pause", RESTART_AFTER * 2, || {
            arrivals.note(bytes(), self.watch.room_bytes());
            Ok((ended.elapsed() >= RESTART_AFTER).then_some(()))
        })?;
        self.revive(victim, channel)?;
        let (returned, before) = (Instant::now(), bytes());
        let mut accepted_before = None;
        interrupt.wait("paid traffic flows again", RESUME_WAIT, || {
            arrivals.note(bytes(), self.watch.room_bytes());
            let over = arrivals.bytes == bytes_max;
            ensure!(!over, "all had come before {} was back", victim.name());
            // What was paid before may carry the traffic for a while; that is no recovery.
            let accepted = self.accepted_units(channel);
            accepted_before = accepted_before.or(accepted);
            let paid = accepted_before.is_some() && accepted > accepted_before;
            Ok((paid && arrivals.bytes > before).then_some(()))
        })?;
        let resumed = returned.elapsed();
        self.wait_seen(victim, runs)?;
        Ok(Kill {
            process: victim.name().to_owned(),
            at_bytes,
            traffic: arrivals.traffic,
            stalled_ms: millis(arrivals.still_max),
            resumed_ms: millis(resumed),
        })
    }

    /// Ends a process at once.
    pub(super) fn kill(&mut self, victim: Victim, report: &mut Report) -> Result<()> {
        self.say(&format!("killing {}", victim.name()));
        if victim == Victim::Wallet {
            self.note_window(report)?;
        }
        self.process(victim)?.kill()
    }

    /// Starts an ended process again, as often as it takes.
    pub(super) fn revive(&mut self, victim: Victim, channel: &str) -> Result<()> {
        let interrupt = self.options.interrupt;
        self.say(&format!("starting {} again", victim.name()));
        for start in 1.. {
            match self.start_once(victim, channel) {
                Ok(()) => break,
                Err(error) if start == STARTS_MAX => return Err(error),
                // It may need another process that is not back yet.
                Err(_) => interrupt.sleep(RESTART_AFTER)?,
            }
        }
        if victim == Victim::Control {
            self.provider.wait_all_answer(&self.topology, interrupt)?;
        }
        Ok(())
    }

    /// Starts an ended process; an error if it ends at once.
    pub(super) fn start_once(&mut self, victim: Victim, channel: &str) -> Result<()> {
        let interrupt = self.options.interrupt;
        match victim {
            Victim::Wallet => self.pay(channel),
            _ => self
                .provider
                .restart(victim.name(), &self.topology, &self.run_dir, interrupt),
        }
    }

    /// Units that metering was paid for, if it answers.
    pub(super) fn accepted_units(&self, channel: &str) -> Option<u64> {
        number(&self.channel(channel).ok()?["metering"]["accepted_units"])
    }

    /// Waits until the tables of a data plane that was started again are mapped here: its own
    /// end may be near.
    pub(super) fn wait_seen(&self, victim: Victim, runs_before: usize) -> Result<()> {
        if victim != Victim::Dataplane {
            return Ok(());
        }
        let interrupt = self.options.interrupt;
        interrupt.wait("the new tables are seen", RESUME_WAIT, || {
            Ok((self.watch.boots().len() > runs_before).then_some(()))
        })
    }

    /// The process, for whoever ends, stops or watches it.
    pub(super) fn process(&mut self, victim: Victim) -> Result<&mut Process> {
        match victim {
            Victim::Wallet => self.paying.as_mut().context("the wallet does not run"),
            _ => self.provider.process(victim.name()),
        }
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
