//! A payer that forges, replays and equivocates, at the port where honest ones pay.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use topnet_account::{Amount, ChannelId, PublicKey};
use topnet_channel::{
    Offer, PROTOCOL_VERSION, PayeeMessage, PayerMessage, Preimage, Promise, RefusalCode, Roll,
    SecretKey, SignedVoucher, Token, Voucher,
};
use topnet_link::{LinkError, connect};

/// A refusal comes at once or not at all.
const ANSWER_WAIT: Duration = Duration::from_secs(3);
/// Silence for so long is an answer, where silence is expected.
const SILENCE: Duration = Duration::from_millis(400);

/// Tokens of each voucher: more than the payee looks ahead.
const TOKENS: u16 = 200;
/// Units that the forger's channel can pay for: both vouchers, and less than the longest chain.
pub const ALLOCATION_UNITS: u64 = 220;

/// Where payments go, and who must answer there.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Of the offer.
    pub address: SocketAddr,
    /// Of the offer.
    pub key: PublicKey,
}

/// Something that must not be accepted.
#[derive(Clone, Debug)]
pub struct Forgery {
    /// In words.
    pub tried: &'static str,
    /// With whose key the link is made.
    pub key: Key,
    /// What is said, in order.
    pub frames: Vec<Vec<u8>>,
    /// What must come back; `None` where nothing changes and nothing is said.
    pub expected: Option<RefusalCode>,
}

/// Whose key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The signer of the forger's channel.
    Own,
    /// Of no channel.
    Stranger,
}

