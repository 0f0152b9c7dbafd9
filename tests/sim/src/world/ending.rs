//! The end of a world: everybody is well, every channel is finished, and all must add up.

use topnet_account::ChannelId;
use topnet_api::{ChainName, ChannelState, FinalClaim};
use topnet_books::{Books, facts::Served};
use topnet_unit::UNIT_BYTES;

use super::{PAYEE, Step, World, same};
use crate::{
    check::ensure,
    plan::{PayeeKind, PayerKind},
    wallet::Ended,
};

/// Rounds in which everybody is well and talks, before channels are finished.
const HEALTHY_ROUNDS: u32 = 150;
const FINISH_ROUNDS: u32 = 1_000;

impl World {
    pub(super) fn ask_finish(&mut self, number: usize) -> Step {
        let id = self.channels[number].view.id;
        let Some(metering) = &mut self.metering else {
            return Ok(());
        };
        let known = metering.books.handle_finish(id);
        self.channels[number].finishing |= known;
        self.note(format_args!("channel {number} is to be finished: {known}"));
        Ok(())
    }

    /// A last claim: it rests on what is synced, and there is only one.
    pub(super) fn finished(&mut self, id: ChannelId) -> Step {
        let (Some(number), Some(metering)) = (self.number(id), &self.metering) else {
            return Err("a channel is finished that nobody opened".to_owned());
        };
        let last = metering
            .books
            .final_claim(id)
            .ok_or("a channel is finished, and nobody knows it")?;
        let stored = self
            .journal
            .of(id)
            .cloned()
            .ok_or("a channel is finished, and no record says so")?;
        let again = self.read_anew(id, stored)?;
        ensure(same(&again, &last), || {
            let (said, synced) = (&last.status, &again.status);
            format!("the last claim rests on more than is synced: {said:?}, synced {synced:?}")
        })?;
        let truth = &mut self.channels[number].truth;
        if let Some(first) = &truth.last {
            ensure(same(first, &last), || {
                format!("two last claims: {:?} and {:?}", first.status, last.status)
            })?;
        }
        self.coverage.finished += 1;
        self.trace.note(
            self.now_us,
            format_args!("channel {number} is finished with {last:?}"),
        );
        self.channels[number].truth.last = Some(last);
        Ok(())
    }

    fn read_anew(&self, id: ChannelId, stored: topnet_books::Stored) -> Result<FinalClaim, String> {
        let served = Served {
            service: ChainName::vpn(),
            payee: Some(PAYEE),
            close_window_blocks_min: 10,
            write_off_units_max: 0,
        };
        let books = Books::restore(served, self.plan.offer, vec![stored])
            .map_err(|(_, error)| error.to_string())?;
        books
            .final_claim(id)
            .ok_or_else(|| "a synced record is no channel".to_owned())
    }

    /// Everybody is well and talks; then what is asked for and paid must pass.
    pub(super) fn heal(&mut self, step: &mut u32) -> Step {
        self.healthy = true;
        self.plan.weather.chaos = false;
        self.settlement_up = true;
        self.clock_off_ms = 0;
        self.note(format_args!("everybody is well"));
        for number in 0..self.channels.len() {
            let channel = &mut self.channels[number];
            let allocation = channel.wallet_allocation;
            channel.wallet.handle_allocation(allocation);
            channel.older = channel.view.clone();
            self.break_link(number);
            self.hang_up(number);
            let open = self.channels[number].view.state == ChannelState::Open;
            self.channels[number].wanted |= open;
        }
        let before: Vec<u64> = self
            .channels
            .iter()
            .map(|c| c.truth.forwarded_bytes)
            .collect();
        for _ in 0..HEALTHY_ROUNDS {
            self.round(step, true)?;
        }
        for (number, before_bytes) in before.into_iter().enumerate() {
            self.check_progress(number, before_bytes)?;
        }
        Ok(())
    }

    fn round(&mut self, step: &mut u32, traffic: bool) -> Step {
        *step += 1;
        self.advance(30_000);
        self.start_plane()?;
        self.start_metering()?;
        self.enter();
        self.watch_chains()?;
        self.follow_slots()?;
        if step.is_multiple_of(10) {
            self.watch_channels()?;
        }
        if traffic {
            self.burst()?;
        }
        self.settle();
        self.turn()?;
        self.deliver()?;
        self.wallets()?;
        self.errand()?;
        self.check()
    }

    /// An honest payer with money left is served.
    fn check_progress(&mut self, number: usize, before_bytes: u64) -> Step {
        let channel = &self.channels[number];
        let wallet = &channel.wallet;
        let honest =
            channel.payer_kind == PayerKind::Honest && channel.payee_kind == PayeeKind::Honest;
        if let (true, Some(Ended::Fault(fault))) = (honest, wallet.ended) {
            return Err(format!("an honest wallet gave up: {fault}"));
        }
        let serves = honest
            && channel.view.state == ChannelState::Open
            && channel.view.expiry == u64::MAX
            && !channel.lossy
            && !channel.finishing
            && !wallet.has_forgotten();
        if !serves || self.channels.len() >= self.plan.slots as usize {
            return Ok(());
        }
        let status = wallet.payer.status();
        let accepted = channel.truth.synced.accepted;
        let allocation = wallet.terms.allocation;
        let spent = status.promised.checked_add(self.plan.price_max());
        let used_up = accepted == status.released && spent.is_none_or(|spent| spent > allocation);
        let moved = channel.truth.forwarded_bytes > before_bytes + UNIT_BYTES;
        ensure(moved || used_up, || {
            format!("channel {number} stands still: {accepted} units accepted, {status:?}")
        })
    }

    pub(super) fn finish_all(&mut self, step: &mut u32) -> Step {
        if self.random.once_in(4) {
            self.kill_metering()?;
            self.start_metering()?;
        }
        for again in [false, true] {
            if again {
                self.kill_metering()?;
                self.start_metering()?;
            }
            self.finish_each(step)?;
        }
        for channel in &self.channels {
            let Some(last) = &channel.truth.last else {
                continue;
            };
            let lines = self.journal.lines(channel.view.id);
            channel.truth.check_last(last, lines)?;
            if channel.payer_kind == PayerKind::Honest {
                channel.check_honest(last, &self.plan)?;
            }
        }
        Ok(())
    }

    fn finish_each(&mut self, step: &mut u32) -> Step {
        for number in 0..self.channels.len() {
            self.ask_finish(number)?;
        }
        for _ in 0..FINISH_ROUNDS {
            if self.is_all_finished() {
                return Ok(());
            }
            // The data plane goes on as far as it is let.
            if self.random.once_in(3) {
                *step += 1;
                self.advance(60_000);
                self.burst()?;
                self.turn()?;
                self.check()?;
            } else {
                self.round(step, true)?;
            }
        }
        Err("finishing does not end".to_owned())
    }

    /// Every channel that metering knows has its last claim.
    fn is_all_finished(&self) -> bool {
        let Some(metering) = &self.metering else {
            return false;
        };
        metering
            .books
            .channels()
            .all(|channel| metering.finished.contains(&channel))
    }
}
