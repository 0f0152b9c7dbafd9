//! An IPv4 network in CIDR notation (RFC 4632).

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An IPv4 network: `10.78.0.0/16`. Host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv4Subnet {
    network: Ipv4Addr,
    prefix_bits: u8,
}

/// Text that is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Not `address/bits`.
    #[error("`{0}` is not a network: write it as 10.78.0.0/16")]
    Malformed(String),
    /// An address inside the network, where the network itself is expected.
    #[error("`{text}` has host bits set: the network is {network}")]
    HostBits {
        /// What was written.
        text: String,
        /// What was probably meant.
        network: Ipv4Subnet,
    },
}

impl Ipv4Subnet {
    /// Every address.
    pub const ALL: Self = Self {
        network: Ipv4Addr::UNSPECIFIED,
        prefix_bits: 0,
    };

    /// The network of `prefix_bits` that `address` is in; `None` above 32 bits.
    pub fn containing(address: Ipv4Addr, prefix_bits: u8) -> Option<Self> {
        (prefix_bits <= 32).then(|| {
            let network = Ipv4Addr::from_bits(address.to_bits() & mask(prefix_bits));
            Self {
                network,
                prefix_bits,
            }
        })
    }

    /// The network of one address.
    pub const fn host(address: Ipv4Addr) -> Self {
        Self {
            network: address,
            prefix_bits: 32,
        }
    }

    /// The first address.
    pub const fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// Length of the common prefix.
    pub const fn prefix_bits(&self) -> u8 {
        self.prefix_bits
    }

    /// The last address.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !mask(self.prefix_bits))
    }

    /// True if `address` is inside.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix_bits) == self.network.to_bits()
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

fn mask(prefix_bits: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix_bits))
        .unwrap_or(0)
}

impl fmt::Display for Ipv4Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_bits)
    }
}

impl FromStr for Ipv4Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let malformed = || SubnetError::Malformed(text.chars().take(64).collect());
        let (address, bits) = text.split_once('/').ok_or_else(malformed)?;
        let address: Ipv4Addr = address.parse().map_err(|_| malformed())?;
        let bits: u8 = bits.parse().map_err(|_| malformed())?;
        let network = Self::containing(address, bits).ok_or_else(malformed)?;
        if network.network != address {
            return Err(SubnetError::HostBits {
                text: text.to_owned(),
                network,
            });
        }
        Ok(network)
    }
}

impl Serialize for Ipv4Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ipv4Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
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
