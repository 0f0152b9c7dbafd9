//! Checks what a chain says with its validators' keys alone: that a header is final, and that a
//! value stands in the state whose root the header carries.
//!
//! A ledger, a node and a light client use the same [`EngineVerifier`], so no two of them
//! disagree. It needs the engine's types and cryptography, and neither its network nor its
//! storage.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod header;
mod value;
mod verifier;

pub use header::{
    Context, Header, HeaderFields, StateTarget, digest_of, domain_digest, engine_key_of, hash_of,
    public_key_of,
};
pub use value::{PROOF_HASHES_MAX, STATUS_BYTES, ValueProof, key_digest};
pub use verifier::{EngineVerifier, Proof, StateProof, StateValue, committee, namespace};

/// Most validators of a chain.
pub const VALIDATORS_MAX: usize = 256;
/// Longest value of a state key.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
