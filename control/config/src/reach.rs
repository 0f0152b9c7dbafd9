//! `[dataplane.reach]`: what peers reach beside the public Internet, which is nothing by default.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Deserialize;

use crate::{InnerNetwork, Subnet, error::Problems};

/// Networks that peers may reach although they are private, or other peers'.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    /// Private networks beyond the uplink, for everybody.
    #[serde(default)]
    pub private: Vec<Subnet>,
    /// Private networks beyond the uplink, for the operator's own peers alone.
    #[serde(default)]
    pub unmetered_private: Vec<Subnet>,
    /// Networks in the tunnel whose peers reach each other.
    #[serde(default)]
    pub peers: Vec<Subnet>,
}

impl Reach {
    /// Most networks in one list: it is searched for each packet that needs it.
    const NETWORKS_MAX: usize = 64;

    /// True if a packet for an address outside the tunnel may leave: it is public, or allowed.
    #[must_use]
    pub fn lets_out(&self, destination: IpAddr, unmetered: bool) -> bool {
        if !is_private(destination) {
            return true;
        }
        let allowed = |networks: &[Subnet]| networks.iter().any(|it| it.contains(destination));
        allowed(&self.private) || (unmetered && allowed(&self.unmetered_private))
    }

    /// True if the peers that have these addresses in the tunnel reach each other.
    #[must_use]
    pub fn joins(&self, one: IpAddr, other: IpAddr) -> bool {
        let named = |address| self.peers.iter().any(|network| network.contains(address));
        named(one) && named(other)
    }

    pub(crate) fn check(&self, inner: InnerNetwork, problems: &mut Problems<'_>) {
        let lists = [
            ("reach.private", &self.private, true),
            ("reach.unmetered_private", &self.unmetered_private, true),
            ("reach.peers", &self.peers, false),
        ];
        for (key, networks, beyond) in lists {
            if networks.len() > Self::NETWORKS_MAX {
                problems.add(
                    key,
                    format!("{} networks are too many", networks.len()),
                    "choose 64 at most; wider ones do for several",
                );
            }
            for network in networks.iter().filter(|_| beyond) {
                if inner.contains(network.address()) {
                    problems.add(
                        key,
                        format!("{network} lies in the tunnel"),
                        "name it in reach.peers, or leave it out",
                    );
                } else if !is_private(network.address()) {
                    problems.add(
                        key,
                        format!("{network} is public: everybody reaches it"),
                        "leave it out",
                    );
                }
            }
        }
    }
}

/// True for addresses that the public Internet does not have: a packet for one is for a machine of
/// the provider's, or for nobody. What translates IPv6 to IPv4 is seen through.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private4(address),
        IpAddr::V6(address) => is_private6(address),
    }
}

fn is_private4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    // RFC 1122 ("this network"), 1918, 6598 (shared by carriers), 1122 (loopback), 3927.
    first == 0
        || first == 10
        || first == 127
        || (first == 100 && (64..128).contains(&second))
        || (first == 169 && second == 254)
        || (first == 172 && (16..32).contains(&second))
        || (first == 192 && second == 168)
}

fn is_private6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        is_private4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
    };
    match segments {
        // RFC 4291: nobody, loopback, and IPv4 addresses in two notations.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] => true,
        // RFC 6052 and 8215: NAT64, of the Internet's addresses and of one's own.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x64, 0xff9b, 1, ..] => true,
        // RFC 3056: 6to4.
        [0x2002, high, low, ..] => embedded(high, low),
        // RFC 4193; RFC 4291: a link's own, and a site's own, which is old.
        [first, ..] => first & 0xfe00 == 0xfc00 || first & 0xff80 == 0xfe80,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_side_of_each_boundary() {
        let private = [
            "0.0.0.1",
            "10.0.0.0",
            "10.255.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.0",
            "172.31.255.255",
            "192.168.0.0",
            "192.168.255.255",
            "::",
            "::1",
            "::10.0.0.1",
            "::ffff:9.9.9.9",
            "64:ff9b::10.1.2.3",
            "64:ff9b:1::9.9.9.9",
            "2002:c0a8:101::1",
            "fc00::",
            "fdff:ffff::1",
            "fe80::1",
            "fec0::1",
            "feff::1",
        ];
        let public = [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.51.100.1",
            "64:ff9b::9.9.9.9",
            "2002:909:909::1",
            "2001:db8::1",
            "fbff::1",
        ];
        for address in private {
            assert!(is_private(at(address)), "{address}");
        }
        for address in public {
            assert!(!is_private(at(address)), "{address}");
        }
    }

    #[test]
    fn what_is_private_is_reached_by_whom_it_is_named_for() {
        let networks = |list: &[&str]| list.iter().map(|it| it.parse().unwrap()).collect();
        let reach = Reach {
            private: networks(&["10.7.0.0/16", "fd07::/32"]),
            unmetered_private: networks(&["192.168.1.0/24"]),
            peers: networks(&["10.78.255.0/24", "192.168.9.0/24"]),
        };
        // (where to, a client gets there, an operator's peer gets there)
        for (address, client, own) in [
            ("9.9.9.9", true, true),
            ("10.7.1.1", true, true),
            ("fd07::1", true, true),
            ("fd08::1", false, false),
            ("192.168.1.7", false, true),
            ("192.168.2.7", false, false),
        ] {
            let reached = [false, true].map(|unmetered| reach.lets_out(at(address), unmetered));
            assert_eq!(reached, [client, own], "{address}");
        }
        assert!(reach.joins(at("10.78.255.2"), at("192.168.9.1")));
        assert!(!reach.joins(at("10.78.255.2"), at("10.78.0.2")));
        assert!(!reach.joins(at("10.78.0.2"), at("10.78.255.2")));
        assert!(!Reach::default().joins(at("10.78.0.2"), at("10.78.0.3")));
    }
}
