//! The tunnel's inner addresses: an IPv4 network and, for the same hosts, an IPv6 one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Ipv4Subnet, Ipv6Subnet};

/// Inner addresses. A client has one host number and with it one address of each version: its
/// number in the IPv4 network, and the same number in the IPv6 network if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerNetwork {
    v4: Ipv4Subnet,
    v6: Option<Ipv6Subnet>,
    gateway: Ipv4Addr,
}

impl InnerNetwork {
    /// The network of these subnets, in which `gateway` is the provider's own address.
    #[must_use]
    pub const fn new(v4: Ipv4Subnet, v6: Option<Ipv6Subnet>, gateway: Ipv4Addr) -> Self {
        Self { v4, v6, gateway }
    }

    /// The IPv4 network.
    #[must_use]
    pub const fn v4(&self) -> Ipv4Subnet {
        self.v4
    }

    /// The IPv6 network.
    #[must_use]
    pub const fn v6(&self) -> Option<Ipv6Subnet> {
        self.v6
    }

    /// The gateway's own IPv4 address.
    #[must_use]
    pub const fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// The gateway's own IPv6 address.
    #[must_use]
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.address6(self.gateway)
    }

    /// True if `address` lies in either network, whether or not a client may have it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(address),
            IpAddr::V6(address) => self.v6.is_some_and(|v6| v6.contains(address)),
        }
    }

    /// Number of addresses in the IPv4 network: host numbers are below it.
    #[must_use]
    pub fn hosts_max(&self) -> u64 {
        1 << (32 - u32::from(self.v4.prefix_bits()))
    }

    /// The host number of an inner address; `None` outside, and for IPv6 addresses that no
    /// IPv4 address stands beside.
    #[must_use]
    pub fn host(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => self
                .v4
                .contains(address)
                .then(|| address.to_bits() - self.v4.network().to_bits()),
            IpAddr::V6(address) => {
                let v6 = self.v6.filter(|v6| v6.contains(address))?;
                let number = address.to_bits() - v6.network().to_bits();
                let number = u32::try_from(number).ok()?;
                (u64::from(number) < self.hosts_max()).then_some(number)
            }
        }
    }

    /// The IPv6 address of the client with this IPv4 address.
    #[must_use]
    pub fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let number = self.host(address.into())?;
        let v6 = self.v6?;
        Some(Ipv6Addr::from_bits(
            v6.network().to_bits() + u128::from(number),
        ))
    }

    /// True for the gateway's own addresses.
    #[must_use]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.host(address)
            .is_some_and(|number| Some(number) == self.host(self.gateway.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_one_number_in_both_networks() {
        let network = InnerNetwork::new(
            "10.78.0.0/16".parse().unwrap(),
            Some("fd78::/64".parse().unwrap()),
            Ipv4Addr::new(10, 78, 0, 1),
        );
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let cases = [
            ("10.78.1.2", Some(0x102)),
            ("fd78::102", Some(0x102)),
            ("10.79.0.1", None),
            ("fd79::102", None),
            // In the network, but beyond the hosts that IPv4 has.
            ("fd78::1:0", None),
            ("fd78::1:0:0:102", None),
        ];
        for (text, number) in cases {
            assert_eq!(network.host(at(text)), number, "{text}");
        }
        assert!(network.contains(at("fd78::1:0:0:102")));
        let beside = network.address6(Ipv4Addr::new(10, 78, 1, 2)).unwrap();
        assert_eq!(IpAddr::from(beside), at("fd78::102"));
        assert!(network.is_gateway(at("fd78::1")) && network.is_gateway(at("10.78.0.1")));
        assert!(!network.is_gateway(at("fd78::2")) && !network.is_gateway(at("1.1.1.1")));
    }
}
