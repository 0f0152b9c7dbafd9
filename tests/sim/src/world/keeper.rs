//! Metering: its turns, what it wants done, and its deaths at any point of them.

use topnet_account::ChannelId;
use topnet_api::ChainName;
use topnet_books::{Books, Output, facts::Served};
use topnet_channel::{Offer, PayeeMessage};

use super::{Step, World};
use crate::{
    check::ensure,
    meter::{COMMIT_INTERVAL_US, Errand, FRESHNESS_INTERVAL_US, Metering, SWEEP_INTERVAL_US},
    plan::PayeeKind,
};

impl World {
    pub(super) fn start_metering(&mut self) -> Step {
        if self.metering.is_some() {
            return Ok(());
        }
        let served = Served {
            service: ChainName::vpn(),
            payee: None,
            close_window_blocks_min: 10,
            write_off_units_max: self.plan.write_off_units_max,
        };
        let unit_price = self.plan.price(&mut self.random);
        let offer = Offer {
            unit_price,
            ..self.plan.offer
        };
        let books = Books::restore(served, offer, self.journal.stored())
            .map_err(|(channel, error)| format!("channel {channel}: {error}"))?;
        self.metering = Some(Metering::new(books, self.now_us));
        self.note(format_args!("metering starts and asks {unit_price} a unit"));
        Ok(())
    }

    pub(super) fn kill_metering(&mut self) -> Step {
        if self.metering.take().is_none() {
            return Ok(());
        }
        self.coverage.meterings_killed += 1;
        self.note(format_args!("metering dies"));
        let survived = self.journal.crash(&mut self.random)?;
        self.synced(&survived)?;
        for link in &mut self.links {
            link.cut(&mut self.random);
            link.to_payee.drop_all();
            link.proving = None;
        }
        let alive = self.plane.as_ref().map(|plane| plane.boot);
        self.strand(|boot| Some(boot) != alive)
    }

    /// One turn of the keeper; it may die at any point between two of its deeds.
    pub(super) fn turn(&mut self) -> Step {
        let now = self.instant();
        let (now_us, wall_ms) = (self.now_us, self.wall_ms());
        let Some(metering) = &mut self.metering else {
            return Ok(());
        };
        let sweep = now_us >= metering.swept_us + SWEEP_INTERVAL_US;
        if sweep {
            metering.swept_us = now_us;
        }
        metering.books.poll_usage(sweep);
        let freshens = now_us >= metering.freshened_us + FRESHNESS_INTERVAL_US;
        if freshens {
            metering.freshened_us = now_us;
            let before = metering.books.counters().written_off;
            metering.books.poll_freshness(now, wall_ms);
            self.coverage.written_off += metering.books.counters().written_off - before;
        }
        self.check_claims()?;
        let Some(metering) = &mut self.metering else {
            return Ok(());
        };
        let due = now_us >= metering.committed_us + COMMIT_INTERVAL_US;
        let entries = match metering.refused.take() {
            Some(refused) => refused,
            None => metering.books.poll_entries(due, wall_ms),
        };
        let committed = !entries.is_empty();
        if committed || due {
            metering.committed_us = now_us;
        }
        // A disk that refuses has kept none of it, or all.
        if committed && !self.healthy && self.random.once_in(self.plan.trouble.saturating_mul(8)) {
            self.coverage.refused += 1;
            self.note(format_args!("the disk refuses {} channels", entries.len()));
            let Some(metering) = &mut self.metering else {
                return Ok(());
            };
            metering.refused = Some(entries);
            metering.books.handle_uncommitted(now);
            if freshens {
                self.check_frozen()?;
            }
            return self.act();
        }
        if committed {
            for entry in &entries {
                self.trace
                    .bytes(entry.record.as_deref().unwrap_or_default());
            }
            self.note(format_args!("commits {} channels", entries.len()));
            if self.dies() {
                return self.kill_metering();
            }
            self.journal.write(entries);
            // The disk takes its time, and the world does not wait for it.
            if self.random.once_in(4) {
                self.deliver()?;
                self.follow_slots()?;
                self.burst()?;
                if let Some(metering) = &mut self.metering {
                    metering.books.poll_usage(true);
                }
            }
            if self.dies() {
                return self.kill_metering();
            }
            let channels = self.journal.sync()?;
            self.synced(&channels)?;
            if self.dies() {
                return self.kill_metering();
            }
        }
        if let Some(metering) = &mut self.metering {
            metering.books.handle_committed(committed, now);
        }
        if freshens {
            self.check_frozen()?;
        }
        if committed && self.dies() {
            return self.kill_metering();
        }
        self.act()
    }

    /// Who asks for a channel's claim, whenever that is, gets one that rests on what is synced.
    fn check_claims(&mut self) -> Step {
        let Some(metering) = &self.metering else {
            return Ok(());
        };
        if !self.random.once_in(8) {
            return Ok(());
        }
        for (number, channel) in self.channels.iter().enumerate() {
            let Some(claim) = metering.books.final_claim(channel.view.id) else {
                continue;
            };
            let lines = self.journal.lines(channel.view.id);
            let held = channel.truth.check_early(&claim, lines);
            held.map_err(|error| format!("channel {number}: {error}"))?;
        }
        Ok(())
    }

