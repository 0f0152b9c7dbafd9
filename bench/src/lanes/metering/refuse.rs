//! What the payee spends on a voucher that it refuses, and on one that it takes.

use std::hint::black_box;

use anyhow::{Context, Result, anyhow, ensure};
use topnet_account::Amount;
use topnet_channel::{
    Payee, PayeeTerms, PayerMessage, Promise, RefusalCode, Roll, SecretKey, TOKENS_PER_VOUCHER_MAX,
    Token, TokenChain, Voucher,
};

use super::{
    VERSION,
    parties::{ALLOCATION, channel, offer, signer},
};
use crate::{
    lane::{Better, Case, Contender, Measurement, process_cpu_s},
    lanes::Setup,
};

/// A quarter of the first chain is spent when the second voucher comes.
const SPENT: u16 = TOKENS_PER_VOUCHER_MAX / 4;

/// The case.
pub fn case(setup: &Setup) -> Case {
    let vouchers = setup.size.vouchers();
    Case {
        name: "metering/refuse".to_owned(),
        metric: "ns_per_refusal".to_owned(),
        unit: "ns".to_owned(),
        better: Better::Lower,
        mode: format!(
            "CPU time, decoded and refused, the dearest of: wrong sequence, wrong totals, too \
             cheap, beyond the allocation, a token under a stale voucher or too far ahead; beside \
             it what hashes or a signature must show; {vouchers} of each"
        ),
        ours: Contender::new(VERSION, move || refused(vouchers)),
        peers: vec![(
            "an accepted voucher".to_owned(),
            Contender::new(VERSION, move || accepted(vouchers)),
        )],
    }
}

/// A channel in the middle of its first voucher.
struct Channel {
    secret: SecretKey,
    first: Voucher,
    chain: TokenChain,
    payee: Payee,
}

impl Channel {
    fn new() -> Result<Channel> {
        let secret = signer(0)?;
        let first = Voucher {
            channel: channel(0),
            seq: 1,
            cumulative_amount: Amount::ZERO,
            cumulative_units: 0,
            unit_price: offer().unit_price,
            tokens: TOKENS_PER_VOUCHER_MAX,
            root: [0; 32],
        };
        let chain = first.chain(&secret);
        let mut payee = Payee::new(PayeeTerms {
            channel: channel(0),
            signer: secret.public_key(),
            allocation: ALLOCATION,
            offer: offer(),
        });
        let voucher = first.sign(&secret);
        let preimage = chain.preimage(SPENT).context("the chain is short")?;
        let promise = Promise {
            voucher,
            index: SPENT,
            preimage,
        };
        payee
            .handle_message(&PayerMessage::Resume(Some(promise)))
            .map_err(|code| anyhow!("the first voucher was refused: {code:?}"))?;
        Ok(Channel {
            secret,
            first,
            chain,
            payee,
        })
    }

    /// The voucher that may come next.
    fn next(&self) -> Result<Voucher> {
        Ok(Voucher {
            seq: 2,
            cumulative_amount: self.first.redeemable(SPENT).context("too much money")?,
            cumulative_units: u64::from(SPENT),
            ..self.first
        })
    }

    fn roll(&self, voucher: Voucher) -> Result<Roll> {
        Ok(Roll {
            voucher: voucher.sign(&self.secret),
            retired_index: SPENT,
            retired_preimage: self.chain.preimage(SPENT).context("the chain is short")?,
        })
    }

    fn token(&self, seq: u32, index: u16) -> Result<PayerMessage> {
        let preimage = self.chain.preimage(index).context("the chain is short")?;
        Ok(PayerMessage::Token(Token {
            channel: self.first.channel,
            seq,
            index,
            preimage,
            own_bytes: 0,
        }))
    }

