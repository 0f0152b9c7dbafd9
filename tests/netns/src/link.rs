//! veth pairs between two namespaces.

use crate::namespace::{ip, run};
use crate::{Namespace, Result};
use std::process::Command;

/// One end of a pair: the interface that appears in a namespace.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// Where the interface lives.
    pub namespace: &'a Namespace,
    /// Its name there, at most 15 bytes.
    pub interface: &'a str,
    /// Its address with the prefix length, as in `10.77.1.2/24`.
    pub address: &'a str,
}

/// What a pair is made with.
#[derive(Clone, Copy, Debug)]
pub struct Veth {
    /// Receive and transmit queues of each end. More than one must be asked for at creation.
    pub queues: u32,
    /// MTU of both ends in bytes.
    pub mtu_bytes: u32,
}

impl Default for Veth {
    fn default() -> Veth {
        Veth {
            queues: 1,
            mtu_bytes: 1500,
        }
    }
}

impl Veth {
    /// Makes the pair, gives each end its address and brings both up. The pair disappears with
    /// either namespace.
    pub fn connect(&self, near: Endpoint<'_>, far: Endpoint<'_>) -> Result<()> {
        let queues = self.queues.to_string();
        let mtu = self.mtu_bytes.to_string();
        let shape = ["mtu", &mtu, "numrxqueues", &queues, "numtxqueues", &queues];
        // The pair is created inside `near`, so that it never shows on the host.
        let mut make = ip(["-n", near.namespace.name(), "link", "add"]);
        make.args(["name", near.interface])
            .args(shape)
            .args(["type", "veth", "peer", "name", far.interface])
            .args(["netns", far.namespace.name()])
            .args(shape);
        run(make)?;
        for end in [near, far] {
            let inside = ["-n", end.namespace.name()];
            let mut address = ip(inside);
            address.args(["address", "add", end.address, "dev", end.interface]);
            run(address)?;
            let mut up = ip(inside);
            up.args(["link", "set", end.interface, "up"]);
            run(up)?;
        }
        Ok(())
    }
}

/// A feature that `ethtool -K` switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Checksums left unfinished by the sender. A packet that goes through XDP or AF_XDP with
    /// one arrives broken, so it is off where those are used.
    TxChecksum,
    /// TCP segmentation by the receiver of large frames.
    Tso,
    /// Generic segmentation.
    Gso,
    /// Generic receive offload. On a veth end it also turns on NAPI, without which frames that
    /// XDP redirects into the pair's other end are lost.
    Gro,
}

impl Offload {
    fn feature(self) -> &'static str {
        match self {
            Offload::TxChecksum => "tx",
            Offload::Tso => "tso",
            Offload::Gso => "gso",
            Offload::Gro => "gro",
        }
    }
}

impl Namespace {
    /// Switches an offload of one of this namespace's interfaces.
    pub fn offload(&self, interface: &str, offload: Offload, on: bool) -> Result<()> {
        let state = if on { "on" } else { "off" };
        let mut command = Command::new("ethtool");
        command.args(["-K", interface, offload.feature(), state]);
        self.run(command).map(drop)
    }
}
