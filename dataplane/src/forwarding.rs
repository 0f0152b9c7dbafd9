//! Where a packet goes next, by the kernel's own routes and neighbours.
//!
//! A [`Forwarding`] is a snapshot: the control thread builds one from netlink whenever
//! something changed and hands it to the worker, which never waits for a lock. Tables are
//! looked up in the order of the kernel's default rules: local, main, default; rules that an
//! operator added (`ip rule`) are left to the kernel and not read.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::drops::DropReason;
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
        /// Next router; it may speak another version (RFC 8950).
        gateway: Option<IpAddr>,
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
    pub network: IpAddr,
    /// Length of the network's prefix, at most 32 or 128.
    pub prefix_bits: u8,
    /// The kernel's priority: the lowest wins.
    pub metric: u32,
    /// Where it leads.
    pub target: RouteTarget,
}

/// The networks of one prefix length, each with its best metric and where it leads.
type Networks = HashMap<u128, (u32, RouteTarget)>;
/// By prefix length, longest first, only lengths in use.
type Lengths = Vec<(u8, Networks)>;

/// One routing table, for longest-prefix matches.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    v4: Lengths,
    v6: Lengths,
}

impl FromIterator<Route> for RouteTable {
    fn from_iter<I: IntoIterator<Item = Route>>(routes: I) -> Self {
        let (mut v4, mut v6) = (HashMap::new(), HashMap::new());
        for route in routes {
            let (by_length, width) = match route.network {
                IpAddr::V4(_) => (&mut v4, 32),
                IpAddr::V6(_) => (&mut v6, 128),
            };
            let prefix_bits = route.prefix_bits.min(width);
            let entry = (route.metric, route.target);
            let networks: &mut Networks = by_length.entry(prefix_bits).or_default();
            networks
                .entry(leading_bits(route.network, prefix_bits))
                .and_modify(|best| {
                    if entry.0 < best.0 {
                        *best = entry;
                    }
                })
                .or_insert(entry);
        }
        let [v4, v6] = [v4, v6].map(|by_length| {
            let mut lengths: Lengths = by_length.into_iter().collect();
            lengths.sort_by_key(|(prefix_bits, _)| std::cmp::Reverse(*prefix_bits));
            lengths
        });
        Self { v4, v6 }
    }
}

