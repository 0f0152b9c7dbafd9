//! Fixed-size byte strings that must not be mistaken for one another.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Text that is not the hex of such a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: expected 0x and {digits} hex digits")]
pub struct HexError {
    text: String,
    what: &'static str,
    digits: usize,
}

macro_rules! byte_string {
    ($(#[$doc:meta])* $name:ident, $size:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
        #[schemars(example = $name::example())]
        pub struct $name(
            #[schemars(
                with = "String",
                regex(pattern = concat!("^0x([0-9a-f]{2}){", $size, "}$"))
            )]
            pub [u8; $size],
        );

        impl $name {
            /// Length in bytes.
            pub const SIZE: usize = $size;

            /// What a schema shows.
            fn example() -> Self {
                Self([0; $size])
            }

            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; $size] {
                &self.0
            }
        }

        impl From<[u8; $size]> for $name {
            fn from(bytes: [u8; $size]) -> Self {
                Self(bytes)
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("0x")?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            fn from_str(text: &str) -> Result<Self, HexError> {
                decode(text).map(Self).ok_or_else(|| HexError {
                    text: text.chars().take(160).collect(),
                    what: $what,
                    digits: $size * 2,
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

byte_string!(
    /// A SHA-256 digest: of a block, a transaction, a state root.
    Hash, 32, "a hash"
);
byte_string!(
    /// The id of a payment channel: a hash over who opened it, for whom and on which chain.
    ChannelId, 32, "a channel id"
);
byte_string!(
    /// An Ed25519 public key in its compressed form. Its bytes may not be a valid point;
    /// only a signature check tells.
    PublicKey, 32, "a public key"
);
byte_string!(
    /// An Ed25519 signature (R ‖ s).
    Signature, 64, "a signature"
);

impl Default for Hash {
    fn default() -> Self {
        Self::ZERO
    }
}

impl Hash {
    /// All zero: "nothing" where a hash is expected.
    pub const ZERO: Self = Self([0; 32]);
}

fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.strip_prefix("0x")?.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_nonsense_is_refused() {
        let hash = Hash(std::array::from_fn(|i| i as u8));
        assert_eq!(hash.to_string().parse(), Ok(hash));
        for text in [
            "",
            "0x",
            "0x00",
            &hash.to_string()[2..],
            &format!("{hash}0"),
        ] {
            assert!(text.parse::<Hash>().is_err(), "{text}");
        }
        assert!(hash.to_string().replace('1', "g").parse::<Hash>().is_err());
    }
}
