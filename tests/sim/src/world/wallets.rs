//! The wallets, honest, forging and dying.

use topnet_channel::PayerMessage;

use super::{Step, World};
use crate::{link::Link, plan::PayerKind};

impl World {
    pub(super) fn wallets(&mut self) -> Step {
        for number in 0..self.channels.len() {
            self.wallet(number)?;
        }
        Ok(())
    }

    pub(super) fn wallet(&mut self, number: usize) -> Step {
        let now_us = self.now_us;
        let wallet = &mut self.channels[number].wallet;
        wallet.count();
        if wallet.ended.is_some() {
            return Ok(());
        }
        if wallet.link.is_none() {
            if now_us < wallet.retry_at_us {
                return Ok(());
            }
            self.connections += 1;
            wallet.link = Some(self.connections);
            let hello = wallet.payer.hello();
            self.links.push(Link::new(self.connections, number));
            for message in hello {
                // It says what is on the disk, whether or not it was said before.
                self.check_released(number, &message)?;
                self.say(number, message);
            }
        }
        while let Some(unsaved) = self.channels[number].wallet.payer.poll_send() {
            let record = unsaved.record().to_vec();
            self.trace.bytes(&record);
            if self.dies() {
                return self.kill_wallet(number);
            }
            self.channels[number].wallet.disk.write(&record);
            if self.dies() {
                return self.kill_wallet(number);
            }
            self.channels[number].wallet.disk.sync();
            if self.dies() {
                return self.kill_wallet(number);
            }
            let message = unsaved.saved().release();
            self.check_released(number, &message)?;
            self.coverage.rolls += u64::from(matches!(message, PayerMessage::Roll(_)));
            self.coverage.tokens += u64::from(matches!(message, PayerMessage::Token(_)));
            self.say(number, message);
        }
        Ok(())
    }

    /// What an honest wallet promises stays within its rules, whatever its payee says.
    fn check_released(&mut self, number: usize, message: &PayerMessage) -> Step {
        let channel = &mut self.channels[number];
        match channel.payer_kind {
            PayerKind::Honest => channel.wallet.check_released(message, &self.plan),
            PayerKind::Forger => Ok(()),
        }
    }

    fn say(&mut self, number: usize, message: PayerMessage) {
        let Some(id) = self.channels[number].wallet.link else {
            return;
        };
        self.trace.note(
            self.now_us,
            format_args!("wallet {number} says on {id}: {message:?}"),
        );
        let bytes = message.to_bytes();
        let channel = &mut self.channels[number];
        if channel.payer_kind == PayerKind::Forger {
            channel.forger.handle_said(&bytes);
        }
        self.say_bytes(number, bytes);
    }

    fn say_bytes(&mut self, number: usize, bytes: Vec<u8>) {
        let id = self.channels[number].wallet.link;
        if let Some(link) = self.links.iter_mut().find(|link| Some(link.id) == id) {
            link.to_payee
                .send(self.now_us, bytes, self.plan.weather, &mut self.random);
        }
    }

    pub(super) fn kill_wallet(&mut self, number: usize) -> Step {
        self.coverage.wallets_killed += 1;
        self.note(format_args!("wallet {number} dies"));
        self.hang_up(number);
        let wallet = &mut self.channels[number].wallet;
        wallet.disk.crash(&mut self.random);
        wallet.restart();
        Ok(())
    }

    pub(super) fn forge(&mut self) -> Step {
        let number = self.random.index(self.channels.len());
        let channel = &self.channels[number];
        if channel.payer_kind == PayerKind::Honest || self.healthy {
            return Ok(());
        }
        let wallet = &channel.wallet;
        let promise = wallet.payer.promise();
        for _ in 0..self.random.between(1, 3) {
            let bytes = self.channels[number].forger.forge(
                &self.channels[number].wallet.secret,
                self.channels[number].view.id,
                promise,
                &mut self.random,
            );
            self.coverage.forgeries += 1;
            self.note(format_args!(
                "{number} forges {:?}",
                PayerMessage::from_bytes(&bytes)
            ));
            self.say_bytes(number, bytes);
        }
        Ok(())
    }
}
