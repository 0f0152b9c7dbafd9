//! The edges of Ed25519, where implementations are known to disagree (Chalkias, Garillot,
//! Nikolaenko: Taming the many EdDSAs, 2020): small orders, mixed orders, encodings that are not
//! canonical. A payee checks vouchers with `ring` and serves on the strength of it, so the chain
//! must take whatever `ring` takes; and it must not matter in which company a signature is
//! checked.
#![allow(clippy::unwrap_used)]

use curve25519_dalek::{EdwardsPoint, Scalar, constants::EIGHT_TORSION};
use sha2::{Digest as _, Sha512};
use topnet_account::{PublicKey, Signature};
use topnet_channel::{SecretKey, verify};
use topnet_ledger::machine::{Signed, Verifier as _};
use topnet_light::EngineVerifier;

/// The order of the base point, little-endian.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// A signature as it is checked.
struct Case {
    key: PublicKey,
    bytes: Vec<u8>,
    signature: Signature,
}

impl Case {
    fn new(key: [u8; 32], r: [u8; 32], s: [u8; 32], bytes: Vec<u8>) -> Self {
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&r);
        signature[32..].copy_from_slice(&s);
        Self {
            key: PublicKey(key),
            bytes,
            signature: Signature(signature),
        }
    }

    fn signed(&self) -> Signed<'_> {
        Signed {
            key: &self.key,
            bytes: &self.bytes,
            signature: &self.signature,
        }
    }

    /// Whether the payee takes it and whether the chain does.
    fn verdicts(&self, name: &str) -> (bool, bool) {
        let good = honest(1);
        let (this, other) = (self.signed(), good.signed());
        let alone = EngineVerifier.signatures_hold(&[this]);
        for company in [vec![this; 6], vec![other, other, this, other, other]] {
            let together = EngineVerifier.signatures_hold(&company);
            assert_eq!(together, alone, "{name}: alone and in company");
        }
        let ring = verify(&self.key, &self.bytes, &self.signature);
        assert!(
            !ring || alone,
            "{name}: the payee takes it, the chain does not"
        );
        (ring, alone)
    }
}

/// Bytes in the form of all that is signed: a domain with its length, then a message.
fn message(number: u8) -> Vec<u8> {
    [&[4], &b"edge"[..], &[number]].concat()
}

fn honest(number: u8) -> Case {
    let secret = SecretKey::from_seed([7; 32]).unwrap();
    let bytes = message(number);
    Case {
        key: secret.public_key(),
        signature: secret.sign(&bytes),
        bytes,
    }
}

/// The eight points of small order, in all their encodings: eight canonical, six not.
fn small_order() -> Vec<[u8; 32]> {
    let mut encodings: Vec<[u8; 32]> = EIGHT_TORSION
        .map(|point| point.compress().to_bytes())
        .into();
    let all = |first: u8, last: u8| {
        let mut bytes = [if first == 1 { 0 } else { 0xff }; 32];
        (bytes[0], bytes[31]) = (first, last);
        bytes
    };
    encodings.extend([
        // y is 1 or -1 and x is a negative zero.
        all(0x01, 0x80),
        all(0xec, 0xff),
        // y is p or p + 1 instead of 0 or 1.
        all(0xed, 0x7f),
        all(0xed, 0xff),
        all(0xee, 0x7f),
        all(0xee, 0xff),
    ]);
    encodings
}

/// With s = 0, and a key and a commitment of small order, only rules that ignore small orders
/// hold for every message.
#[test]
fn small_orders_in_every_encoding() {
    let (mut by_ring, mut by_ring_not_canonical) = (0, 0);
    for (i, key) in small_order().into_iter().enumerate() {
        for (j, r) in small_order().into_iter().enumerate() {
            for number in 0..16 {
                let case = Case::new(key, r, [0; 32], message(number));
                let name = format!("key {i}, commitment {j}, message {number}");
                let (ring, chain) = case.verdicts(&name);
                assert!(chain, "{name}: ZIP-215 takes it");
                by_ring += u32::from(ring);
                by_ring_not_canonical += u32::from(ring && i >= 8);
            }
        }
    }
    // If the payee took none of them, nothing would be shown.
    assert!(by_ring > 0 && by_ring_not_canonical > 0);
}

/// A key and a commitment that are honest but for a part of small order: those who multiply by
/// the cofactor take all, the others only where the parts cancel out.
#[test]
fn mixed_orders() {
    let (a, r) = (Scalar::from(0x5eed_u64), Scalar::from(0xfade_u64));
    let (mut taken, mut refused) = (0, 0);
    for (i, of_key) in EIGHT_TORSION.into_iter().enumerate() {
        for (j, of_commitment) in EIGHT_TORSION.into_iter().enumerate() {
            for number in 0..4 {
                let key = (EdwardsPoint::mul_base(&a) + of_key).compress().to_bytes();
                let commitment = EdwardsPoint::mul_base(&r) + of_commitment;
                let commitment = commitment.compress().to_bytes();
                let bytes = message(number);
                let hash = Sha512::new()
                    .chain_update(commitment)
                    .chain_update(key)
                    .chain_update(&bytes)
                    .finalize();
                let k = Scalar::from_bytes_mod_order_wide(&hash.into());
                let s = (r + k * a).to_bytes();
                let name = format!("key {i}, commitment {j}, message {number}");
                let (ring, chain) = Case::new(key, commitment, s, bytes).verdicts(&name);
                assert!(chain, "{name}: ZIP-215 takes it");
                match ring {
                    true => taken += 1,
                    false => refused += 1,
                }
            }
        }
    }
    assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
}

/// What neither takes, nor may: there would be two signatures for one consent.
#[test]
fn flawed_signatures() {
    type Flaw = fn(&mut Case);
    let cases: [(&str, Flaw, bool); 7] = [
        ("none", |_| {}, true),
        ("message", |case| case.bytes[5] ^= 1, false),
        ("commitment", |case| case.signature.0[0] ^= 1, false),
        ("scalar", |case| case.signature.0[32] ^= 1, false),
        (
            "scalar that is not reduced",
            |case| {
                let mut carry = 0;
                for (byte, order) in case.signature.0[32..].iter_mut().zip(ORDER) {
                    let sum = u16::from(*byte) + u16::from(order) + carry;
                    (*byte, carry) = (sum as u8, sum >> 8);
                }
            },
            false,
        ),
        (
            "scalar's high bits",
            |case| case.signature.0[63] |= 0xe0,
            false,
        ),
        ("key", |case| case.key.0 = [2; 32], false),
    ];
    for (name, flaw, holds) in cases {
        let mut case = honest(0);
        flaw(&mut case);
        assert_eq!(case.verdicts(name), (holds, holds), "{name}");
    }
}
