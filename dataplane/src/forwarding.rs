//! Where a packet goes next, by the kernel's own routes and neighbours.
//!
//! A [`Forwarding`] is a snapshot: the control thread builds one from netlink whenever
//! something changed and hands it to the worker, which never waits for a lock. Tables are
//! looked up in the order of the kernel's default rules: local, main, default; rules that an
//! operator added (`ip rule`) are left to the kernel and not read.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::packet::MacAddress;

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteTarget {
    /// The host itself, a broadcast or a multicast group.
    Local,
    /// Out of an interface, to the gateway if there is one, else to the destination itself.
    Forward {
        /// Kernel index of the interface.
        interface: u32,
        /// Next router.
        gateway: Option<Ipv4Addr>,
    },
    /// Blackhole, unreachable or prohibited.
    Refuse,
    /// Not in this table; the next one decides.
    Throw,
}

/// One route of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Network, host bits zero.
    pub network: Ipv4Addr,
    /// Length of the network's prefix, at most 32.
    pub prefix_bits: u8,
    /// The kernel's priority: the lowest wins.
    pub metric: u32,
    /// Where it leads.
    pub target: RouteTarget,
}

/// The networks of one prefix length, each with its best metric and where it leads.
type Networks = HashMap<u32, (u32, RouteTarget)>;

/// One routing table, for longest-prefix matches.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    /// By prefix length, longest first, only lengths in use.
    lengths: Vec<(u8, Networks)>,
}

impl FromIterator<Route> for RouteTable {
    fn from_iter<I: IntoIterator<Item = Route>>(routes: I) -> Self {
        let mut by_length: HashMap<u8, Networks> = HashMap::new();
        for route in routes {
            let prefix_bits = route.prefix_bits.min(32);
            let network = route.network.to_bits() & mask(prefix_bits);
            let entry = (route.metric, route.target);
            by_length
                .entry(prefix_bits)
                .or_default()
                .entry(network)
                .and_modify(|best| {
                    if entry.0 < best.0 {
                        *best = entry;
                    }
                })
                .or_insert(entry);
        }
        let mut lengths: Vec<_> = by_length.into_iter().collect();
        lengths.sort_by_key(|(prefix_bits, _)| std::cmp::Reverse(*prefix_bits));
        Self { lengths }
    }
}

impl RouteTable {
    /// The most specific route to `destination`.
    #[must_use]
    pub fn lookup(&self, destination: Ipv4Addr) -> Option<RouteTarget> {
        self.lengths.iter().find_map(|(prefix_bits, networks)| {
            let network = destination.to_bits() & mask(*prefix_bits);
            networks.get(&network).map(|(_, target)| *target)
        })
    }
}

const fn mask(prefix_bits: u8) -> u32 {
    match prefix_bits {
        0 => 0,
        bits => u32::MAX << (32 - bits as u32),
    }
}

/// One of the data interfaces, as the first or second that was configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortIndex(pub u8);

/// A data interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Kernel index of the interface.
    pub interface: u32,
    /// Its hardware address.
    pub mac: MacAddress,
}

/// What to write into the Ethernet header, and where to send the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The data interface.
    pub port: PortIndex,
    /// The next hop's hardware address.
    pub destination: MacAddress,
    /// Our own.
    pub source: MacAddress,
}

/// A neighbour: an address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// Kernel index of the interface.
    pub interface: u32,
    /// Its address there.
    pub address: Ipv4Addr,
}

/// Why there is no next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// The destination is the host itself.
    Local,
    /// No route, or one that refuses.
    NoRoute,
    /// The route leads out of an interface without our program.
    NotOurInterface,
    /// The neighbour's hardware address is not known: ask for it.
    Unresolved(Neighbour),
}

/// A snapshot of everything that decides next hops.
#[derive(Clone, Debug, Default)]
pub struct Forwarding {
    /// Tables in the order in which they are asked.
    pub tables: Arc<[RouteTable]>,
    /// Neighbours with a usable hardware address.
    pub neighbours: HashMap<Neighbour, MacAddress>,
    /// The data interfaces.
    pub ports: Vec<Port>,
}

