//! The way from one value of the state up to its root.

use commonware_cryptography::{Sha256, sha256::Digest};
use commonware_storage::{
    mmr,
    qmdb::{
        any::unordered::{Update, variable::Operation},
        current::unordered::proof::constant::KeyValueProof,
    },
};
use topnet_ledger::machine::Key;

use crate::header::domain_digest;

/// Bytes of status bits that are hashed together, for 256 updates. More make proofs longer, fewer
/// take more memory.
pub const STATUS_BYTES: usize = 32;
/// Hashes in a proof, at most: a log of 2^63 updates has fewer.
pub const PROOF_HASHES_MAX: usize = 128;

const KEY_DOMAIN: &[u8] = b"topnet/state-key/1";

/// Shows that a value is the current one.
pub type ValueProof = KeyValueProof<mmr::Family, Digest, STATUS_BYTES>;

/// What a key is called in storage and proofs.
pub fn key_digest(key: &Key) -> Digest {
    domain_digest(KEY_DOMAIN, &[&key.0])
}

/// True if `value` stands under `key` in the state with this root.
pub(crate) fn is_proved(key: &Key, value: Vec<u8>, proof: &ValueProof, root: &Digest) -> bool {
    let update = Operation::<mmr::Family, Digest, Vec<u8>>::Update(Update(key_digest(key), value));
    proof.verify::<Sha256, _>(update, root)
}
