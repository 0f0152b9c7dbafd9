//! What it costs to be paid: a token through the payee's own handler, and a voucher.

use std::{hint::black_box, rc::Rc};

use anyhow::{Result, anyhow, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sha2::{Digest as _, Sha256};
use topnet_account::{Amount, ChannelId};
use topnet_channel::{
    Offer, PROTOCOL_VERSION, Payee, PayeeTerms, PayerMessage, Roll, SecretKey,
    TOKENS_PER_VOUCHER_MAX, Token, Voucher,
};

use crate::lane::{Better, Case, Contender, Lane, Measurement, per_second};

const CHANNELS: usize = 10_000;
const TOKENS_PER_CHANNEL: u16 = 100;
const VOUCHERS: usize = 5_000;
/// As long as the block that a token's hash fills.
const LINK_BYTES: usize = 52;

/// The payment path without link and disk.
pub struct TokenLane;

impl Lane for TokenLane {
    fn name(&self) -> &'static str {
        "token"
    }

    fn about(&self) -> &'static str {
        "tokens and vouchers through the payee's handler, beside the bare hash and signature"
    }

    fn cases(&self) -> Result<Vec<Case>> {
        Ok(vec![token_case()?, voucher_case()?])
    }
}

fn token_case() -> Result<Case> {
    let (payees, tokens) = paid_channels()?;
    let tokens = Rc::new(tokens);
    let count = tokens.len() as u64;
    let ours = move || {
        let mut payees = payees.clone();
        let tokens = tokens.clone();
        per_second(move || {
            for (place, token) in tokens.iter() {
                payees[*place]
                    .handle_token(token)
                    .map_err(|code| anyhow!("refused: {code:?}"))?;
            }
            black_box(&payees);
            Ok(tokens.len() as u64)
        })
    };
    let sha2 = move || hashes(count, |block| Sha256::digest(block).into());
    let ring = move || {
        hashes(count, |block| {
            let digest = ring::digest::digest(&ring::digest::SHA256, block);
            let mut bytes = [0; 32];
            bytes.copy_from_slice(digest.as_ref());
            bytes
        })
    };
    Ok(Case {
        name: "token/verify".to_owned(),
        metric: "tokens_per_s".to_owned(),
        unit: "1/s".to_owned(),
        better: Better::Higher,
        mode: format!("one core, {CHANNELS} channels in random order, one token at a time"),
        ours: Contender::new(env!("CARGO_PKG_VERSION"), ours),
        peers: vec![
            ("sha2, one block".to_owned(), Contender::new("0.11", sha2)),
            ("ring, one block".to_owned(), Contender::new("0.17", ring)),
        ],
    })
}

fn hashes(count: u64, hash: impl Fn(&[u8; LINK_BYTES]) -> [u8; 32]) -> Result<Measurement> {
    per_second(|| {
        let mut block = [7; LINK_BYTES];
        for _ in 0..count {
            // Each hash waits for the one before it, as along a chain.
            let link = hash(black_box(&block));
            block[..32].copy_from_slice(&link);
        }
        black_box(block);
        Ok(count)
    })
}

fn voucher_case() -> Result<Case> {
    let secret = SecretKey::from_seed([3; 32])?;
    let rolls: Vec<PayerMessage> = (0..VOUCHERS)
        .map(|number| first_roll(channel_id(number), &secret))
        .collect();
    let signed: Vec<_> = rolls.iter().filter_map(voucher_of).collect();
    let key = secret.public_key();
    let ours = move || {
        let payees: Vec<_> = (0..VOUCHERS)
            .map(|n| payee(channel_id(n), &secret))
            .collect();
        let rolls = &rolls;
        per_second(move || {
            for (mut payee, roll) in payees.into_iter().zip(rolls) {
                payee
                    .handle_message(roll)
                    .map_err(|code| anyhow!("refused: {code:?}"))?;
            }
            Ok(VOUCHERS as u64)
        })
    };
    let ring = move || {
        per_second(|| {
            for (bytes, signature) in &signed {
                ensure!(
                    topnet_channel::verify(&key, bytes, signature),
                    "a wrong signature"
                );
            }
            Ok(signed.len() as u64)
        })
    };
    Ok(Case {
        name: "voucher/verify".to_owned(),
        metric: "vouchers_per_s".to_owned(),
        unit: "1/s".to_owned(),
        better: Better::Higher,
        mode: "one core, the first voucher of each channel".to_owned(),
        ours: Contender::new(env!("CARGO_PKG_VERSION"), ours),
        peers: vec![(
            "ring, Ed25519 verify".to_owned(),
            Contender::new("0.17", ring),
        )],
    })
}

