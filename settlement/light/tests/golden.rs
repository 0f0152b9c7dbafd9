//! A proof that four validators once signed, in `golden_proof.txt`: a chain's clients have such
//! bytes on their disks, so a change here is a new format, and needs a new version of the header.
//! (`TOPNET_WRITE_PROOF=FILE cargo test -p topnet-chain --test chain four_validators` writes one.)
#![allow(clippy::unwrap_used)]

use topnet_account::{Hash, PublicKey};
use topnet_ledger::machine::Key;
use topnet_light::EngineVerifier;

const GOLDEN: &str = include_str!("golden_proof.txt");

fn all(name: &str) -> Vec<Vec<u8>> {
    let lines = GOLDEN.lines().filter_map(|line| line.split_once(' '));
    let found = lines.filter(|(found, _)| *found == name);
    found.map(|(_, hex)| from_hex(hex)).collect()
}

fn from_hex(hex: &str) -> Vec<u8> {
    let bytes = hex.as_bytes().chunks(2);
    bytes
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn one(name: &str) -> Vec<u8> {
    all(name).remove(0)
}

#[test]
fn what_was_signed_once_still_proves_the_same() {
    let chain = Hash(one("chain").try_into().unwrap());
    let validators: Vec<PublicKey> = all("validator")
        .into_iter()
        .map(|key| PublicKey(key.try_into().unwrap()))
        .collect();
    assert_eq!(validators.len(), 4);
    let (key, proof) = (Key(one("key")), one("proof"));
    let shown = EngineVerifier.prove_value(&chain, &validators, &key, &proof);
    let (header, value) = shown.unwrap();
    assert_eq!(value, one("value"));
    let height = GOLDEN.lines().find_map(|line| line.strip_prefix("height "));
    assert_eq!(height, Some(header.height().to_string().as_str()));
    for place in 0..proof.len() {
        let mut changed = proof.clone();
        changed[place] ^= 1;
        let shown = EngineVerifier.prove_value(&chain, &validators, &key, &changed);
        assert_eq!(shown, None, "byte {place} of {}", proof.len());
    }
}
