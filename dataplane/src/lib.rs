//! Forwards sessions' packets, counts them and stops at the credit limit.
//!
//! The path of a packet: the XDP program (`ebpf/program`) steers it to an AF_XDP socket, or the
//! kernel to a UDP socket or a TUN device ([`io`]); the worker ([`worker`]) takes a burst;
//! [`plane`] decides about each packet — WireGuard, checks, credit ([`accounting`]), next hop
//! ([`forwarding`]) — and writes what is sent; handshakes are looked at by a thread of their own
//! first ([`handshakes`]); with several workers, what is another's session's is passed to it
//! ([`team`]); the burst's counts go to the shared tables. Around it the control thread keeps
//! routes and neighbours fresh ([`netlink`]), installs sessions ([`registry`], [`slots`]) and
//! answers requests ([`service`]).
//!
//! `unsafe` is confined to [`io`] (AF_XDP's rings, the TUN driver's requests, two socket options)
//! and one line of [`xdp`].
//!
//! What happens when something dies: metering — every slot runs to its limit and stops.
//! This process — the kernel closes its `bpf_link`s and removes its TUN device, the program is
//! gone from the interfaces and tunnels stand still until the next start; nothing is forwarded
//! unpaid, because the kernel has no route for the inner subnet. The tables stay readable for whoever has them.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod accounting;
mod capture;
pub mod drops;
pub mod endpoints;
mod error;
pub mod fairness;
mod files;
pub mod forwarding;
pub mod handshakes;
pub mod icmp;
#[allow(unsafe_code)]
pub mod io;
pub mod link;
pub mod nat_log;
pub mod nat_state;
pub mod netlink;
pub mod operators;
pub mod orders;
pub mod owners;
pub mod packet;
pub mod plane;
mod pool;
mod ports;
pub mod rate;
pub mod registry;
mod reload;
mod routing;
mod run;
pub mod segment_size;
pub mod service;
pub mod session;
pub mod slots;
pub mod solicited;
mod tables;
pub mod team;
pub mod translation;
mod ways;
pub mod wireguard;
pub mod worker;
#[allow(unsafe_code)]
pub mod xdp;

pub use error::RunError;
pub use run::run;
