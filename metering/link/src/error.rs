//! Why a link cannot be had or has ended.

use std::{io, net::SocketAddr};

use topnet_account::PublicKey;

use crate::FRAME_BYTES_MAX;

/// Why a link cannot be had or has ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The port cannot be listened on: free it or choose another.
    #[error(
        "cannot listen for payments on UDP {address}: {source}; stop what holds the port or choose another"
    )]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The key makes no TLS identity.
    #[error("the key cannot be used for TLS: {0}")]
    Identity(rustls::Error),
    /// Nobody answered as a payment listener does: check the address, try again later.
    #[error(
        "no payment link to {address}: {reason}; is the address right and the provider running?"
    )]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// What QUIC said.
        reason: String,
    },
    /// Somebody else answered: the offer is stale or somebody stands in between. Do not pay.
    #[error("{address} holds the key {found}, not {expected}; ask for a fresh offer")]
    WrongKey {
        /// Where to.
        address: SocketAddr,
        /// The key of the offer.
        expected: PublicKey,
        /// The key that answered.
        found: PublicKey,
    },
    /// The other end took too long: connect again.
    #[error("the payment link's other end did not {0} in time")]
    Timeout(&'static str),
    /// The link is gone: connect again and resume.
    #[error("the payment link is lost: {0}")]
    Lost(String),
    /// A frame longer than any message: the other end speaks something else.
    #[error("a frame of {0} bytes; the longest message has {FRAME_BYTES_MAX}")]
    FrameTooLong(usize),
}
