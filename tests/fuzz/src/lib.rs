//! What is fuzzed: every parser and both state machines of the payment path.
//!
//! A target is a function of bytes that panics if something is wrong. The fuzzer
//! (`cargo xtask fuzz`, with the engine in `engine/`, a workspace of its own) looks for bytes
//! that make one panic; the test `corpus` calls the same functions with the bytes in `corpus/`,
//! so that whatever was found once, and whatever reached far, is looked at by every test run.
//!
//! To add a target: write the function, add it to [`TARGETS`], and put at least one input under
//! `corpus/NAME/`.
#![forbid(unsafe_code)]
// A target that cannot go on panics: that is how it says so.
#![allow(clippy::unwrap_used)]

mod files;
mod headers;
mod ledger;
mod nat;
mod offload;
mod packet;
mod payee;
mod payer;
mod plane;
mod proof;
mod shared;
mod text;
mod uapi;
mod wire;

/// Looks at bytes from anywhere, and panics if something is wrong.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const TARGETS: &[(&str, Target)] = &[
    // Bytes that come over a wire.
    ("payer_message", wire::payer_message),
    ("payee_message", wire::payee_message),
    ("packet", packet::packet),
    ("plane", plane::plane),
    ("offload", offload::offload),
    ("nat", nat::nat),
    ("ledger", ledger::ledger),
    ("proof", proof::proof),
    ("text", text::text),
    ("uapi", uapi::uapi),
    // Bytes that come from a disk.
    ("payee_record", wire::payee_record),
    ("payer_record", wire::payer_record),
    ("facts", wire::facts),
    ("wallet_journal", files::wallet_journal),
    ("key_file", files::key_file),
    ("statement", files::statement),
    ("allowance", files::allowance),
    ("config", text::config),
    // Memory that another process writes.
    ("handover", shared::handover),
    ("ring", shared::ring),
    // Events in any order, messages of liars among them.
    ("payee", payee::payee),
    ("payer", payer::payer),
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS
        .iter()
        .find(|(other, _)| *other == name)
        .map(|(_, target)| *target)
}
