//! Whose each inner address is: cryptokey routing, as WireGuard calls it.
//!
//! A paying client has one address, which is found by its place in the inner network. An
//! unmetered peer has networks (its allowed IPs), found by the longest prefix; none of them
//! overlaps what clients can have ([`crate::operators`]), so the order of the two does not matter.

use std::net::{IpAddr, Ipv4Addr};

use prefix_trie::PrefixMap;
use topnet_config::InnerNetwork;
use topnet_uapi::IpNetwork;

use crate::session::{Addresses, SessionIndex};

const NOBODY: u32 = u32::MAX;

/// All addresses that are somebody's.
pub struct Owners {
    inner: Option<InnerNetwork>,
    /// By host number in the inner network; [`NOBODY`] where there is no session.
    by_host: Box<[u32]>,
    networks4: PrefixMap<(u32, u8), SessionIndex>,
    networks6: PrefixMap<(u128, u8), SessionIndex>,
}

impl Owners {
    /// Nobody has an address yet. Room for clients is made here, as large as their network.
    #[must_use]
    pub fn new(inner: Option<InnerNetwork>) -> Self {
        let hosts = inner.map_or(0, |inner| inner.hosts_max() as usize);
        Self {
            inner,
            by_host: vec![NOBODY; hosts].into(),
            networks4: PrefixMap::new(),
            networks6: PrefixMap::new(),
        }
    }

    /// Whose the address is.
    #[must_use]
    pub fn of(&self, address: IpAddr) -> Option<SessionIndex> {
        let client = self.host(address).and_then(|host| self.client(host));
        client.or_else(|| self.of_network(address))
    }

    /// Whose the inner IPv4 address with this host number is.
    #[must_use]
    pub fn of_host(&self, host: u32) -> Option<SessionIndex> {
        self.client(host).or_else(|| {
            let network = self.inner?.v4().network();
            self.of_network(Ipv4Addr::from_bits(network.to_bits() + host).into())
        })
    }

    fn client(&self, host: u32) -> Option<SessionIndex> {
        let index = *self.by_host.get(host as usize)?;
        (index != NOBODY).then_some(SessionIndex(index))
    }

    /// Host numbers of a network's addresses in the inner IPv4 network.
    pub fn hosts(&self, network: &IpNetwork) -> std::ops::Range<u32> {
        let first = match network.address() {
            IpAddr::V4(address) => self.host(address.into()),
            IpAddr::V6(_) => None,
        };
        first.map_or(0..0, |first| {
            let addresses = 1u64 << (32 - u32::from(network.prefix_bits()));
            let hosts = self.by_host.len() as u64;
            first..hosts.min(u64::from(first) + addresses) as u32
        })
    }

    /// Place of an address in the inner network.
    #[must_use]
    pub fn host(&self, address: IpAddr) -> Option<u32> {
        self.inner?.host(address)
    }

    /// True if the address lies in the inner network, whether or not it is anybody's.
    #[must_use]
    pub fn is_inner(&self, address: IpAddr) -> bool {
        self.inner.is_some_and(|inner| inner.contains(address))
    }

