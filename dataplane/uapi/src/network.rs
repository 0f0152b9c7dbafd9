//! IP networks in CIDR notation (RFC 4632, RFC 4291), of both versions.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::value::{decimal, shown};

/// A network that a peer may send from: `10.7.0.0/24`. Host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpNetwork {
    address: IpAddr,
    prefix_bits: u8,
}

/// An address of the interface itself, with the length of the prefix that is on its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress {
    /// Host bits and all.
    pub address: IpAddr,
    /// At most 32, or 128 for IPv6, if it was read here.
    pub prefix_bits: u8,
}

/// Text that is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a network: write it as 10.7.0.0/24 or fd00:7::/64")]
pub struct NetworkError(String);

impl IpNetwork {
    /// The network of `prefix_bits` that `address` is in; `None` above 32 bits, or 128 for IPv6.
    #[must_use]
    pub fn containing(address: IpAddr, prefix_bits: u8) -> Option<Self> {
        (prefix_bits <= address_bits(address)).then(|| Self {
            address: masked(address, prefix_bits),
            prefix_bits,
        })
    }

    /// The network of one address.
    #[must_use]
    pub const fn host(address: IpAddr) -> Self {
        Self {
            address,
            prefix_bits: address_bits(address),
        }
    }

    /// The first address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Length of the common prefix.
    #[must_use]
    pub const fn prefix_bits(&self) -> u8 {
        self.prefix_bits
    }

    /// True if `address` is inside. No IPv6 network contains an IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && masked(address, self.prefix_bits) == self.address
    }
}

impl From<InterfaceAddress> for IpNetwork {
    /// The network on the link; of a prefix longer than the address, the address alone.
    fn from(address: InterfaceAddress) -> Self {
        Self::containing(address.address, address.prefix_bits)
            .unwrap_or_else(|| Self::host(address.address))
    }
}

const fn address_bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// `address` without what follows its first `prefix_bits`, which are no more than it has.
fn masked(address: IpAddr, prefix_bits: u8) -> IpAddr {
    let host_bits = u32::from(address_bits(address) - prefix_bits);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl fmt::Display for IpNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

impl FromStr for IpNetwork {
    type Err = NetworkError;

    /// Reads `address/bits`. Host bits become zero without a complaint, as in the kernel.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        if !text.contains('/') {
            return Err(NetworkError(shown(text.as_bytes())));
        }
        text.parse().map(|address: InterfaceAddress| address.into())
    }
}

impl FromStr for InterfaceAddress {
    type Err = NetworkError;

    /// Reads `address/bits`, or `address` for all of its bits.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let read = || {
            let (address, bits) = match text.split_once('/') {
                Some((address, bits)) => (address, Some(bits)),
                None => (text, None),
            };
            let address: IpAddr = address.parse().ok()?;
            let prefix_bits = match bits {
                Some(bits) => decimal(bits)?,
                None => address_bits(address),
            };
            (prefix_bits <= address_bits(address)).then_some(Self {
                address,
                prefix_bits,
            })
        };
        read().ok_or_else(|| NetworkError(shown(text.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_masked_and_nonsense_refused() {
        let cases = [
            ("10.7.0.0/24", Some("10.7.0.0/24")),
            ("10.7.0.9/24", Some("10.7.0.0/24")),
            ("10.7.0.9/0", Some("0.0.0.0/0")),
            ("10.7.0.9/32", Some("10.7.0.9/32")),
            ("fd00:7::9/64", Some("fd00:7::/64")),
            ("fd00:7::9/128", Some("fd00:7::9/128")),
            ("::1/0", Some("::/0")),
            ("::ffff:1.2.3.4/120", Some("::ffff:1.2.3.0/120")),
            ("10.7.0.0/33", None),
            ("fd00::/129", None),
            ("fd00::/300", None),
            ("10.7.0.0", None),
            ("10.7.0.0/", None),
            ("10.7.0.0/+8", None),
            ("10.7.0/24", None),
            ("/8", None),
            ("fe80::1%eth0/64", None),
        ];
        for (text, network) in cases {
            let read = text.parse::<IpNetwork>().ok().map(|read| read.to_string());
            assert_eq!(read.as_deref(), network, "{text}");
        }
    }

    #[test]
    fn an_interface_keeps_its_host_bits() {
        let address: InterfaceAddress = "10.7.0.9/24".parse().unwrap();
        assert_eq!(address.to_string(), "10.7.0.9/24");
        assert_eq!(IpNetwork::from(address).to_string(), "10.7.0.0/24");
        let address: InterfaceAddress = "fd00::9".parse().unwrap();
        assert_eq!(address.to_string(), "fd00::9/128");
    }

    #[test]
    fn a_network_contains_its_own_version() {
        let network: IpNetwork = "10.7.0.0/24".parse().unwrap();
        assert!(network.contains("10.7.0.255".parse().unwrap()));
        assert!(!network.contains("10.7.1.0".parse().unwrap()));
        let all: IpNetwork = "::/0".parse().unwrap();
        assert!(all.contains("fd00::1".parse().unwrap()));
        assert!(!all.contains("10.7.0.1".parse().unwrap()));
    }
}
