//! What is on its way between wallets and metering.

use topnet_account::ChannelId;
use topnet_books::Greeting;
use topnet_channel::{PROTOCOL_VERSION, PayeeMessage, PayerMessage, RefusalCode};

use super::{Step, World};
use crate::{link::Link, wallet::Heard};

impl World {
    pub(super) fn deliver(&mut self) -> Step {
        for position in 0..self.links.len() {
            self.proof_comes(position);
            while self.links[position].proving.is_none()
                && let Some(bytes) = self.links[position].to_payee.receive(self.now_us)
            {
                self.payee_hears(position, &bytes);
            }
            let link = &mut self.links[position];
            if link.to_payee.is_over() && link.greeted && link.proving.is_none() {
                link.greeted = false;
                let id = link.id;
                if let Some(metering) = &mut self.metering {
                    metering.links.retain(|link| *link != id);
                    metering.books.handle_disconnected(id);
                    self.note(format_args!("payee lost link {id}"));
                }
            }
            self.payer_reads(position);
        }
        let channels = &self.channels;
        self.links.retain(|link| {
            let held = channels[link.wallet].wallet.link == Some(link.id);
            held || !link.to_payee.is_over()
        });
        Ok(())
    }

    /// A signature is proved sooner or later, and much may have happened meanwhile.
    fn proof_comes(&mut self, position: usize) {
        let link = &mut self.links[position];
        if link.proving.is_none() || self.random.once_in(2) {
            return;
        }
        if let (Some(unproved), Some(metering)) = (link.proving.take(), &mut self.metering) {
            self.coverage.proved += 1;
            metering.books.handle_proof(link.id, unproved.prove());
        }
    }

    fn payee_hears(&mut self, position: usize, bytes: &[u8]) {
        let Link {
            id,
            wallet: number,
            greeted,
            ..
        } = self.links[position];
        self.trace.bytes(bytes);
        let message = PayerMessage::from_bytes(bytes);
        self.trace.note(
            self.now_us,
            format_args!("{number} to payee on {id}: {message:?}"),
        );
        let answered = match (message, greeted) {
            (Ok(PayerMessage::Hello { version, channel }), false) => {
                self.payee_greets(position, version, channel)
            }
            (Ok(_), false) => Err(RefusalCode::OutOfOrder),
            (Ok(message), true) => {
                if let Some(metering) = &mut self.metering {
                    self.links[position].proving = metering.books.handle_payer(id, &message);
                }
                Ok(())
            }
            (Err(_), _) => Err(RefusalCode::Malformed),
        };
        if let Err(code) = answered {
            let refusal = PayeeMessage::Refused(code).to_bytes();
            let link = &mut self.links[position];
            link.to_payer
                .send(self.now_us, refusal, self.plan.weather, &mut self.random);
            link.to_payer.end();
            link.to_payee.drop_all();
        }
    }

    fn payee_greets(
        &mut self,
        position: usize,
        version: u16,
        channel: ChannelId,
    ) -> Result<(), RefusalCode> {
        if version != PROTOCOL_VERSION {
            return Err(RefusalCode::Version);
        }
        let Link { id, wallet, .. } = self.links[position];
        let key = self.channels[wallet].wallet.secret.public_key();
        for attempt in 0..2 {
            let Some(metering) = &mut self.metering else {
                return Err(RefusalCode::UnknownChannel);
            };
            match metering.books.handle_hello(id, channel, key) {
                Greeting::Welcome => {
                    metering.links.push(id);
                    self.links[position].greeted = true;
                    return Ok(());
                }
                Greeting::Unknown if attempt == 0 => self.look_up(channel),
                Greeting::Unknown | Greeting::WrongKey => break,
                Greeting::TooOften => return Err(RefusalCode::TooOften),
            }
        }
        Err(RefusalCode::UnknownChannel)
    }

    fn payer_reads(&mut self, position: usize) {
        let Link { id, wallet, .. } = self.links[position];
        while let Some(bytes) = self.links[position].to_payer.receive(self.now_us) {
            let channel = &mut self.channels[wallet];
            if channel.wallet.link != Some(id) {
                continue;
            }
            if channel.wallet.handle_bytes(&bytes) == Heard::Reconnect {
                self.coverage.refusals += 1;
                self.hang_up(wallet);
            }
        }
        if self.links[position].to_payer.is_over() && self.channels[wallet].wallet.link == Some(id)
        {
            self.hang_up(wallet);
        }
    }

    /// The wallet ends its link and makes another in a while.
    pub(super) fn hang_up(&mut self, number: usize) {
        let retry_us = if self.healthy {
            1_000
        } else {
            self.random.between(1_000, 1_000_000)
        };
        let wallet = &mut self.channels[number].wallet;
        wallet.retry_at_us = self.now_us + retry_us;
        let Some(id) = wallet.link.take() else { return };
        if let Some(link) = self.links.iter_mut().find(|link| link.id == id) {
            link.cut(&mut self.random);
            link.to_payer.drop_all();
        }
        self.note(format_args!("wallet {number} hangs up {id}"));
    }
}
