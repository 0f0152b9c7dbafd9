//! What a dishonest payer says: forgeries, equivocations, replays, and honest overpayment.

use topnet_account::{Amount, Signature};
use topnet_channel::{
    PROTOCOL_VERSION, PayerMessage, Promise, Roll, SecretKey, SignedVoucher, Token, Voucher,
};

use crate::random::Random;

/// One payer's bag of tricks.
#[derive(Debug, Default)]
pub(crate) struct Forger {
    /// What was ever said on the channel, to say it again.
    said: Vec<Vec<u8>>,
}

/// Of what was said, what is kept.
const SAID_MAX: usize = 64;

impl Forger {
    /// Something that went out.
    pub(crate) fn handle_said(&mut self, bytes: &[u8]) {
        if self.said.len() < SAID_MAX {
            self.said.push(bytes.to_vec());
        }
    }

    /// Something to say that is not what the wallet would say now.
    pub(crate) fn forge(
        &self,
        secret: &SecretKey,
        channel: topnet_account::ChannelId,
        promise: Option<Promise>,
        random: &mut Random,
    ) -> Vec<u8> {
        if !self.said.is_empty() && random.once_in(5) {
            return self.said[random.index(self.said.len())].clone();
        }
        if random.once_in(20) {
            let length = random.index(200);
            return (0..length).map(|_| random.below(256) as u8).collect();
        }
        let Some(promise) = promise else {
            return PayerMessage::Hello {
                version: PROTOCOL_VERSION,
                channel,
            }
            .to_bytes();
        };
        let message = match random.below(3) {
            0 => PayerMessage::Token(token(secret, &promise, random)),
            1 => PayerMessage::Roll(roll(secret, &promise, random)),
            _ => PayerMessage::Resume(Some(resume(secret, &promise, random))),
        };
        message.to_bytes()
    }
}

fn token(secret: &SecretKey, promise: &Promise, random: &mut Random) -> Token {
    let voucher = &promise.voucher.voucher;
    let chain = voucher.chain(secret);
    let index = promise.index.saturating_add(random.below(12) as u16).max(1);
    let good = Token {
        channel: voucher.channel,
        seq: voucher.seq,
        index,
        preimage: chain.preimage(index).unwrap_or_default(),
        own_bytes: random.below(1 << 40),
    };
    match random.below(7) {
        0 => Token {
            preimage: random.bytes(),
            ..good
        },
        1 => Token {
            index: index.saturating_add(1),
            ..good
        },
        2 => Token {
            seq: random.below(u64::from(voucher.seq) + 3) as u32,
            ..good
        },
        3 => Token {
            index: voucher.tokens.saturating_add(1),
            ..good
        },
        4 => Token {
            index: voucher.tokens,
            preimage: chain.preimage(voucher.tokens).unwrap_or_default(),
            ..good
        },
        5 => Token {
            index: 1 + random.below(u64::from(promise.index) + 1) as u16,
            ..good
        },
        // Pays ahead of its use.
        _ => good,
    }
}

/// A successor of the promise, which is wrong in at most one place.
fn successor(promise: &Promise, random: &mut Random) -> (Voucher, u16) {
    let old = &promise.voucher.voucher;
    let retired = promise.index;
    let good = Voucher {
        channel: old.channel,
        seq: old.seq.saturating_add(1),
        cumulative_amount: old.redeemable(retired).unwrap_or_default(),
        cumulative_units: old.units(retired).unwrap_or_default(),
        unit_price: old.unit_price,
        tokens: 1 + random.below(256) as u16,
        root: [0; 32],
    };
    let ntop = good.cumulative_amount.ntop();
    let price = good.unit_price.ntop();
    let amount = Amount::from_ntop;
    let bad = match random.below(10) {
        0 => Voucher {
            seq: old.seq,
            ..good
        },
        1 => Voucher {
            seq: old.seq.saturating_add(2),
            ..good
        },
        2 => Voucher {
            cumulative_units: good.cumulative_units + 1 + random.below(100),
            ..good
        },
        3 => Voucher {
            cumulative_units: good.cumulative_units.saturating_sub(1),
            ..good
        },
        4 => Voucher {
            cumulative_amount: amount(ntop.saturating_sub(1)),
            ..good
        },
        5 => Voucher {
            cumulative_amount: amount(ntop + price),
            ..good
        },
        6 => Voucher {
            unit_price: amount(price.saturating_sub(1)),
            ..good
        },
        7 => Voucher {
            unit_price: amount(price + random.below(1_000_000)),
            ..good
        },
        // Begins with units for which nothing was promised, and makes up for them at the end.
        8 => Voucher {
            cumulative_amount: Amount::ZERO,
            unit_price: amount((ntop + price).max(1)),
            tokens: 1,
            ..good
        },
        _ => good,
    };
    (bad, retired)
}

fn roll(secret: &SecretKey, promise: &Promise, random: &mut Random) -> Roll {
    let (next, retired_index) = successor(promise, random);
    let voucher = signed(next, secret, random);
    let old = &promise.voucher.voucher;
    let retired_index = match random.below(6) {
        0 => retired_index.saturating_sub(1),
        1 => retired_index.saturating_add(1),
        _ => retired_index,
    };
    let preimage = old.chain(secret).preimage(retired_index);
    Roll {
        voucher,
        retired_index,
        retired_preimage: preimage
            .filter(|_| !random.once_in(6))
            .unwrap_or_else(|| random.bytes()),
    }
}

fn resume(secret: &SecretKey, promise: &Promise, random: &mut Random) -> Promise {
    let voucher = if random.once_in(2) {
        promise.voucher
    } else {
        let (next, _) = successor(promise, random);
        signed(next, secret, random)
    };
    let index = random.below(u64::from(voucher.voucher.tokens) + 1) as u16;
    let preimage = voucher.voucher.chain(secret).preimage(index);
    Promise {
        voucher,
        index,
        preimage: preimage
            .filter(|_| !random.once_in(6))
            .unwrap_or_else(|| random.bytes()),
    }
}

fn signed(voucher: Voucher, secret: &SecretKey, random: &mut Random) -> SignedVoucher {
    let signed = voucher.sign(secret);
    if random.once_in(8) {
        SignedVoucher {
            signature: Signature(random.bytes()),
            ..signed
        }
    } else {
        signed
    }
}
