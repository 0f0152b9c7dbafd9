//! How many handshakes one source may have under way.
//!
//! A handshake costs the listener a key exchange and two signatures before it knows who is there,
//! so no source gets more than its share of them at once. Whoever has proved a known key is
//! bounded by nothing here: a source may be a NAT with thousands of payers behind it.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Handshakes that one source may have under way.
pub(crate) const HANDSHAKES_PER_SOURCE_MAX: u32 = 256;

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
pub(crate) struct Sources(Arc<Mutex<HashMap<Source, u32>>>);

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
        let count = counts.entry(source).or_default();
        if *count >= HANDSHAKES_PER_SOURCE_MAX {
            return None;
        }
        *count += 1;
        Some(Place {
            sources: self.clone(),
            source,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let counts = self.sources.0.lock();
        let mut counts = counts.unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
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
        assert!(sources.0.lock().unwrap().is_empty());

        // A site's addresses are one source.
        let held: Vec<_> = (0..HANDSHAKES_PER_SOURCE_MAX)
            .map(|number| enter(&format!("2001:db8::{number:x}")).unwrap())
            .collect();
        assert!(enter("2001:db8::ffff:1").is_none());
        assert!(enter("2001:db8:0:1::1").is_some());
        drop(held);
    }
}
