//! `[dataplane.nat]`: the public addresses that clients share.

use std::path::PathBuf;

use serde::Deserialize;

use crate::{Base, Ipv4Subnet, default, error::Problems};

/// Addresses in one table; more would not fit its memory.
const PREFIX_BITS_MIN: u8 = 22;
/// Ports of an address that are lent: those below 1024 are not.
const PORTS: u16 = 65_535 - 1_023;
/// Blocks are whole words of bits.
const BLOCK_PORTS_STEP: u16 = 64;
const BLOCKS_MAX: u16 = 1_024;

/// Address translation for IPv4 (RFC 6888).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nat {
    /// The pool: a network that is routed to this machine and none of whose addresses it has.
    pub addresses: Ipv4Subnet,
    /// Ports of a block. A client is lent blocks, and each lending is one line of the log.
    #[serde(default = "default::u16::<512>")]
    pub block_ports: u16,
    /// Blocks that one client may have.
    #[serde(default = "default::u16::<8>")]
    pub blocks_per_client_max: u16,
    /// Who had which ports when: one line for each block that is lent or given back.
    #[serde(default)]
    pub log_file: PathBuf,
}

impl Nat {
    pub(crate) fn resolve(&mut self, base: &Base<'_>) {
        base.join_data(&mut self.log_file, "dataplane/nat.log");
    }

    pub(crate) fn check(&self, inner: Ipv4Subnet, problems: &mut Problems<'_>) {
        let pool = self.addresses;
        if pool.prefix_bits() < PREFIX_BITS_MIN {
            problems.add(
                "nat.addresses",
                format!("{pool} has more than 1024 addresses"),
                "choose a network of at least 22 bits",
            );
        }
        if inner.contains(pool.network()) || pool.contains(inner.network()) {
            problems.add(
                "nat.addresses",
                format!("{pool} and inner_subnet {inner} overlap"),
                "choose addresses that no client has",
            );
        }
        let ports = self.block_ports;
        if ports == 0 || !ports.is_multiple_of(BLOCK_PORTS_STEP) || ports > PORTS {
            problems.add(
                "nat.block_ports",
                format!("{ports} is no size of a block"),
                "choose a multiple of 64 up to 64512",
            );
        }
        if !(1..=BLOCKS_MAX).contains(&self.blocks_per_client_max) {
            problems.add(
                "nat.blocks_per_client_max",
                format!("{} is out of range", self.blocks_per_client_max),
                "choose 1 to 1024",
            );
        }
    }
}