    /// True for the gateway's own inner addresses.
    #[must_use]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.inner.is_some_and(|inner| inner.is_gateway(address))
    }

    /// True if the address may only be reached through the tunnel: it is inner, or a peer's.
    #[must_use]
    pub fn is_inside(&self, address: IpAddr) -> bool {
        self.is_inner(address) || self.of_network(address).is_some()
    }

    /// Gives a new session what it was made with.
    pub fn add(&mut self, index: SessionIndex, addresses: &Addresses) {
        match addresses {
            Addresses::Client(address) => {
                if let Some(place) = self.client_place(*address) {
                    *place = index.0;
                }
            }
            Addresses::Networks(networks) => {
                for network in networks {
                    self.add_network(network, index);
                }
            }
        }
    }

    /// Takes away what a session has.
    pub fn remove(&mut self, index: SessionIndex, addresses: &Addresses) {
        match addresses {
            Addresses::Client(address) => {
                if let Some(place) = self.client_place(*address)
                    && *place == index.0
                {
                    *place = NOBODY;
                }
            }
            Addresses::Networks(networks) => {
                for network in networks {
                    self.remove_network(network, index);
                }
            }
        }
    }

    /// Gives a network to a peer; whoever had exactly this one has it no more.
    pub fn add_network(&mut self, network: &IpNetwork, index: SessionIndex) {
        let bits = network.prefix_bits();
        match network.address() {
            IpAddr::V4(address) => {
                self.networks4.insert((address.to_bits(), bits), index);
            }
            IpAddr::V6(address) => {
                self.networks6.insert((address.to_bits(), bits), index);
            }
        }
    }

    /// Takes a network from a peer, if it is that peer's.
    pub fn remove_network(&mut self, network: &IpNetwork, index: SessionIndex) {
        let bits = network.prefix_bits();
        match network.address() {
            IpAddr::V4(address) => {
                let key = (address.to_bits(), bits);
                if self.networks4.get(&key) == Some(&index) {
                    self.networks4.remove(&key);
                }
            }
            IpAddr::V6(address) => {
                let key = (address.to_bits(), bits);
                if self.networks6.get(&key) == Some(&index) {
                    self.networks6.remove(&key);
                }
            }
        }
    }

    fn of_network(&self, address: IpAddr) -> Option<SessionIndex> {
        // Most gateways have clients only: then nothing is looked up.
        match address {
            IpAddr::V4(_) if self.networks4.is_empty() => None,
            IpAddr::V6(_) if self.networks6.is_empty() => None,
            IpAddr::V4(address) => {
                let found = self.networks4.get_lpm(&(address.to_bits(), 32));
                found.map(|(_, index)| *index)
            }
            IpAddr::V6(address) => {
                let found = self.networks6.get_lpm(&(address.to_bits(), 128));
                found.map(|(_, index)| *index)
            }
        }
    }

    fn client_place(&mut self, address: Ipv4Addr) -> Option<&mut u32> {
        let host = self.host(address.into())?;
        self.by_host.get_mut(host as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv6Addr;

    fn network(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins_and_what_is_lost_falls_to_the_next() {
        let mut owners = Owners::new(None);
        let (all, site, host) = (SessionIndex(1), SessionIndex(2), SessionIndex(3));
        owners.add_network(&network("0.0.0.0/0"), all);
        owners.add_network(&network("192.168.0.0/16"), site);
        owners.add_network(&network("192.168.1.7/32"), host);
        owners.add_network(&network("fd00::/8"), site);
        let cases = [
            ("192.168.1.7", Some(host)),
            ("192.168.1.8", Some(site)),
            ("9.9.9.9", Some(all)),
            ("fd01::1", Some(site)),
            ("2001:db8::1", None),
        ];
        for (text, owner) in cases {
            assert_eq!(owners.of(address(text)), owner, "{text}");
        }
        // Another peer's network is not taken away in its stead.
        owners.remove_network(&network("192.168.0.0/16"), all);
        assert_eq!(owners.of(address("192.168.1.8")), Some(site));
        owners.remove_network(&network("192.168.0.0/16"), site);
        assert_eq!(owners.of(address("192.168.1.8")), Some(all));
        assert!(owners.is_inside(address("1.2.3.4")));
    }

    proptest! {
        /// Against the plainest search: all networks, one after the other.
        #[test]
        fn finds_what_a_search_of_all_networks_finds(
            steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0u8..40, 0u8..=128, 0u32..5), 1..80),
            asked in prop::collection::vec((any::<bool>(), 0u8..40), 1..40),
        ) {
            // Few different addresses, so that networks nest.
            let at = |six: bool, number: u8| -> IpAddr {
                let bits = u32::from(number).wrapping_mul(0x2492_4925);
                if six {
                    Ipv6Addr::from_bits(u128::from(bits) << 64 | u128::from(bits)).into()
                } else {
                    Ipv4Addr::from_bits(bits).into()
                }
            };
            let mut owners = Owners::new(None);
            let mut plain: Vec<(IpNetwork, SessionIndex)> = Vec::new();
            for (add, six, number, bits, index) in steps {
                let bits = if six { bits } else { bits % 33 };
                let network = IpNetwork::containing(at(six, number), bits).unwrap();
                let index = SessionIndex(index);
                if add {
                    owners.add_network(&network, index);
                    plain.retain(|(other, _)| *other != network);
                    plain.push((network, index));
                } else {
                    owners.remove_network(&network, index);
                    plain.retain(|had| *had != (network, index));
                }
            }
            for (six, number) in asked {
                let address = at(six, number);
                let longest = plain
                    .iter()
                    .filter(|(network, _)| network.contains(address))
                    .max_by_key(|(network, _)| network.prefix_bits());
                prop_assert_eq!(owners.of(address), longest.map(|(_, index)| *index));
            }
        }
    }
}