    /// Everything that a comparison shows to be wrong.
    fn wrong_at_sight(&self) -> Result<Vec<(PayerMessage, RefusalCode)>> {
        let next = self.next()?;
        let roll = |voucher| Ok::<_, anyhow::Error>(PayerMessage::Roll(self.roll(voucher)?));
        let dearer = Amount::from_ntop(next.cumulative_amount.ntop() + 1);
        let cheaper = Amount::from_ntop(next.unit_price.ntop() - 1);
        Ok(vec![
            (roll(Voucher { seq: 3, ..next })?, RefusalCode::WrongTotals),
            (
                roll(Voucher {
                    cumulative_amount: dearer,
                    ..next
                })?,
                RefusalCode::WrongTotals,
            ),
            (
                roll(Voucher {
                    unit_price: cheaper,
                    ..next
                })?,
                RefusalCode::PriceTooLow,
            ),
            (
                roll(Voucher {
                    unit_price: ALLOCATION,
                    ..next
                })?,
                RefusalCode::BeyondAllocation,
            ),
            (self.token(2, SPENT + 1)?, RefusalCode::StaleVoucher),
            (
                self.token(1, TOKENS_PER_VOUCHER_MAX)?,
                RefusalCode::TooFarAhead,
            ),
        ])
    }

    /// Refused after a walk over what is left of the chain.
    fn wrong_chain(&self) -> Result<PayerMessage> {
        let mut voucher = self.next()?;
        let retired = TOKENS_PER_VOUCHER_MAX;
        voucher.cumulative_units = u64::from(retired);
        voucher.cumulative_amount = self.first.redeemable(retired).context("too much money")?;
        Ok(PayerMessage::Roll(Roll {
            retired_index: retired,
            retired_preimage: [1; 32],
            ..self.roll(voucher)?
        }))
    }

    fn wrong_signature(&self) -> Result<PayerMessage> {
        let mut roll = self.roll(self.next()?)?;
        roll.voucher.signature.0[10] ^= 1;
        Ok(PayerMessage::Roll(roll))
    }
}

fn refused(count: u32) -> Result<Measurement> {
    let mut channel = Channel::new()?;
    let cpu_s = process_cpu_s();
    let mut dearest_ns = 0.0_f64;
    for (message, code) in channel.wrong_at_sight()? {
        dearest_ns = dearest_ns.max(refusal_ns(&mut channel.payee, &message, code, count)?);
    }
    let chain = channel.wrong_chain()?;
    let chain_ns = refusal_ns(
        &mut channel.payee,
        &chain,
        RefusalCode::WrongPreimage,
        count,
    )?;
    let signature = channel.wrong_signature()?;
    let code = RefusalCode::WrongSignature;
    let signature_ns = refusal_ns(&mut channel.payee, &signature, code, count)?;
    let cpu_s = process_cpu_s() - cpu_s;
    Ok(Measurement::new(dearest_ns, 6 * u64::from(count), cpu_s)
        .with("192 hashes that lead nowhere", chain_ns, "ns")
        .with("a wrong signature", signature_ns, "ns"))
}

fn refusal_ns(
    payee: &mut Payee,
    message: &PayerMessage,
    expected: RefusalCode,
    count: u32,
) -> Result<f64> {
    let bytes = message.to_bytes();
    let began_s = process_cpu_s();
    for _ in 0..count {
        let message = PayerMessage::from_bytes(black_box(&bytes))?;
        let refused = payee.handle_message(&message);
        ensure!(
            refused == Err(expected),
            "{expected:?} was expected, it came to {refused:?}"
        );
    }
    Ok((process_cpu_s() - began_s) * 1e9 / f64::from(count))
}

fn accepted(count: u32) -> Result<Measurement> {
    let channel = Channel::new()?;
    let bytes = PayerMessage::Roll(channel.roll(channel.next()?)?).to_bytes();
    let mut payees = vec![channel.payee.clone(); count as usize];
    let began_s = process_cpu_s();
    for payee in &mut payees {
        let message = PayerMessage::from_bytes(black_box(&bytes))?;
        payee
            .handle_message(&message)
            .map_err(|code| anyhow!("a good voucher was refused: {code:?}"))?;
    }
    let cpu_s = process_cpu_s() - began_s;
    let ns = cpu_s * 1e9 / f64::from(count);
    Ok(Measurement::new(ns, u64::from(count), cpu_s))
}
