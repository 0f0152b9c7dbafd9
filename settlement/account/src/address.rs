//! An account's address: a hash of its public key, written in bech32m.

use std::{fmt, str::FromStr};

use bech32::{Bech32m, Hrp};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

use crate::PublicKey;

const HUMAN_PART: Hrp = Hrp::parse_unchecked("top");
const DOMAIN: &[u8] = b"topnet/address/1";

/// SHA-256 over a domain tag and an account's public key; text form `top1…` (BIP-350).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(example = Address::example())]
pub struct Address(
    // The alphabet of bech32: 52 characters for the digest and six for the checksum.
    #[schemars(with = "String", regex(pattern = "^top1[02-9ac-hj-np-z]{58}$"))] pub [u8; 32],
);

/// Text that is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address: expected top1… with a valid checksum")]
pub struct AddressError(String);

impl Address {
    /// Length in bytes.
    pub const SIZE: usize = 32;

    /// What a schema shows.
    fn example() -> Self {
        Self([0; 32])
    }

    /// The address of the account that `key` signs for.
    pub fn of(key: &PublicKey) -> Self {
        let digest = Sha256::new()
            .chain_update(DOMAIN)
            .chain_update(key.0)
            .finalize();
        Self(digest.into())
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bech32::encode_to_fmt::<Bech32m, _>(f, HUMAN_PART, &self.0).map_err(|_| fmt::Error)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.chars().take(160).collect());
        let checked = bech32::primitives::decode::CheckedHrpstring::new::<Bech32m>(text)
            .map_err(|_| error())?;
        if checked.hrp() != HUMAN_PART {
            return Err(error());
        }
        let bytes: Vec<u8> = checked.byte_iter().collect();
        bytes.try_into().map(Self).map_err(|_| error())
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_a_slip_is_caught() {
        let address = Address::of(&PublicKey([7; 32]));
        let text = address.to_string();
        assert!(text.starts_with("top1"), "{text}");
        assert_eq!(text.parse(), Ok(address));
        let slipped = text.replace(&text[10..11], if &text[10..11] == "q" { "p" } else { "q" });
        assert!(slipped.parse::<Address>().is_err());
        assert!(
            "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
                .parse::<Address>()
                .is_err()
        );
    }

    #[test]
    fn golden_address() {
        let golden = "top16af0t637uxvxc99ehxl8lzf385fqjz8c5d8w5f5e544nd256qsnq58q6tr";
        assert_eq!(Address::of(&PublicKey([0; 32])).to_string(), golden);
    }
}