fn voucher_of(message: &PayerMessage) -> Option<(Vec<u8>, topnet_account::Signature)> {
    match message {
        PayerMessage::Roll(roll) => Some((
            roll.voucher.voucher.signed_bytes().to_vec(),
            roll.voucher.signature,
        )),
        _ => None,
    }
}

fn channel_id(number: usize) -> ChannelId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    ChannelId(Sha256::digest(bytes).into())
}

fn voucher(channel: ChannelId) -> Voucher {
    Voucher {
        channel,
        seq: 1,
        cumulative_amount: Amount::ZERO,
        cumulative_units: 0,
        unit_price: Amount::from_ntop(25),
        tokens: TOKENS_PER_VOUCHER_MAX,
        root: [0; 32],
    }
}

fn first_roll(channel: ChannelId, secret: &SecretKey) -> PayerMessage {
    let voucher = voucher(channel).sign(secret);
    PayerMessage::Roll(Roll {
        voucher,
        retired_index: 0,
        retired_preimage: [0; 32],
    })
}

fn payee(channel: ChannelId, secret: &SecretKey) -> Payee {
    let offer = Offer {
        version: PROTOCOL_VERSION,
        unit_price: Amount::from_ntop(25),
        epsilon_ppm: 5_000,
        window_max: 64,
    };
    let (signer, allocation) = (secret.public_key(), Amount::from_ntop(1_000_000));
    Payee::new(PayeeTerms {
        channel,
        signer,
        allocation,
        offer,
    })
}

/// Channels, and tokens each with its channel's place.
type PaidChannels = (Vec<Payee>, Vec<(usize, Token)>);

/// Every channel with its first voucher, and the tokens of all in the order in which they come:
/// at random over the channels, in sequence within each. A token is named by its channel's
/// place, which a payer's connection knows from its hello on.
fn paid_channels() -> Result<PaidChannels> {
    let secret = SecretKey::from_seed([3; 32])?;
    let mut payees = Vec::with_capacity(CHANNELS);
    let mut chains = Vec::with_capacity(CHANNELS);
    for number in 0..CHANNELS {
        let channel = channel_id(number);
        let mut payee = payee(channel, &secret);
        payee
            .handle_message(&first_roll(channel, &secret))
            .map_err(|code| anyhow!("refused: {code:?}"))?;
        payees.push(payee);
        chains.push((channel, voucher(channel).chain(&secret), 0_u16));
    }
    let mut random = StdRng::seed_from_u64(1);
    let mut tokens = Vec::with_capacity(CHANNELS * usize::from(TOKENS_PER_CHANNEL));
    while tokens.len() < tokens.capacity() {
        let place = random.random_range(0..CHANNELS);
        let (channel, chain, index) = &mut chains[place];
        if *index == TOKENS_PER_VOUCHER_MAX {
            continue;
        }
        *index += 1;
        let preimage = chain
            .preimage(*index)
            .ok_or_else(|| anyhow!("the chain is short"))?;
        let (channel, index) = (*channel, *index);
        let token = Token {
            channel,
            seq: 1,
            index,
            preimage,
            own_bytes: 0,
        };
        tokens.push((place, token));
    }
    Ok((payees, tokens))
}