impl Forwarding {
    /// The next hop towards `destination`.
    pub fn next_hop(&self, destination: Ipv4Addr) -> Result<NextHop, Unreachable> {
        // A default route must not carry what has no next hop (RFC 1812, 5.3.7).
        if destination.is_multicast() || destination.is_broadcast() || destination.is_unspecified()
        {
            return Err(Unreachable::NoRoute);
        }
        let (interface, gateway) = match self.route(destination) {
            Some(RouteTarget::Forward { interface, gateway }) => (interface, gateway),
            Some(RouteTarget::Local) => return Err(Unreachable::Local),
            Some(RouteTarget::Refuse | RouteTarget::Throw) | None => {
                return Err(Unreachable::NoRoute);
            }
        };
        let position = self
            .ports
            .iter()
            .position(|port| port.interface == interface);
        let Some(position) = position else {
            return Err(Unreachable::NotOurInterface);
        };
        let neighbour = Neighbour {
            interface,
            address: gateway.unwrap_or(destination),
        };
        let Some(mac) = self.neighbours.get(&neighbour) else {
            return Err(Unreachable::Unresolved(neighbour));
        };
        Ok(NextHop {
            port: PortIndex(position as u8),
            destination: *mac,
            source: self.ports[position].mac,
        })
    }

    fn route(&self, destination: Ipv4Addr) -> Option<RouteTarget> {
        self.tables
            .iter()
            .filter_map(|table| table.lookup(destination))
            .find(|target| *target != RouteTarget::Throw)
    }
}

/// Entries of the next-hop cache; a power of two.
const CACHE_ENTRIES: usize = 4096;

/// The worker's memory of recent lookups: one entry per hash of the destination, emptied
/// whenever a new snapshot comes. Answers of "unreachable" are remembered as well, so that
/// packets towards a dead neighbour cost as little as others and ask for it only once.
pub struct NextHopCache {
    forwarding: Arc<Forwarding>,
    entries: Box<[Option<CacheEntry>]>,
}

/// A destination and what the snapshot said about it.
type CacheEntry = (Ipv4Addr, Result<NextHop, Unreachable>);

/// A lookup's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    /// Where to send it.
    pub next_hop: Result<NextHop, Unreachable>,
    /// True if this snapshot was not asked before, so that an unresolved neighbour is news.
    pub first: bool,
}

impl NextHopCache {
    /// An empty cache over `forwarding`.
    #[must_use]
    pub fn new(forwarding: Arc<Forwarding>) -> Self {
        Self {
            forwarding,
            entries: vec![None; CACHE_ENTRIES].into(),
        }
    }

    /// Replaces the snapshot and returns the old one, to be dropped where time does not matter.
    pub fn replace(&mut self, forwarding: Arc<Forwarding>) -> Arc<Forwarding> {
        self.entries.fill(None);
        std::mem::replace(&mut self.forwarding, forwarding)
    }

    /// The snapshot in use.
    #[must_use]
    pub fn forwarding(&self) -> &Forwarding {
        &self.forwarding
    }

