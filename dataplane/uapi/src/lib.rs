//! The text that WireGuard's tools speak, read and written without touching anything.
//!
//! | what | here |
//! |---|---|
//! | what `wg` sends over `/var/run/wireguard/IF.sock` | [`RequestReader`], [`Request`], [`Set`] |
//! | what it is answered | [`DeviceStatus`], [`Errno`], [`AnswerReader`] |
//! | what a device is configured to be, and what a request changes | [`Device`], [`Change`] |
//! | `wg0.conf`, as `wg setconf` and `wg-quick` read it | [`Conf`] |
//!
//! The protocol is <https://www.wireguard.com/xplatform/>; where it leaves something open,
//! wireguard-go decides. Everything is bounded by [`Limits`], since whoever may open the socket
//! may write without end.
//!
//! Left to others: sockets, files, resolving host names, and what the changes do to a tunnel.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod answer;
mod conf;
mod device;
mod key;
mod limits;
mod lines;
mod network;
mod reader;
mod request;
mod value;

pub use answer::{AnswerError, AnswerReader, DeviceStatus, Errno, PeerStatus};
pub use conf::{
    CONF_BYTES_MAX, CommandLine, Conf, ConfError, ConfInterface, ConfPeer, ConfProblem,
    EndpointName, Word,
};
pub use device::{Change, Device, DeviceFull, Peer, PeerChange, PublicKeyOf, Traffic};
pub use key::{KEY_BYTES, KeyUpdate, PresharedKey, PrivateKey, PublicKey};
pub use limits::Limits;
pub use network::{InterfaceAddress, IpNetwork, NetworkError};
pub use reader::{Problem, Refusal, RequestReader};
pub use request::{AllowedIpChange, PeerSet, Request, Set};