impl RouteTable {
    /// The most specific route to `destination`.
    #[must_use]
    pub fn lookup(&self, destination: IpAddr) -> Option<RouteTarget> {
        let lengths = match destination {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        lengths.iter().find_map(|(prefix_bits, networks)| {
            let network = leading_bits(destination, *prefix_bits);
            networks.get(&network).map(|(_, target)| *target)
        })
    }
}

/// The first `prefix_bits` of an address, as a number.
fn leading_bits(address: IpAddr, prefix_bits: u8) -> u128 {
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    // A shift by all 128 bits is refused; nothing is left then.
    bits.checked_shr(width - u32::from(prefix_bits))
        .unwrap_or(0)
}

/// True for what no router forwards (RFC 1812, 5.3.7; RFC 4291, 2.5.6 and 2.7).
pub(crate) fn is_group(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(address) => {
            address.is_multicast() || address == Ipv4Addr::BROADCAST || address.is_unspecified()
        }
        IpAddr::V6(address) => {
            address.is_multicast()
                || address == Ipv6Addr::UNSPECIFIED
                || address.is_unicast_link_local()
        }
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
    pub address: IpAddr,
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

impl From<Unreachable> for DropReason {
    fn from(unreachable: Unreachable) -> Self {
        match unreachable {
            Unreachable::Local => DropReason::ToGateway,
            Unreachable::NoRoute => DropReason::NoRoute,
            Unreachable::NotOurInterface => DropReason::NotOurInterface,
            Unreachable::Unresolved(_) => DropReason::NeighbourUnresolved,
        }
    }
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
    /// The data interface and the neighbour there that lead towards `destination`.
    pub fn exit(&self, destination: IpAddr) -> Result<(PortIndex, Neighbour), Unreachable> {
        // A default route must not carry what has no next hop.
        if is_group(destination) {
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
        let address = gateway.unwrap_or(destination);
        Ok((PortIndex(position as u8), Neighbour { interface, address }))
    }

    /// The next hop towards `destination`.
    pub fn next_hop(&self, destination: IpAddr) -> Result<NextHop, Unreachable> {
        let (port, neighbour) = self.exit(destination)?;
        let Some(mac) = self.neighbours.get(&neighbour) else {
            return Err(Unreachable::Unresolved(neighbour));
        };
        Ok(NextHop {
            port,
            destination: *mac,
            source: self.ports[usize::from(port.0)].mac,
        })
    }

    fn route(&self, destination: IpAddr) -> Option<RouteTarget> {
        self.tables
            .iter()
            .filter_map(|table| table.lookup(destination))
            .find(|target| *target != RouteTarget::Throw)
    }
}

/// Entries of the next-hop cache; a power of two.
const CACHE_ENTRIES: usize = 4096;

/// A lookup in a snapshot.
type Lookup<H> = fn(&Forwarding, IpAddr) -> Result<H, Unreachable>;

/// The worker's memory of recent lookups: one entry per hash of the destination, emptied
/// whenever a new snapshot comes. Answers of "unreachable" are remembered as well, so that
/// packets towards a dead neighbour cost as little as others and ask for it only once.
pub struct RouteCache<H> {
    forwarding: Arc<Forwarding>,
    lookup: Lookup<H>,
    entries: Box<[Option<CacheEntry<H>>]>,
}

/// A destination and what the snapshot said about it.
type CacheEntry<H> = (IpAddr, Result<H, Unreachable>);

/// A lookup's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked<H> {
    /// Where to send it.
    pub hop: Result<H, Unreachable>,
    /// True if this snapshot was not asked before, so that an unresolved neighbour is news.
    pub first: bool,
}

impl<H: Copy> RouteCache<H> {
    /// An empty cache of `lookup` over `forwarding`.
    #[must_use]
    pub fn new(forwarding: Arc<Forwarding>, lookup: Lookup<H>) -> Self {
        Self {
            forwarding,
            lookup,
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

    /// The way towards `destination`.
    pub fn look(&mut self, destination: IpAddr) -> Looked<H> {
        let entry = &mut self.entries[bucket(destination)];
        if let Some((cached, hop)) = entry
            && *cached == destination
        {
            return Looked {
                hop: *hop,
                first: false,
            };
        }
        let hop = (self.lookup)(&self.forwarding, destination);
        *entry = Some((destination, hop));
        Looked { hop, first: true }
    }
}

/// Fibonacci hashing: neighbouring addresses spread over the whole cache.
fn bucket(address: IpAddr) -> usize {
    let bits = match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            bits as u64 ^ (bits >> 64) as u64
        }
    };
    (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize % CACHE_ENTRIES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(text: &str) -> IpAddr {
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
        let mut cache = RouteCache::new(Arc::new(forwarding()), Forwarding::next_hop);
        for (what, destination, expected) in cases {
            let destination = address(destination);
            assert_eq!(
                cache.look(destination),
                Looked {
                    hop: expected,
                    first: true
                },
                "{what}"
            );
            assert_eq!(
                cache.look(destination),
                Looked {
                    hop: expected,
                    first: false
                },
                "{what}"
            );
        }
        let empty = Arc::new(Forwarding::default());
        cache.replace(empty);
        let looked = cache.look(address("10.77.1.2"));
        assert_eq!(
            looked,
            Looked {
                hop: Err(Unreachable::NoRoute),
                first: true
            }
        );
    }

    proptest! {
        #[test]
        fn the_longest_prefix_wins(
            v6: bool,
            routes in prop::collection::vec((any::<u32>(), 0u8..=32, 0u32..4, 0u32..8), 0..40),
            destination in any::<u32>(),
            near in any::<prop::sample::Index>(),
        ) {
            // An IPv6 address with the same upper bits follows the same routes.
            let at = |bits: u32| match v6 {
                false => IpAddr::from(Ipv4Addr::from_bits(bits)),
                true => Ipv6Addr::from_bits(u128::from(bits) << 96 | 7).into(),
            };
            let routes: Vec<(u32, Route)> = routes
                .into_iter()
                .map(|(network, prefix_bits, metric, interface)| {
                    let network = network & mask(prefix_bits);
                    let target = RouteTarget::Forward { interface, gateway: None };
                    (network, Route { network: at(network), prefix_bits, metric, target })
                })
                .collect();
            // Half of the destinations are near a network, or nothing would ever match.
            let destination = match routes.is_empty() || destination & 1 == 0 {
                true => destination,
                false => near.get(&routes).0 ^ (destination & 0x80),
            };
            let matching = || {
                let fits = |(network, route): &&(u32, Route)| {
                    destination & mask(route.prefix_bits) == *network
                };
                routes.iter().filter(fits).map(|(_, route)| route)
            };
            let rank = |route: &Route| (std::cmp::Reverse(route.prefix_bits), route.metric);
            let best = matching().map(rank).min();
            let table = RouteTable::from_iter(routes.iter().map(|(_, route)| *route));
            let allowed: Vec<_> = matching()
                .filter(|route| Some(rank(route)) == best)
                .map(|route| route.target)
                .collect();
            match table.lookup(at(destination)) {
                Some(target) => prop_assert!(allowed.contains(&target)),
                None => prop_assert!(allowed.is_empty()),
            }
            // Of the other version there is no route at all.
            let other = if v6 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            prop_assert_eq!(table.lookup(other), None);
        }
    }

    fn mask(prefix_bits: u8) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(prefix_bits))
            .unwrap_or(0)
    }
}
