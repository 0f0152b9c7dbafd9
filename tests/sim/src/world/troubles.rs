//! What goes wrong, by chance.

use topnet_api::ChannelState;

use super::{Step, World};

impl World {
    pub(super) fn trouble(&mut self) -> Step {
        self.start_plane()?;
        self.start_metering()?;
        self.settlement_up |= self.random.once_in(2);
        if self.plan.trouble == u64::MAX {
            return Ok(());
        }
        let number = self.random.index(self.channels.len());
        if !self.random.once_in(self.plan.trouble) {
            return Ok(());
        }
        match self.random.below(13) {
            12 if self.plan.clock_jumps => {
                self.clock_off_ms = self.random.pick(&[0, -3_600_000, 3_600_000, -500, 500]);
                self.coverage.clocks_set += 1;
                let off_ms = self.clock_off_ms;
                self.note(format_args!("metering's clock is {off_ms} ms off"));
                Ok(())
            }
            0 => self.kill_plane(),
            1 => self.kill_metering(),
            2 => {
                self.kill_plane()?;
                self.start_plane()
            }
            3 => {
                self.kill_metering()?;
                self.start_metering()
            }
            4 => self.kill_wallet(number),
            5 => {
                self.settlement_up = false;
                self.coverage.settlement_down += 1;
                self.note(format_args!("settlement is away"));
                Ok(())
            }
            6 | 7 => {
                self.break_link(number);
                Ok(())
            }
            8 => {
                // An owner who adds a little at a time.
                for _ in 0..self.random.between(1, 3) {
                    self.top_up(number);
                    self.wallet(number)?;
                }
                Ok(())
            }
            9 => self.forget(number),
            10 if self.random.once_in(3) => {
                self.close(number);
                Ok(())
            }
            11 if self.random.once_in(3) => self.ask_finish(number),
            _ => Ok(()),
        }
    }

    pub(super) fn break_link(&mut self, number: usize) {
        let id = self.channels[number].wallet.link;
        if let Some(link) = self.links.iter_mut().find(|link| Some(link.id) == id) {
            link.cut(&mut self.random);
            self.coverage.links_broken += 1;
            self.note(format_args!("link {id:?} breaks"));
        }
    }

    /// Sometimes the wallet hears of it first, sometimes metering.
    fn top_up(&mut self, number: usize) {
        let channel = &mut self.channels[number];
        if channel.view.state != ChannelState::Open {
            return;
        }
        let units = self.random.pick(&[1, 1, 5, 300]);
        let price = self.plan.offer.unit_price;
        let added = price.checked_mul(units).unwrap_or_default();
        channel.older = channel.view.clone();
        let allocation = channel.view.allocation.checked_add(added);
        channel.view.allocation = allocation.unwrap_or(channel.view.allocation);
        channel.wallet_allocation = channel.view.allocation;
        if self.random.once_in(2) {
            let allocation = channel.wallet_allocation;
            channel.wallet.handle_allocation(allocation);
        }
        self.coverage.top_ups += 1;
        let allocation = channel.view.allocation;
        self.note(format_args!(
            "channel {number} is topped up to {allocation}"
        ));
    }

    /// The wallet's owner makes a backup, brings it back, or loses everything.
    fn forget(&mut self, number: usize) -> Step {
        let wallet = &mut self.channels[number].wallet;
        if !self.plan.forgetful || self.random.once_in(2) {
            wallet.disk.back_up();
            return Ok(());
        }
        self.coverage.forgotten += 1;
        if self.random.once_in(4) {
            wallet.forget();
        } else {
            wallet.disk.restore();
            wallet.restart();
        }
        self.note(format_args!("wallet {number} has an old journal, or none"));
        self.hang_up(number);
        Ok(())
    }

    /// The payer closes the channel on its chain.
    fn close(&mut self, number: usize) {
        let channel = &mut self.channels[number];
        if channel.view.state == ChannelState::Open {
            channel.older = channel.view.clone();
            channel.view.state = ChannelState::Closing { deadline: 1_000 };
            self.coverage.closed += 1;
            self.note(format_args!("channel {number} is closing"));
        }
    }
}