    /// Whether a process dies just now.
    pub(super) fn dies(&mut self) -> bool {
        !self.healthy && self.random.once_in(self.plan.trouble.saturating_mul(20))
    }

    fn synced(&mut self, channels: &[ChannelId]) -> Step {
        for id in channels {
            let number = self.number(*id).ok_or("a record of no channel")?;
            let Some(stored) = self.journal.of(*id) else {
                continue;
            };
            let truth = &mut self.channels[number].truth;
            truth.handle_synced(stored, self.plan.offer)?;
            let (forgiven, most) = (truth.synced.written_off, self.plan.write_off_units_max);
            ensure(forgiven <= most, || {
                format!("{forgiven} units are written off, at most {most} may be")
            })?;
        }
        Ok(())
    }

    fn act(&mut self) -> Step {
        while let Some(output) = self
            .metering
            .as_mut()
            .and_then(|metering| metering.books.poll_output())
        {
            let Some(metering) = &mut self.metering else {
                break;
            };
            match output {
                Output::Reply(connection, message) => self.reply(connection, message)?,
                Output::End(connection) => {
                    metering.links.retain(|link| *link != connection);
                    self.end_link(connection);
                }
                Output::Acknowledge(slot_use) => metering.errand(Errand::Acknowledge(slot_use)),
                Output::LookUp(channel) => metering.errand(Errand::LookUp(channel)),
                Output::Known(_) => {}
                Output::Forgotten(_) => return Err("a channel is forgotten too soon".to_owned()),
                Output::Finished(channel) => {
                    metering.finished.push(channel);
                    self.finished(channel)?;
                }
            }
        }
        Ok(())
    }

    /// The payee reads no more of this link; what it said before still arrives.
    fn end_link(&mut self, connection: u64) {
        if let Some(link) = self.links.iter_mut().find(|link| link.id == connection) {
            link.to_payer.end();
            link.to_payee.drop_all();
        }
    }

    fn reply(&mut self, connection: u64, message: PayeeMessage) -> Step {
        let Some(position) = self.links.iter().position(|link| link.id == connection) else {
            return Ok(());
        };
        let number = self.links[position].wallet;
        if let PayeeMessage::Meter(meter) = message {
            let synced = self.channels[number].truth.synced;
            let durable = meter.channel_bytes <= synced.channel_bytes
                && meter.owed <= synced.owed
                && meter.accepted <= synced.accepted;
            ensure(durable, || {
                format!("channel {number} is told {meter:?}, synced is {synced:?}")
            })?;
        }
        let message = self.lie(number, message);
        self.trace.note(
            self.now_us,
            format_args!("payee to {number} on {connection}: {message:?}"),
        );
        self.links[position].to_payer.send(
            self.now_us,
            message.to_bytes(),
            self.plan.weather,
            &mut self.random,
        );
        Ok(())
    }

    /// What a lying payee says instead.
    fn lie(&mut self, number: usize, message: PayeeMessage) -> PayeeMessage {
        let channel = &mut self.channels[number];
        if channel.payee_kind == PayeeKind::Honest || self.random.once_in(3) {
            return message;
        }
        match message {
            PayeeMessage::Meter(mut meter) => {
                meter.owed += self.random.below(1_000);
                meter.channel_bytes += self.random.below(1 << 30);
                meter.accepted += self.random.below(1_000);
                PayeeMessage::Meter(meter)
            }
            PayeeMessage::Resume(Some(promise)) => {
                let shown = channel.shown;
                channel.shown = Some(promise);
                PayeeMessage::Resume(shown)
            }
            other => other,
        }
    }

    /// Metering asks the data plane for its slots, and takes its tables if it is another run.
    pub(super) fn follow_slots(&mut self) -> Step {
        let (Some(plane), Some(metering)) = (&self.plane, &mut self.metering) else {
            return Ok(());
        };
        let ids: Vec<ChannelId> = self.channels.iter().map(|c| c.view.id).collect();
        let assignments = plane.assignments(|number| ids[number]);
        if metering.attached != Some(plane.boot) || self.random.once_in(200) {
            metering.attached = Some(plane.boot);
            let attachment = plane.attach().map_err(|error| error.to_string())?;
            metering.books.handle_attached(attachment);
            // The list may have been asked of the run before.
            let boot = plane.boot.to_string();
            if let Some(older) = self.assignments.take_if(|older| older.boot != boot) {
                metering.books.handle_assignments(&older);
                return Ok(());
            }
        }
        metering.books.handle_assignments(&assignments);
        self.note(format_args!("{assignments:?}"));
        self.assignments = Some(assignments);
        Ok(())
    }

    pub(super) fn errand(&mut self) -> Step {
        let Some(metering) = &mut self.metering else {
            return Ok(());
        };
        match metering.errands.pop_front() {
            Some(Errand::Acknowledge(slot_use)) => {
                let Some(plane) = &mut self.plane else {
                    return Ok(());
                };
                let heard = plane.boot == slot_use.boot && plane.acknowledge(slot_use.slot);
                // The answer may be lost.
                if heard && (self.healthy || !self.random.once_in(8)) {
                    metering.books.handle_acknowledged(slot_use);
                }
                self.note(format_args!("acknowledges {slot_use:?}: {heard}"));
                self.enter();
            }
            Some(Errand::LookUp(channel)) => self.look_up(channel),
            None => {}
        }
        Ok(())
    }
}
