//! What a paid unit costs, beside a signed voucher for each unit, which is how others pay.

use std::hint::black_box;

use anyhow::{Result, anyhow, ensure};
use k256::ecdsa::{
    Signature, SigningKey, VerifyingKey,
    signature::hazmat::{PrehashSigner as _, PrehashVerifier as _},
};
use sha3::{Digest as _, Keccak256};
use topnet_account::{Amount, ChannelId};
use topnet_channel::{PayerMessage, Roll, SignedVoucher, TOKENS_PER_VOUCHER_MAX, Voucher};

use super::{
    VERSION,
    parties::{channel, offer, signer},
    payers::Paying,
    plane::Offered,
    quic::{UNITS_PER_TOKEN, warm_provider},
};
use crate::{
    lane::{Better, Case, Contender, Measurement, process_cpu_s},
    lanes::Setup,
};

/// What a voucher of the other kind says, as EIP-712 writes it.
const EIP712_TYPE: &[u8] = b"Voucher(bytes32 channel,uint128 cumulativeAmount)";
const EIP712_DOMAIN: &[u8] = b"EIP712Domain(string name,string version,uint256 chainId)";
/// Channel, amount and a signature with its recovery id.
const EIP712_VOUCHER_BYTES: usize = 32 + 16 + 65;

/// The case.
pub fn case(setup: &Setup) -> Case {
    let size = setup.size;
    let whole = |paying| {
        let setup = setup.clone();
        Contender::new(VERSION, move || whole(&setup, paying))
    };
    let vouchers = size.vouchers();
    Case {
        name: "unit/cost".to_owned(),
        metric: "payee_cpu_ns_per_unit".to_owned(),
        unit: "ns".to_owned(),
        better: Better::Lower,
        mode: format!(
            "ours is the payee's whole process at saturation with {} payers over QUIC for {} s: \
             counting, link, tokens, books, synced journal and credit, one token for each unit; a \
             voucher for each unit is its signature alone, checked, without link, disk and \
             counting, and its bytes are its own",
            size.payers(),
            size.cost_seconds()
        ),
        ours: whole(Paying::EachUnit),
        peers: vec![
            (
                format!("the same, up to {UNITS_PER_TOKEN} units a token"),
                whole(Paying::Units(UNITS_PER_TOKEN)),
            ),
            (
                "an Ed25519 voucher a unit".to_owned(),
                Contender::new("ring 0.17", move || ed25519(vouchers)),
            ),
            (
                "a secp256k1 EIP-712 voucher a unit".to_owned(),
                Contender::new("k256 0.14, sha3 0.11", move || secp256k1(vouchers)),
            ),
        ],
    }
}

fn whole(setup: &Setup, paying: Paying) -> Result<Measurement> {
    let mut provider = warm_provider(setup, paying)?;
    let phase = provider.phase(Offered::Saturation, setup.size.cost_seconds())?;
    let (payee, payers) = (&phase.payee, &phase.payers);
    let cpu_s = payee.taken.cpu_s;
    Ok(
        Measurement::new(phase.per_unit(cpu_s * 1e9), phase.plane.units, cpu_s)
            .with("payer's CPU", phase.per_unit(payers.cpu_s * 1e9), "ns")
            .with("wire", phase.per_unit(payers.wire_bytes as f64), "bytes")
            .with("datagrams", phase.per_unit(payers.datagrams as f64), "1")
            .with(
                "disk",
                phase.per_unit(payee.taken.disk_bytes as f64),
                "bytes",
            )
            .with("tokens", phase.per_unit(payers.tokens as f64), "1")
            .with("units", phase.units_per_s(), "1/s"),
    )
}