/// Says `frames` over a link of its own; gives the first refusal.
pub async fn say(
    target: Target,
    secret: &SecretKey,
    frames: &[Vec<u8>],
    refusal_expected: bool,
) -> Result<Option<RefusalCode>> {
    let link = connect(target.address, target.key, secret).await?;
    let (mut sender, mut receiver) = link.split();
    for frame in frames {
        match sender.send(frame).await {
            Ok(()) => {}
            // It was refused before it had said all; the refusal is still to be read.
            Err(LinkError::Lost(_)) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let patience = if refusal_expected {
        ANSWER_WAIT
    } else {
        SILENCE
    };
    let refusal = async {
        while let Ok(Some(bytes)) = receiver.recv().await {
            if let Ok(PayeeMessage::Refused(code)) = PayeeMessage::from_bytes(&bytes) {
                return Some(code);
            }
        }
        None
    };
    let refused = tokio::time::timeout(patience, refusal).await;
    sender.finish().await;
    Ok(refused.unwrap_or(None))
}

/// The forger: an account that opened a channel like any other.
#[derive(Debug)]
pub struct Forger {
    /// Its key, which signs the channel's vouchers.
    pub secret: SecretKey,
    /// Of nobody.
    pub stranger: SecretKey,
    /// Its channel.
    pub channel: ChannelId,
    /// Somebody else's.
    pub other: ChannelId,
    /// What the payee asks.
    pub offer: Offer,
}

impl Forger {
    /// What is tried while the payee holds nothing.
    pub fn on_an_empty_channel(&self) -> Vec<Forgery> {
        use RefusalCode::*;
        let first = self.voucher(1, 0);
        let hello = |version, channel| PayerMessage::Hello { version, channel };
        let stranger = |tried, messages: &[PayerMessage], expected| Forgery {
            tried,
            key: Key::Stranger,
            frames: messages.iter().map(PayerMessage::to_bytes).collect(),
            expected: Some(expected),
        };
        let cheaper = Voucher {
            unit_price: Amount::from_ntop(self.offer.unit_price.ntop() - 1),
            ..first
        };
        let longest = Voucher {
            tokens: 256,
            ..first
        };
        let mut altered = first.sign(&self.secret);
        altered.voucher.tokens -= 1;
        let foreign = Voucher {
            channel: self.other,
            ..first
        };
        let begins_late = self.voucher(1, 5);
        let late = begins_late.sign(&self.secret);
        vec![
            stranger(
                "somebody else's channel, with the key of none",
                &[hello(PROTOCOL_VERSION, self.other)],
                UnknownChannel,
            ),
            stranger(
                "a channel that there is not",
                &[hello(PROTOCOL_VERSION, ChannelId([7; 32]))],
                UnknownChannel,
            ),
            stranger(
                "another version of the protocol",
                &[hello(PROTOCOL_VERSION + 1, self.channel)],
                Version,
            ),
            stranger(
                "a token before the hello",
                &[PayerMessage::Token(self.token(&first, 1, 1))],
                OutOfOrder,
            ),
            Forgery {
                tried: "bytes that are no message",
                key: Key::Own,
                frames: vec![self.hello(), vec![0xff; 40]],
                expected: Some(Malformed),
            },
            self.forgery(
                "a token without a voucher",
                PayerMessage::Token(self.token(&first, 1, 1)),
                StaleVoucher,
            ),
            self.forgery(
                "a voucher that begins beyond what is owed",
                PayerMessage::Resume(Some(Promise {
                    voucher: late,
                    index: 0,
                    preimage: late.voucher.root,
                })),
                WrongTotals,
            ),
            self.forgery(
                "a first voucher that counts units before it",
                roll(late, None),
                WrongTotals,
            ),
            self.forgery(
                "a voucher that pays less than the offer asks",
                roll(cheaper.sign(&self.secret), None),
                PriceTooLow,
            ),
            self.forgery(
                "a voucher beyond the allocation",
                roll(longest.sign(&self.secret), None),
                BeyondAllocation,
            ),
            self.forgery(
                "a voucher that another key signed",
                roll(first.sign(&self.stranger), None),
                WrongSignature,
            ),
            self.forgery(
                "a voucher altered after it was signed",
                roll(altered, None),
                WrongSignature,
            ),
            self.forgery(
                "a voucher of somebody else's channel",
                roll(foreign.sign(&self.secret), None),
                UnknownChannel,
            ),
        ]
    }

    /// An honest first unit.
    pub fn pays_one(&self) -> Vec<Vec<u8>> {
        let first = self.voucher(1, 0);
        let token = self.token(&first, 1, 1);
        let messages = [
            roll(first.sign(&self.secret), None),
            PayerMessage::Token(token),
        ];
        self.frames(&messages)
    }

    /// What is tried after it.
    pub fn after_one(&self) -> Vec<Forgery> {
        use RefusalCode::*;
        let first = self.voucher(1, 0);
        let ahead = u16::try_from(self.offer.window_max * 2 + 2).unwrap_or(u16::MAX);
        let equivocal = Voucher {
            tokens: TOKENS - 1,
            ..first
        };
        let retired = |index, preimage| Some((index, preimage));
        let true_link = |index| link(&first, &self.secret, index);
        vec![
            Forgery {
                tried: "the same token once more",
                key: Key::Own,
                frames: self.frames(&[PayerMessage::Token(self.token(&first, 1, 1))]),
                expected: None,
            },
            self.forgery(
                "a made-up pre-image",
                PayerMessage::Token(Token {
                    preimage: [9; 32],
                    ..self.token(&first, 2, 2)
                }),
                WrongPreimage,
            ),
            self.forgery(
                "the first token's pre-image in the second's place",
                PayerMessage::Token(self.token(&first, 2, 1)),
                WrongPreimage,
            ),
            self.forgery(
                "a token beyond the chain's end",
                PayerMessage::Token(self.token(&first, TOKENS + 1, 2)),
                BeyondChain,
            ),
            self.forgery(
                "a token further ahead than the payee looks",
                PayerMessage::Token(self.token(&first, ahead, ahead)),
                TooFarAhead,
            ),
            self.forgery(
                "a token for somebody else's channel",
                PayerMessage::Token(Token {
                    channel: self.other,
                    ..self.token(&first, 2, 2)
                }),
                UnknownChannel,
            ),
            self.forgery(
                "another voucher with the same number",
                roll(equivocal.sign(&self.secret), None),
                WrongTotals,
            ),
            self.forgery(
                "a next voucher that takes a paid unit back",
                roll(
                    self.voucher(2, 0).sign(&self.secret),
                    retired(0, first.sign(&self.secret).voucher.root),
                ),
                WrongTotals,
            ),
            self.forgery(
                "a next voucher that counts more units than it retires",
                roll(
                    self.voucher(2, 9).sign(&self.secret),
                    retired(1, true_link(1)),
                ),
                WrongTotals,
            ),
            self.forgery(
                "a next voucher without the retired chain's token",
                roll(self.voucher(2, 1).sign(&self.secret), retired(1, [9; 32])),
                WrongPreimage,
            ),
            self.forgery(
                "a voucher that leaves a number out",
                roll(
                    self.voucher(3, 1).sign(&self.secret),
                    retired(1, true_link(1)),
                ),
                WrongTotals,
            ),
        ]
    }

    /// An honest roll to the next voucher.
    pub fn rolls(&self) -> Vec<Vec<u8>> {
        let preimage = link(&self.voucher(1, 0), &self.secret, 1);
        let second = self.voucher(2, 1).sign(&self.secret);
        self.frames(&[roll(second, Some((1, preimage)))])
    }

    /// What is tried after that.
    pub fn after_the_roll(&self) -> Vec<Forgery> {
        use RefusalCode::*;
        let first = self.voucher(1, 0);
        vec![
            self.forgery(
                "a token of the voucher before",
                PayerMessage::Token(self.token(&first, 2, 2)),
                StaleVoucher,
            ),
            self.forgery(
                "the voucher before once more",
                roll(first.sign(&self.secret), None),
                WrongTotals,
            ),
            Forgery {
                tried: "the same roll once more",
                key: Key::Own,
                frames: self.rolls(),
                expected: None,
            },
        ]
    }

    /// An honest second unit, under the second voucher.
    pub fn pays_another(&self) -> Vec<Vec<u8>> {
        let token = self.token(&self.voucher(2, 1), 1, 1);
        self.frames(&[PayerMessage::Token(token)])
    }

    /// A voucher of the forger's channel that is as it should be.
    pub fn voucher(&self, seq: u32, units_before: u64) -> Voucher {
        let price = self.offer.unit_price;
        Voucher {
            channel: self.channel,
            seq,
            cumulative_amount: price.checked_mul(units_before).unwrap_or(Amount::MAX),
            cumulative_units: units_before,
            unit_price: price,
            tokens: TOKENS,
            root: [0; 32],
        }
    }

    fn hello(&self) -> Vec<u8> {
        let hello = PayerMessage::Hello {
            version: PROTOCOL_VERSION,
            channel: self.channel,
        };
        hello.to_bytes()
    }

    fn frames(&self, messages: &[PayerMessage]) -> Vec<Vec<u8>> {
        let messages = messages.iter().map(PayerMessage::to_bytes);
        std::iter::once(self.hello()).chain(messages).collect()
    }

    fn forgery(
        &self,
        tried: &'static str,
        message: PayerMessage,
        expected: RefusalCode,
    ) -> Forgery {
        Forgery {
            tried,
            key: Key::Own,
            frames: self.frames(&[message]),
            expected: Some(expected),
        }
    }

    /// A token that says it is `index` and carries the link of `of`.
    fn token(&self, voucher: &Voucher, index: u16, of: u16) -> Token {
        Token {
            channel: self.channel,
            seq: voucher.seq,
            index,
            preimage: link(voucher, &self.secret, of),
            own_bytes: 0,
        }
    }
}

fn link(voucher: &Voucher, secret: &SecretKey, index: u16) -> Preimage {
    voucher.chain(secret).preimage(index).unwrap_or_default()
}

fn roll(voucher: SignedVoucher, retired: Option<(u16, Preimage)>) -> PayerMessage {
    let (retired_index, retired_preimage) = retired.unwrap_or_default();
    PayerMessage::Roll(Roll {
        voucher,
        retired_index,
        retired_preimage,
    })
}

#[cfg(test)]
mod tests {
    use topnet_channel::{Payee, PayeeTerms};

    use super::*;

    fn forger() -> Forger {
        let offer = Offer {
            version: PROTOCOL_VERSION,
            unit_price: Amount::from_ntop(26_000),
            epsilon_ppm: 5_000,
            window_max: 64,
        };
        Forger {
            secret: SecretKey::from_seed([1; 32]).unwrap(),
            stranger: SecretKey::from_seed([2; 32]).unwrap(),
            channel: ChannelId([3; 32]),
            other: ChannelId([4; 32]),
            offer,
        }
    }

    fn durable(payee: &mut Payee) -> u64 {
        if payee.poll_record().is_some() {
            payee.handle_durable();
        }
        payee.meter().accepted
    }

    /// What is said after the hello, which is the shell's business.
    fn told(payee: &mut Payee, frames: &[Vec<u8>]) -> Option<RefusalCode> {
        let mut refused = None;
        for frame in &frames[1..] {
            let result = PayerMessage::from_bytes(frame)
                .map_err(|_| RefusalCode::Malformed)
                .and_then(|message| payee.handle_message(&message));
            refused = refused.or(result.err());
        }
        refused
    }

    #[test]
    fn every_forgery_is_refused_as_it_says_and_the_honest_steps_between_are_taken() {
        let forger = forger();
        let price = forger.offer.unit_price;
        let mut payee = Payee::new(PayeeTerms {
            channel: forger.channel,
            signer: forger.secret.public_key(),
            allocation: price.checked_mul(ALLOCATION_UNITS).unwrap(),
            offer: forger.offer,
        });
        let steps = [
            (forger.on_an_empty_channel(), forger.pays_one(), 1),
            (forger.after_one(), forger.rolls(), 1),
            (forger.after_the_roll(), forger.pays_another(), 2),
        ];
        for (forgeries, honest, accepted) in steps {
            let before = durable(&mut payee);
            for forgery in forgeries.iter().filter(|forgery| forgery.key == Key::Own) {
                let refused = told(&mut payee, &forgery.frames);
                assert_eq!(refused, forgery.expected, "{}", forgery.tried);
                assert_eq!(durable(&mut payee), before, "{}", forgery.tried);
            }
            assert_eq!(told(&mut payee, &honest), None);
            assert_eq!(durable(&mut payee), accepted);
        }
    }
}
