//! Proofs of values, which anybody may bring to a light client, a tower or a ledger.

use std::sync::LazyLock;

use topnet_account::{Hash, PublicKey};
use topnet_ledger::machine::{Key, Verifier as _};
use topnet_light::{EngineVerifier, Header};

/// A proof that four validators signed once.
const GOLDEN: &str = include_str!("../../../settlement/light/tests/golden_proof.txt");

static SIGNED: LazyLock<Signed> = LazyLock::new(Signed::golden);

struct Signed {
    chain: Hash,
    validators: Vec<PublicKey>,
    key: Key,
    value: Vec<u8>,
    header: Header,
    proof: Vec<u8>,
}

/// A proof as the bytes are, or the golden one with bytes changed, or with a part of it replaced.
/// Validators have signed one state only, so nothing but that passes.
pub(crate) fn proof(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    let proof = match kind % 3 {
        0 => rest.to_vec(),
        1 => changed(rest),
        _ => spliced(rest),
    };
    let Signed {
        chain,
        validators,
        key,
        value,
        header,
        ..
    } = &*SIGNED;
    if let Some(shown) = EngineVerifier.prove_value(chain, validators, key, &proof) {
        assert_eq!(shown, (header.clone(), value.clone()));
    }
    if let Some(shown) = EngineVerifier.prove(chain, validators, &proof) {
        assert_eq!(shown, *header);
    }
    if let Some(shown) = EngineVerifier.state_value(&header.state_root(), key, &proof) {
        assert_eq!(shown, *value);
    }
}

/// Each change is where and what.
fn changed(mut changes: &[u8]) -> Vec<u8> {
    let mut proof = SIGNED.proof.clone();
    while let Some(([high, low, mask], rest)) = changes.split_first_chunk() {
        let place = usize::from(u16::from_be_bytes([*high, *low])) % proof.len();
        proof[place] ^= mask;
        changes = rest;
    }
    proof
}

/// From where on, how much of it goes, and what comes instead.
fn spliced(bytes: &[u8]) -> Vec<u8> {
    let proof = &SIGNED.proof;
    let Some(([high, low, gone], instead)) = bytes.split_first_chunk() else {
        return proof.clone();
    };
    let from = usize::from(u16::from_be_bytes([*high, *low])) % proof.len();
    let to = (from + usize::from(*gone)).min(proof.len());
    [&proof[..from], instead, &proof[to..]].concat()
}

impl Signed {
    fn golden() -> Self {
        let all = |name: &str| -> Vec<Vec<u8>> {
            let lines = GOLDEN.lines().filter_map(|line| line.split_once(' '));
            let found = lines.filter(|(found, _)| *found == name);
            found.map(|(_, hex)| from_hex(hex)).collect()
        };
        let one = |name: &str| all(name).remove(0);
        let chain = Hash(one("chain").try_into().unwrap());
        let validators: Vec<PublicKey> = all("validator")
            .into_iter()
            .map(|key| PublicKey(key.try_into().unwrap()))
            .collect();
        let (key, proof) = (Key(one("key")), one("proof"));
        let shown = EngineVerifier.prove_value(&chain, &validators, &key, &proof);
        let (header, value) = shown.unwrap();
        Self {
            chain,
            validators,
            key,
            value,
            header,
            proof,
        }
    }
}

fn from_hex(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
