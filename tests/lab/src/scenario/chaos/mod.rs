//! Kills, pauses and full disks by chance, over traffic both ways that never ends by itself.
//!
//! What is done, and how long after the traffic has recovered from what was done before, is drawn
//! from the seed alone ([`plan`]). When a process feels it, and what is in flight then, is the
//! machine's doing.

mod plan;
mod traffic;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;
use topnet_unit::UNIT_BYTES;

use crate::report::{Chaos, Report, Round};

use self::{
    plan::{Action, Chance, Plan},
    traffic::{Moved, Traffic},
};
use super::{
    RESUME_WAIT,
    lab::{Lab, Opened, number, text},
    outage::{RESTART_AFTER, Victim, millis},
};

/// Units that the channel can pay for: more than any number of rounds uses.
const ALLOCATION_UNITS: u64 = 1_000_000;
/// Bytes that must have come through again, each way, before the next round.
const FLOWS: Moved = Moved {
    down: 512 << 10,
    up: 128 << 10,
};
/// How often metering is asked how the channel stands.
const LOOK: Duration = Duration::from_millis(400);

/// A run of chaos.
struct Run {
    channel: String,
    traffic: Traffic,
    chaos: Chaos,
    round: u64,
    looked: Instant,
}

impl Lab<'_> {
    pub(super) fn chaos(&mut self, report: &mut Report) -> Result<Opened> {
        let (rounds, seed) = (self.options.rounds, self.options.seed);
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        let mut run = Run {
            channel: channel.id.clone(),
            traffic: Traffic::start(self)?,
            chaos: Chaos {
                seed,
                ..Chaos::default()
            },
            round: 0,
            looked: Instant::now(),
        };
        let mut chance = Chance::new(seed);
        for round in 1..=rounds {
            run.round = round;
            let plan = Plan::draw(&mut chance);
            let what = format!("seed {seed}, round {round} of {rounds}, {}", plan.action);
            self.say(&what);
            let played = self.round(&plan, &mut run, report).context(what)?;
            run.chaos.resumed_ms_max = run.chaos.resumed_ms_max.max(played.resumed_ms);
            run.chaos.rounds.push(played);
        }
        self.say("letting the last files come through");
        run.chaos.files = run.traffic.finish(self)?;
        self.mend(&mut run, report)?;
        report.chaos = Some(run.chaos);
        self.close_and_reconcile(&channel, report)?;
        Ok(channel)
    }

    fn round(&mut self, plan: &Plan, run: &mut Run, report: &mut Report) -> Result<Round> {
        self.go_on_for(plan.after, run)?;
        let mut noticed = String::new();
        match plan.action {
            Action::Kill(victim) => {
                run.chaos.kills += 1;
                self.kill_and_revive(&[victim], run, report)?;
            }
            Action::KillTwo(victims) => {
                run.chaos.double_kills += 1;
                let both = [Victim::Dataplane, Victim::Metering];
                run.chaos.double_deaths += u64::from(both.iter().all(|v| victims.contains(v)));
                self.kill_and_revive(&victims, run, report)?;
            }
            Action::Pause(victim, time) => {
                run.chaos.pauses += 1;
                self.process(victim)?.signal(Signal::STOP)?;
                self.options.interrupt.sleep(time)?;
                self.process(victim)?.signal(Signal::CONT)?;
            }
            Action::FullDisk(time) => {
                run.chaos.full_disks += 1;
                noticed = self.full_disk(time, run)?;
            }
        }
        let (since, before) = (Instant::now(), run.traffic.moved(self));
        let mut paid_before = None;
        loop {
            // What was paid before may carry the traffic for a while; that is no recovery.
            let paid = self.accepted_units(&run.channel);
            paid_before = paid_before.or(paid);
            let pays = paid_before.is_some() && paid > paid_before;
            if pays && run.traffic.moved(self).is_beyond(before, FLOWS) {
                break;
            }
            self.options.interrupt.check()?;
            anyhow::ensure!(
                since.elapsed() < RESUME_WAIT,
                "traffic does not flow again: {:?} of {FLOWS:?} since {before:?}",
                run.traffic.moved(self)
            );
            self.go_on_for(Duration::from_millis(50), run)?;
            self.mend(run, report)?;
        }
        Ok(Round {
            action: plan.action.to_string(),
            noticed,
            resumed_ms: millis(since.elapsed()),
        })
    }

    fn kill_and_revive(
        &mut self,
        victims: &[Victim],
        run: &mut Run,
        report: &mut Report,
    ) -> Result<()> {
        let runs = self.watch.boots().len();
        for victim in victims {
            self.kill(*victim, report)?;
        }
        self.go_on_for(RESTART_AFTER, run)?;
        // Who waits for another comes after it, however they were ended.
        let mut victims = victims.to_vec();
        victims.sort_by_key(|victim| match victim {
            Victim::Settlement => 0,
            Victim::Dataplane => 1,
            Victim::Metering => 2,
            Victim::Control => 3,
            Victim::Wallet => 4,
        });
        for victim in victims {
            self.revive(victim, &run.channel)?;
            self.wait_seen(victim, runs)?;
        }
        Ok(())
    }

    /// Fills metering's disk for a while. Metering may end, and is then started again and again,
    /// or stay and freeze: either is told.
    fn full_disk(&mut self, time: Duration, run: &mut Run) -> Result<String> {
        let disk = self.disk.as_ref().context("there is no small disk")?;
        let balloon = disk.fill()?;
        let full = Instant::now();
        let mut noticed = String::new();
        while full.elapsed() < time {
            self.go_on_for(Duration::from_millis(50), run)?;
            if self.process(Victim::Metering)?.ended()?.is_some() {
                noticed = "metering ended".to_owned();
                self.go_on_for(RESTART_AFTER, run)?;
                // It may not start before there is room.
                let _ = self.start_once(Victim::Metering, &run.channel);
            } else if let Some(reason) = self.freezes() {
                noticed = reason;
            }
        }
        drop(balloon);
        Ok(noticed)
    }

    /// Why metering says that it gives no credit, if it answers that.
    fn freezes(&self) -> Option<String> {
        let interrupt = self.options.interrupt;
        let status = self.provider.status(&self.topology, interrupt).ok()?;
        let metering = &status["metering"];
        text(&metering["journal_fault"]).or_else(|| text(&metering["frozen"]))
    }

    /// Starts again what has ended though nobody ended it.
    fn mend(&mut self, run: &mut Run, report: &mut Report) -> Result<()> {
        for victim in Victim::ALL {
            let Some(status) = self.process(victim)?.ended()? else {
                continue;
            };
            let round = run.round;
            let exit = format!("round {round}: {} ended by itself: {status}", victim.name());
            run.chaos.exits.push(exit);
            if victim == Victim::Wallet {
                self.note_window(report)?;
            }
            let runs = self.watch.boots().len();
            self.go_on_for(RESTART_AFTER, run)?;
            self.revive(victim, &run.channel)?;
            self.wait_seen(victim, runs)?;
        }
        Ok(())
    }

    /// Lets the traffic go on, and holds what was counted against what was paid.
    fn go_on_for(&self, time: Duration, run: &mut Run) -> Result<()> {
        let began = Instant::now();
        loop {
            run.traffic.poll(self)?;
            if run.looked.elapsed() >= LOOK {
                run.looked = Instant::now();
                self.hold_against_paid(run);
            }
            let left = time.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            let pause = left.min(Duration::from_millis(25));
            self.options.interrupt.sleep(pause)?;
        }
    }

    /// What was counted is read first: what was paid only rises.
    fn hold_against_paid(&self, run: &mut Run) {
        let counted = self.watch.bytes();
        // While somebody is down there may be no answer.
        let Ok(shown) = self.channel(&run.channel) else {
            return;
        };
        if let Some(accepted) = number(&shown["metering"]["accepted_units"]) {
            let beyond = counted.saturating_sub(accepted * UNIT_BYTES);
            run.chaos.beyond_paid_bytes = run.chaos.beyond_paid_bytes.max(beyond);
        }
    }
}