/// What signing and checking take. The figure is the check, which is the payee's part.
fn signed<S>(
    count: u32,
    wire_bytes: usize,
    sign: impl Fn(u64) -> Result<S>,
    check: impl Fn(&S) -> bool,
) -> Result<Measurement> {
    let ns_each = |cpu_s: f64| cpu_s * 1e9 / f64::from(count);
    let began_s = process_cpu_s();
    let signed: Vec<S> = (1..=u64::from(count)).map(sign).collect::<Result<_>>()?;
    let signed_s = process_cpu_s();
    for voucher in &signed {
        ensure!(check(black_box(voucher)), "a good signature was refused");
    }
    let checked_s = process_cpu_s() - signed_s;
    Ok(
        Measurement::new(ns_each(checked_s), u64::from(count), checked_s)
            .with("payer's CPU", ns_each(signed_s - began_s), "ns")
            .with("wire", wire_bytes as f64, "bytes"),
    )
}

fn ed25519(count: u32) -> Result<Measurement> {
    let secret = signer(0)?;
    let key = secret.public_key();
    let voucher = |units| Voucher {
        channel: channel(0),
        seq: 1,
        cumulative_amount: Amount::from_ntop(units),
        cumulative_units: units,
        unit_price: offer().unit_price,
        tokens: TOKENS_PER_VOUCHER_MAX,
        root: [0; 32],
    };
    // Signed without the chain of tokens that ours carries.
    let sign = |units| {
        let voucher: Voucher = voucher(units);
        let signature = secret.sign(&voucher.signed_bytes());
        Ok(SignedVoucher { voucher, signature })
    };
    let message = PayerMessage::Roll(Roll {
        voucher: sign(1)?,
        retired_index: 0,
        retired_preimage: [0; 32],
    });
    signed(count, message.to_bytes().len(), sign, |voucher| {
        voucher.is_signed_by(&key)
    })
}

struct Eip712Voucher {
    channel: ChannelId,
    amount: u128,
    signature: Signature,
}

fn secp256k1(count: u32) -> Result<Measurement> {
    let secret = SigningKey::from_slice(signer(0)?.seed())
        .map_err(|_| anyhow!("the seed makes no secp256k1 key"))?;
    let key = VerifyingKey::from(&secret);
    let typed = Typed::new();
    let sign = |units: u64| {
        let (channel, amount) = (channel(0), u128::from(units));
        let signature = secret
            .sign_prehash(&typed.digest(channel, amount))
            .map_err(|_| anyhow!("secp256k1 does not sign"))?;
        Ok(Eip712Voucher {
            channel,
            amount,
            signature,
        })
    };
    signed(count, EIP712_VOUCHER_BYTES, sign, |voucher| {
        let digest = typed.digest(voucher.channel, voucher.amount);
        key.verify_prehash(&digest, &voucher.signature).is_ok()
    })
}

/// What EIP-712 hashes once for all vouchers.
struct Typed {
    voucher_type: [u8; 32],
    domain: [u8; 32],
}

impl Typed {
    fn new() -> Typed {
        let mut chain_id = [0; 32];
        chain_id[31] = 1;
        let domain = [
            keccak(&[EIP712_DOMAIN]),
            keccak(&[b"topnet"]),
            keccak(&[b"1"]),
            chain_id,
        ];
        Typed {
            voucher_type: keccak(&[EIP712_TYPE]),
            domain: keccak(&[domain.as_flattened()]),
        }
    }

    /// What is signed.
    fn digest(&self, channel: ChannelId, amount: u128) -> [u8; 32] {
        let mut word = [0; 32];
        word[16..].copy_from_slice(&amount.to_be_bytes());
        let voucher = keccak(&[&self.voucher_type, channel.as_bytes(), &word]);
        keccak(&[b"\x19\x01", &self.domain, &voucher])
    }
}

fn keccak(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Keccak256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first two lines of every contract that knows EIP-712.
    #[test]
    fn keccak_is_ethereums() {
        let hex = |bytes: [u8; 32]| bytes.map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(
            hex(keccak(&[b""])),
            "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
        );
        // The type hash of Uniswap's and OpenZeppelin's permits.
        assert_eq!(
            hex(keccak(&[
                b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
            ])),
            "8b73c3c69bb8fe3d512ecc4cf759cc79239f7b179b0ffacaa9a75d522b39400f"
        );
    }
}
