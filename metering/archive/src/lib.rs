//! Keeps sealed segments of the service log in an object store, named by their hash: the archive.
//!
//! The store is a folder or a bucket; `object_store`'s trait is the interface to both. It holds
//!
//! * `objects/HASH`: a sealed segment, byte for byte; the name is its BLAKE3 hash, so whoever
//!   reads it knows whether it is what was written;
//! * `segments/NUMBER`: the manifest's [`Entry`] of a segment: its hash, length, lines and times.
//!
//! The log's directory holds the same entries as `NUMBER.manifest`. With either of the two, and
//! the objects, every line is found again; so the store alone is enough.
//!
//! A segment's file goes from the directory only when the store has given back every byte of its
//! object, and the entry is durable in both places. Each step may be repeated, so a kill at any
//! point costs nothing. Nothing that is read counts before hash, seal and entry agree.
//!
//! Left to others: what is in a segment (`topnet-log`), when one is sealed for good (the journal),
//! when to try again and whom to tell (`topnet-metering`).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod archive;
mod entry;
mod error;
mod manifest;
mod read;
mod restore;
mod store;
#[cfg(test)]
mod tests;
mod verify;

pub use archive::{Archive, forget_files_before, waiting};
pub use entry::{Entry, ObjectHash, ObjectHashError};
pub use error::ArchiveError;
pub use read::{Segment, State};
pub use restore::Restored;
pub use verify::{Finding, Verdict};
