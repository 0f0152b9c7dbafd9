//! Networks in CIDR notation (RFC 4632, RFC 4291).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Text that is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Not `address/bits`.
    #[error("`{text}` is not a network: write it as {example}")]
    Malformed {
        /// What was written.
        text: String,
        /// What one looks like.
        example: &'static str,
    },
    /// An address inside the network, where the network itself is expected.
    #[error("`{text}` has host bits set: the network is {network}")]
    HostBits {
        /// What was written.
        text: String,
        /// What was probably meant.
        network: String,
    },
}

macro_rules! subnet {
    ($(#[$doc:meta])* $name:ident, $address:ident, $bits:ty, $example:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            network: $address,
            prefix_bits: u8,
        }

        impl $name {
            /// Every address.
            pub const ALL: Self = Self {
                network: $address::UNSPECIFIED,
                prefix_bits: 0,
            };

            const fn mask(prefix_bits: u8) -> $bits {
                match prefix_bits {
                    0 => 0,
                    bits => <$bits>::MAX << (<$bits>::BITS - bits as u32),
                }
            }

            /// The network of `prefix_bits` that `address` is in; `None` for more bits than an
            /// address has.
            pub fn containing(address: $address, prefix_bits: u8) -> Option<Self> {
                (u32::from(prefix_bits) <= <$bits>::BITS).then(|| Self {
                    network: $address::from_bits(address.to_bits() & Self::mask(prefix_bits)),
                    prefix_bits,
                })
            }

            /// The network of one address.
            pub const fn host(address: $address) -> Self {
                Self {
                    network: address,
                    prefix_bits: <$bits>::BITS as u8,
                }
            }

            /// The first address.
            pub const fn network(&self) -> $address {
                self.network
            }

            /// Length of the common prefix.
            pub const fn prefix_bits(&self) -> u8 {
                self.prefix_bits
            }

            /// True if `address` is inside.
            pub fn contains(&self, address: $address) -> bool {
                address.to_bits() & Self::mask(self.prefix_bits) == self.network.to_bits()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.network, self.prefix_bits)
            }
        }

        impl FromStr for $name {
            type Err = SubnetError;

            fn from_str(text: &str) -> Result<Self, SubnetError> {
                let malformed = || SubnetError::Malformed {
                    text: text.chars().take(64).collect(),
                    example: $example,
                };
                let (address, bits) = text.split_once('/').ok_or_else(malformed)?;
                let address: $address = address.parse().map_err(|_| malformed())?;
                let bits: u8 = bits.parse().map_err(|_| malformed())?;
                let network = Self::containing(address, bits).ok_or_else(malformed)?;
                if network.network != address {
                    return Err(SubnetError::HostBits {
                        text: text.to_owned(),
                        network: network.to_string(),
                    });
                }
                Ok(network)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(de::Error::custom)
            }
        }
    };
}

subnet!(
    /// An IPv4 network: `10.78.0.0/16`. Host bits are zero.
    Ipv4Subnet,
    Ipv4Addr,
    u32,
    "10.78.0.0/16"
);

subnet!(
    /// An IPv6 network: `fd78::/64`. Host bits are zero.
    Ipv6Subnet,
    Ipv6Addr,
    u128,
    "fd78::/64"
);

/// A network of either version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subnet {
    /// IPv4's.
    V4(Ipv4Subnet),
    /// IPv6's.
    V6(Ipv6Subnet),
}

impl Subnet {
    /// The first address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        match self {
            Self::V4(network) => network.network().into(),
            Self::V6(network) => network.network().into(),
        }
    }

    /// True if `address` is inside.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(network), IpAddr::V4(address)) => network.contains(address),
            (Self::V6(network), IpAddr::V6(address)) => network.contains(address),
            _ => false,
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(network) => network.fmt(f),
            Self::V6(network) => network.fmt(f),
        }
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        if text.contains(':') {
            text.parse().map(Self::V6)
        } else {
            text.parse().map(Self::V4)
        }
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl Ipv4Subnet {
    /// The last address.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !Self::mask(self.prefix_bits))
    }

    /// Addresses that a host may have: all but the network's and the broadcast address.
    pub fn hosts(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let (first, last) = (self.network.to_bits(), self.broadcast().to_bits());
        let range = match self.prefix_bits {
            31 | 32 => first..=last,
            _ => first + 1..=last - 1,
        };
        range.map(Ipv4Addr::from_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_nonsense_is_refused() {
        let cases = [
            ("10.78.0.0/16", true),
            ("0.0.0.0/0", true),
            ("1.2.3.4/32", true),
            ("10.78.0.1/16", false),
            ("10.78.0.0/33", false),
            ("10.78.0.0", false),
            ("10.78.0.0/", false),
            ("/8", false),
            ("::/0", false),
        ];
        for (text, good) in cases {
            let parsed = text.parse::<Ipv4Subnet>();
            assert_eq!(parsed.is_ok(), good, "{text}");
            if let Ok(subnet) = parsed {
                assert_eq!(subnet.to_string(), text);
            }
        }
    }

    #[test]
    fn ipv6_is_read_by_the_same_rules() {
        for (text, good) in [
            ("fd78::/64", true),
            ("::/0", true),
            ("fd78::1/128", true),
            ("fd78::1/64", false),
            ("fd78::/129", false),
            ("10.0.0.0/8", false),
        ] {
            let parsed = text.parse::<Ipv6Subnet>();
            assert_eq!(parsed.is_ok(), good, "{text}");
            if let Ok(subnet) = parsed {
                assert_eq!(subnet.to_string(), text);
                assert!(subnet.contains(subnet.network()));
            }
        }
    }

    #[test]
    fn hosts_leave_out_network_and_broadcast() {
        let subnet: Ipv4Subnet = "10.78.0.0/30".parse().unwrap();
        let hosts: Vec<String> = subnet.hosts().map(|host| host.to_string()).collect();
        assert_eq!(hosts, ["10.78.0.1", "10.78.0.2"]);
        assert!(subnet.contains(subnet.broadcast()));
        assert!(!subnet.contains(Ipv4Addr::new(10, 78, 0, 4)));
        assert!(Ipv4Subnet::ALL.contains(Ipv4Addr::BROADCAST));
        assert_eq!(Ipv4Subnet::host(Ipv4Addr::LOCALHOST).hosts().count(), 1);
    }
}
