//! What the chains say, late or not at all.

use topnet_account::ChannelId;
use topnet_api::ChannelState;
use topnet_books::Tips;

use super::{Channel, EPOCH_MS, PAYEE, Step, World};
use crate::check::ensure;

const BLOCK_INTERVAL_MS: u64 = 100;

impl World {
    pub(super) fn watch_chains(&mut self) -> Step {
        if self.settlement_up {
            // The chain's clock is behind by what finality takes.
            self.tip_us = self
                .tip_us
                .max(self.now_us.saturating_sub(self.random.below(200_000)));
        }
        let (up, tip_ms) = (self.settlement_up, EPOCH_MS + self.tip_us / 1000);
        let now = self.instant();
        if let Some(metering) = &mut self.metering
            && up
        {
            let tips = Tips {
                service_height: self.tip_us / 1000 / BLOCK_INTERVAL_MS,
                service_time_ms: tip_ms,
                main_time_ms: tip_ms,
                block_interval_ms: BLOCK_INTERVAL_MS,
            };
            metering.books.handle_payee(PAYEE);
            metering.books.handle_tips(tips, now);
            metering.tips = Some(tips);
            self.note(format_args!("tips at {tip_ms}"));
        }
        Ok(())
    }

    pub(super) fn watch_channels(&mut self) -> Step {
        let Some(metering) = &self.metering else {
            return Ok(());
        };
        let mut active: Vec<ChannelId> = metering.books.active().collect();
        active.sort_unstable();
        for channel in active {
            self.look_up(channel);
        }
        Ok(())
    }

    /// Metering asks the chain about a channel; of two answers under way the older may come last.
    pub(super) fn look_up(&mut self, channel: ChannelId) {
        let (now, wall_ms) = (self.instant(), self.wall_ms());
        let (Some(number), true) = (self.number(channel), self.settlement_up) else {
            return;
        };
        let late = !self.healthy && self.random.once_in(10);
        let Some(metering) = &mut self.metering else {
            return;
        };
        let Channel { view, older, .. } = &self.channels[number];
        let mut answers = vec![view.clone()];
        if late {
            answers.push(older.clone());
        }
        for view in answers {
            if metering.books.handle_channel(&view) {
                metering.books.poll_freshness_of(channel, now, wall_ms);
                let closing = view.state != ChannelState::Open;
                *metering.heard.entry(channel).or_default() |= closing;
            }
            self.trace.note(
                self.now_us,
                format_args!(
                    "channel {number} is {:?} with {}",
                    view.state, view.allocation
                ),
            );
        }
    }

    /// Invariant 6: what must not go on has no credit.
    pub(super) fn check_frozen(&mut self) -> Step {
        let wall_ms = self.wall_ms();
        let (Some(metering), Some(plane)) = (&self.metering, &self.plane) else {
            return Ok(());
        };
        if metering.attached != Some(plane.boot) {
            return Ok(());
        }
        for (number, channel) in self.channels.iter_mut().enumerate() {
            let limit_ms = channel.view.close_window * BLOCK_INTERVAL_MS / 4;
            let fresh = metering.tips.is_some_and(|tips| {
                let time_ms = tips.service_time_ms.min(tips.main_time_ms);
                wall_ms.saturating_sub(time_ms) <= limit_ms
            });
            let quarter = channel.view.close_window / 4;
            let lasts = metering
                .tips
                .is_some_and(|tips| tips.service_height + quarter < channel.view.expiry);
            if metering.tips.is_some() && !lasts && !channel.neared_expiry {
                channel.neared_expiry = true;
                self.coverage.expired += 1;
            }
            let open = lasts && metering.heard.get(&channel.view.id) == Some(&false);
            ensure(fresh && open || plane.open(number).next().is_none(), || {
                format!("channel {number} has credit: fresh {fresh}, heard to be open {open}")
            })?;
        }
        Ok(())
    }
}