    /// The next hop towards `destination`.
    pub fn next_hop(&mut self, destination: Ipv4Addr) -> Looked {
        // Fibonacci hashing: neighbouring addresses spread over the whole cache.
        let hash = destination.to_bits().wrapping_mul(0x9e37_79b9) >> 20;
        let entry = &mut self.entries[hash as usize % CACHE_ENTRIES];
        if let Some((cached, next_hop)) = entry
            && *cached == destination
        {
            return Looked {
                next_hop: *next_hop,
                first: false,
            };
        }
        let next_hop = self.forwarding.next_hop(destination);
        *entry = Some((destination, next_hop));
        Looked {
            next_hop,
            first: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn route(network: &str, prefix_bits: u8, metric: u32, target: RouteTarget) -> Route {
        Route {
            network: address(network),
            prefix_bits,
            metric,
            target,
        }
    }

    fn forward(interface: u32, gateway: Option<&str>) -> RouteTarget {
        RouteTarget::Forward {
            interface,
            gateway: gateway.map(address),
        }
    }

    fn forwarding() -> Forwarding {
        let local = RouteTable::from_iter([route("10.77.1.1", 32, 0, RouteTarget::Local)]);
        let main = RouteTable::from_iter([
            route("10.77.1.0", 24, 0, forward(2, None)),
            route("10.77.2.0", 24, 0, forward(3, None)),
            route("0.0.0.0", 0, 100, forward(3, Some("10.77.2.254"))),
            route("0.0.0.0", 0, 50, forward(3, Some("10.77.2.253"))),
            route("192.168.0.0", 16, 0, forward(9, None)),
            route("203.0.113.0", 24, 0, RouteTarget::Refuse),
            route("198.51.100.0", 24, 0, RouteTarget::Throw),
        ]);
        let fallback = RouteTable::from_iter([route("198.51.100.0", 24, 0, forward(2, None))]);
        let neighbours = [(2, "10.77.1.2", 2), (3, "10.77.2.253", 3)]
            .into_iter()
            .map(|(interface, at, mac)| {
                (
                    Neighbour {
                        interface,
                        address: address(at),
                    },
                    MacAddress([mac; 6]),
                )
            })
            .collect();
        Forwarding {
            tables: vec![local, main, fallback].into(),
            neighbours,
            ports: vec![
                Port {
                    interface: 2,
                    mac: MacAddress([0x12; 6]),
                },
                Port {
                    interface: 3,
                    mac: MacAddress([0x13; 6]),
                },
            ],
        }
    }

    #[test]
    fn next_hops_follow_tables_metrics_and_neighbours() {
        let hop = |port: u8, mac: u8| {
            Ok(NextHop {
                port: PortIndex(port),
                destination: MacAddress([mac; 6]),
                source: MacAddress([0x12 + port; 6]),
            })
        };
        let unresolved = |interface, at: &str| {
            Err(Unreachable::Unresolved(Neighbour {
                interface,
                address: address(at),
            }))
        };
        let cases = [
            ("on the link", "10.77.1.2", hop(0, 2)),
            ("the lower metric's gateway", "8.8.8.8", hop(1, 3)),
            (
                "on the link, unknown",
                "10.77.1.3",
                unresolved(2, "10.77.1.3"),
            ),
            ("ourselves", "10.77.1.1", Err(Unreachable::Local)),
            (
                "somebody else's interface",
                "192.168.7.7",
                Err(Unreachable::NotOurInterface),
            ),
            ("a group", "224.0.0.251", Err(Unreachable::NoRoute)),
            ("everybody", "255.255.255.255", Err(Unreachable::NoRoute)),
            ("prohibited", "203.0.113.9", Err(Unreachable::NoRoute)),
            (
                "thrown to the next table",
                "198.51.100.4",
                unresolved(2, "198.51.100.4"),
            ),
        ];
        let mut cache = NextHopCache::new(Arc::new(forwarding()));
        for (what, destination, expected) in cases {
            let destination = address(destination);
            assert_eq!(
                cache.next_hop(destination),
                Looked {
                    next_hop: expected,
                    first: true
                },
                "{what}"
            );
            assert_eq!(
                cache.next_hop(destination),
                Looked {
                    next_hop: expected,
                    first: false
                },
                "{what}"
            );
        }
        let empty = Arc::new(Forwarding::default());
        cache.replace(empty);
        let looked = cache.next_hop(address("10.77.1.2"));
        assert_eq!(
            looked,
            Looked {
                next_hop: Err(Unreachable::NoRoute),
                first: true
            }
        );
    }

    proptest! {
        #[test]
        fn the_longest_prefix_wins(
            routes in prop::collection::vec((any::<u32>(), 0u8..=32, 0u32..4, 0u32..8), 0..40),
            destination in any::<u32>(),
            near in any::<prop::sample::Index>(),
        ) {
            let routes: Vec<Route> = routes
                .into_iter()
                .map(|(network, prefix_bits, metric, interface)| Route {
                    network: Ipv4Addr::from_bits(network & mask(prefix_bits)),
                    prefix_bits,
                    metric,
                    target: RouteTarget::Forward { interface, gateway: None },
                })
                .collect();
            // Half of the destinations are near a network, or nothing would ever match.
            let destination = match routes.is_empty() || destination & 1 == 0 {
                true => destination,
                false => near.get(&routes).network.to_bits() ^ (destination & 0x80),
            };
            let best = routes
                .iter()
                .filter(|r| destination & mask(r.prefix_bits) == r.network.to_bits())
                .map(|r| (std::cmp::Reverse(r.prefix_bits), r.metric))
                .min();
            let found = RouteTable::from_iter(routes.iter().copied())
                .lookup(Ipv4Addr::from_bits(destination));
            let allowed: Vec<_> = routes
                .iter()
                .filter(|r| destination & mask(r.prefix_bits) == r.network.to_bits())
                .filter(|r| Some((std::cmp::Reverse(r.prefix_bits), r.metric)) == best)
                .map(|r| r.target)
                .collect();
            match found {
                Some(target) => prop_assert!(allowed.contains(&target)),
                None => prop_assert!(allowed.is_empty()),
            }
        }
    }
}
