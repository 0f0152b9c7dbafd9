//! Says who used what when, and proves each line of it: the service log.
//!
//! A [`Line`] says of one channel which units were begun, by when, and where they were counted.
//! A channel's lines are the leaves of a Merkle tree ([`Frontier`]), and the tree's root goes
//! into the channel's claims: whoever holds the lines can show any one of them to whoever holds
//! the claim, with a [`Proof`], and nobody can change a line afterwards. [`Segments`] keep the
//! lines of all channels in the order of time, in files that only grow.
//!
//! Left to others: when a line is due (`topnet-books`), at which place of the segments the
//! journal stands (`topnet-metering`), and where full ones are kept (`topnet-archive`).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod line;
mod segment;
mod tree;

pub use line::{LINE_BYTES, Line};
pub use segment::{
    LogError, MANIFEST_SUFFIX, Position, SEGMENT_LINES, Segments, is_sealed, number_of, numbers,
    numbers_with, read_sealed, read_segment, segment_name, segment_path,
};
pub use tree::{Frontier, LEVELS_MAX, Peak, Proof, log_root, prove};
