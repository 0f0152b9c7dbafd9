//! Carries payment messages over QUIC between two keys.
//!
//! A link is one QUIC connection with one bidirectional stream of frames. Each end proves
//! in the TLS 1.3 handshake that it holds an Ed25519 key, as a raw public key (RFC 7250):
//! there are no certificates, names or authorities. Who connects says which key it expects
//! to find; who listens is told which key came and decides itself what that key may do.
//!
//! What the frames mean is `topnet-channel`'s business.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod connection;
mod error;
mod frame;
mod identity;
mod listener;
mod socket;
mod sources;

pub use connection::{Connection, Datagrams, Dialer, Traffic, connect};
pub use error::LinkError;
pub use frame::{FRAME_BYTES_MAX, Receiver, Sender};
pub use listener::{Known, Limits, Listener};
