//! The data plane: it forwards, dies and comes back.

use topnet_api::ChannelState;
use topnet_unit::{BootId, UNIT_BYTES};

use super::{Step, World};
use crate::plane::Plane;

/// The longest burst.
const BURST_US_MAX: u64 = 90_000;

impl World {
    pub(super) fn start_plane(&mut self) -> Step {
        if self.plane.is_some() {
            return Ok(());
        }
        self.boots += 1;
        let mut boot = [0; 16];
        boot[..8].copy_from_slice(&self.boots.to_le_bytes());
        let plane = Plane::new(BootId(boot), self.plan.slots, self.plan.ring_records);
        self.plane = Some(plane.map_err(|error| error.to_string())?);
        let boots = self.boots;
        self.note(format_args!("data plane {boots} starts"));
        self.enter();
        Ok(())
    }

    pub(super) fn enter(&mut self) {
        let Some(plane) = &mut self.plane else { return };
        for (number, channel) in self.channels.iter_mut().enumerate() {
            if channel.wanted
                && let Some((slot_use, base_bytes)) = plane.enter(number)
            {
                channel.truth.handle_use(slot_use, base_bytes);
            }
        }
    }

    pub(super) fn kill_plane(&mut self) -> Step {
        let Some(plane) = self.plane.take() else {
            return Ok(());
        };
        let boot = plane.boot;
        self.coverage.planes_killed += 1;
        self.note(format_args!("data plane {boot} dies"));
        let held = self
            .metering
            .as_ref()
            .is_some_and(|metering| metering.attached == Some(boot));
        if !held {
            self.strand(|of| of == boot)?;
        }
        Ok(())
    }

    /// Nobody can read the tables of these runs any more.
    pub(super) fn strand(&mut self, unreachable: impl Fn(BootId) -> bool) -> Step {
        for channel in &mut self.channels {
            let lost_before = channel.truth.lost_bytes;
            channel.truth.handle_stranded(
                self.journal.of(channel.view.id),
                self.plan.offer,
                |slot_use| unreachable(slot_use.boot),
            )?;
            if channel.truth.lost_bytes > lost_before {
                self.coverage.losses += 1;
            }
        }
        Ok(())
    }

    pub(super) fn burst(&mut self) -> Step {
        let Some(plane) = &mut self.plane else {
            return Ok(());
        };
        let (random, most) = (&mut self.random, self.plan.burst_bytes_max);
        plane.begin(|_| match random.below(8) {
            0 => 0,
            1 => 1,
            2 => UNIT_BYTES,
            _ => random.between(1, most),
        });
        // Sometimes something else happens before the burst is counted.
        if self.random.once_in(4) {
            self.burst_until_us = self.burst_until_us.min(self.now_us + BURST_US_MAX);
            return Ok(());
        }
        self.settle();
        Ok(())
    }

    pub(super) fn settle(&mut self) {
        self.burst_until_us = u64::MAX;
        let Some(plane) = &mut self.plane else { return };
        for counted in plane.settle(self.now_us * 1000) {
            let channel = &mut self.channels[counted.channel];
            channel
                .truth
                .handle_counted(counted.slot_use, counted.bytes, counted.usage_bytes);
            let lost = u128::from(counted.bytes) * u128::from(channel.loss_ppm) / 1_000_000;
            channel.wallet.handle_seen(counted.bytes - lost as u64);
            let (number, bytes) = (counted.channel, counted.bytes);
            self.trace.note(
                self.now_us,
                format_args!("forwarded {bytes} bytes of channel {number}"),
            );
        }
        plane.confirm();
    }

    pub(super) fn change_sessions(&mut self) -> Step {
        let number = self.random.index(self.channels.len());
        let wanted = self.channels[number].view.state == ChannelState::Open
            && (self.healthy || !self.random.once_in(3));
        if wanted != self.channels[number].wanted {
            self.channels[number].wanted = wanted;
            self.coverage.slots_changed += 1;
            self.note(format_args!("sessions of channel {number}: {wanted}"));
            if let Some(plane) = &mut self.plane
                && !wanted
            {
                plane.leave(number);
            }
        }
        self.enter();
        Ok(())
    }
}
