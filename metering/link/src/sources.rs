//! How many handshakes one source may have under way.
//!
//! A handshake costs the listener a key exchange and two signatures before it knows who is there,
//! so no source gets more than its share of them at once. Whoever has proved a known key is
//! bounded by nothing here: a source may be a NAT with thousands of payers behind it. A source is
//! only as good as its address, which anybody can write into a datagram: while many handshakes
//! are under way, addresses must answer first.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Handshakes that one source may have under way.
pub(crate) const HANDSHAKES_PER_SOURCE_MAX: u32 = 256;

/// While so many handshakes are under way in all, an address must answer a retry packet
/// (RFC 9000, 8.1.2) before it gets one: one more round trip, and invented addresses cost no
/// cryptography but the packet's own.
pub(crate) const HANDSHAKES_UNVALIDATED_MAX: usize = 64;

/// An IPv4 address, or the 64 bits of an IPv6 address that a site is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [site @ .., _, _, _, _, _, _, _, _] = address.octets();
                Self::V6(site)
            }
        }
    }
}

/// Counts handshakes by source.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    by_source: HashMap<Source, u32>,
    under_way: usize,
}

/// A handshake's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    sources: Sources,
    source: Source,
}

impl Sources {
    /// A place for a handshake from `address`; `None` if its source has all that it may have.
    pub(crate) fn enter(&self, address: IpAddr) -> Option<Place> {
        let source = Source::of(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.by_source.entry(source).or_default();
        if *count >= HANDSHAKES_PER_SOURCE_MAX {
            return None;
        }
        *count += 1;
        counts.under_way += 1;
        Some(Place {
            sources: self.clone(),
            source,
        })
    }

    /// True if an address must prove itself before it gets a handshake.
    pub(crate) fn are_many(&self) -> bool {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.under_way >= HANDSHAKES_UNVALIDATED_MAX
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let counts = self.sources.0.lock();
        let mut counts = counts.unwrap_or_else(PoisonError::into_inner);
        counts.under_way -= 1;
        if let Some(count) = counts.by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_its_share_and_others_theirs_and_places_come_back() {
        let sources = Sources::default();
        let address = |text: &str| text.parse().unwrap();
        let enter = |text: &str| sources.enter(address(text));
        let mut held: Vec<_> = (0..HANDSHAKES_PER_SOURCE_MAX)
            .map(|_| enter("192.0.2.1").unwrap())
            .collect();
        assert!(enter("192.0.2.1").is_none());
        // The same address, as a socket for both families shows it.
        assert!(enter("::ffff:192.0.2.1").is_none());
        assert!(enter("192.0.2.2").is_some());
        held.pop();
        assert!(enter("192.0.2.1").is_some());
        held.clear();
        assert!(sources.0.lock().unwrap().by_source.is_empty());

        // A site's addresses are one source.
        let held: Vec<_> = (0..HANDSHAKES_PER_SOURCE_MAX)
            .map(|number| enter(&format!("2001:db8::{number:x}")).unwrap())
            .collect();
        assert!(enter("2001:db8::ffff:1").is_none());
        assert!(enter("2001:db8:0:1::1").is_some());
        assert!(sources.are_many());
        drop(held);
        assert!(!sources.are_many());
    }
}
