//! Which remote addresses a TCP mapping has connections with, whatever their ports: what
//! address-dependent filtering asks when a remote calls back from another port.
//!
//! UDP and ICMP need no such table there, since their flows are by address alone. To walk a
//! mapping's flows instead would let strangers buy a long walk with one packet.

use crate::chains::{Chains, NONE, Slab};
use crate::hash::Hash;

struct Host {
    mapping: u32,
    remote: u32,
    flows: u32,
    next: u32,
}

/// Memory of one.
pub(crate) const HOST_BYTES: usize = size_of::<Host>();

/// Remote addresses by mapping, counted.
pub(crate) struct Hosts {
    entries: Slab<Host>,
    index: Chains,
}

impl Hosts {
    /// There are never more hosts than flows.
    pub(crate) fn new(flows_max: u32) -> Self {
        Self {
            entries: Slab::new(flows_max),
            index: Chains::new(flows_max),
        }
    }

    fn find(&self, hash: u64, mapping: u32, remote: u32) -> Option<u32> {
        let is_it = |host: &Host| host.mapping == mapping && host.remote == remote;
        self.index.find(hash, &self.entries, |h| h.next, is_it)
    }

    pub(crate) fn contains(&self, hash: &Hash, mapping: u32, remote: u32) -> bool {
        self.find(host_hash(hash, mapping, remote), mapping, remote)
            .is_some()
    }

    /// One more flow of the mapping with this address.
    pub(crate) fn add(&mut self, hash: &Hash, mapping: u32, remote: u32) {
        let hash = host_hash(hash, mapping, remote);
        if let Some(place) = self.find(hash, mapping, remote) {
            self.entries[place].flows += 1;
            return;
        }
        let host = Host {
            mapping,
            remote,
            flows: 1,
            next: NONE,
        };
        if let Some(place) = self.entries.insert(host) {
            self.index
                .insert(hash, &mut self.entries, place, |h| &mut h.next);
        }
    }

    /// One fewer.
    pub(crate) fn remove(&mut self, hash: &Hash, mapping: u32, remote: u32) {
        let hash = host_hash(hash, mapping, remote);
        let Some(place) = self.find(hash, mapping, remote) else {
            debug_assert!(false, "a flow whose host was not counted");
            return;
        };
        self.entries[place].flows -= 1;
        if self.entries[place].flows == 0 {
            self.index
                .remove(hash, &mut self.entries, place, |h| &mut h.next);
            self.entries.release(place);
        }
    }
}

fn host_hash(hash: &Hash, mapping: u32, remote: u32) -> u64 {
    hash.of([u64::from(mapping) << 32 | u64::from(remote)], 0)
}
