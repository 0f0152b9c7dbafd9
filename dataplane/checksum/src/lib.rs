//! The Internet checksum (RFC 1071), for everybody on the path of a packet: [`checksum`] of bytes,
//! a [`Sum`] out of parts, and a [`Change`] that mends one without summing up anew (RFC 1624).
//!
//! Left to others: where checksums stand, what they cover, and UDP's rule that zero says none
//! beyond [`Change::mend_udp`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod change;
mod sum;

pub use change::Change;
pub use sum::{BYTES_MAX, Sum};

/// The Internet checksum of at most [`BYTES_MAX`] bytes; zero over bytes whose checksum is right.
#[inline]
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(Sum::of(bytes).complement())
}
