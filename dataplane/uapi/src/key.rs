//! WireGuard's keys: 32 bytes, in base64 for people and in hex for the protocol.

use std::fmt;

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of every key.
pub const KEY_BYTES: usize = 32;
const HEX_CHARS: usize = 2 * KEY_BYTES;
const BASE64_CHARS: usize = 44;

/// Who a peer is (Curve25519).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; KEY_BYTES]);

impl PublicKey {
    /// From 64 hex digits of either case.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        decode_hex(text).map(|bytes| Self(*bytes))
    }

    /// From the 44 characters that `wg pubkey` prints.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        decode_base64(text).map(|bytes| Self(*bytes))
    }

    /// 64 lowercase hex digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }
}

impl fmt::Display for PublicKey {
    /// Base64, as `wg` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// What both secrets have: they are never shown, compare without telling where they differ, and
/// are wiped when dropped. Zeros are no secret but the protocol's way to say that there is none.
macro_rules! secret {
    ($name:ident) => {
        impl $name {
            /// From 64 hex digits of either case; `Some(None)` for zeros, `None` for what is no key.
            #[must_use]
            pub fn from_hex(text: &str) -> Option<Option<Self>> {
                decode_hex(text).map(|bytes| Self::new(*bytes))
            }

            /// From the 44 characters of base64 that `wg` prints; `Some(None)` for zeros, `None` for
            /// what is no key.
            #[must_use]
            pub fn from_base64(text: &str) -> Option<Option<Self>> {
                decode_base64(text).map(|bytes| Self::new(*bytes))
            }

            /// The key itself.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; KEY_BYTES] {
                &self.0
            }

            /// 64 lowercase hex digits.
            #[must_use]
            pub fn to_hex(&self) -> Zeroizing<String> {
                Zeroizing::new(HEXLOWER.encode(&self.0))
            }

            /// Base64, as a file has it.
            #[must_use]
            pub fn to_base64(&self) -> Zeroizing<String> {
                Zeroizing::new(BASE64.encode(&self.0))
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                let differences = self.0.iter().zip(&other.0);
                differences.fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(not shown)"))
            }
        }
    };
}

/// An interface's own secret (Curve25519). It is never shown, not even by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; KEY_BYTES]);

impl PrivateKey {
    /// The key of these bytes; `None` for zeros. Five of its bits mean nothing to Curve25519 and
    /// get the value that they have in use (RFC 7748, section 5), so that equal keys are equal.
    #[must_use]
    pub fn new(mut bytes: [u8; KEY_BYTES]) -> Option<Self> {
        if is_zero(&bytes) {
            return None;
        }
        let mut key = Self(bytes);
        bytes.zeroize();
        key.0[0] &= 0b1111_1000;
        key.0[KEY_BYTES - 1] &= 0b0111_1111;
        key.0[KEY_BYTES - 1] |= 0b0100_0000;
        Some(key)
    }
}

secret!(PrivateKey);

/// What two peers know besides their keys. It is never shown, not even by `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_BYTES]);

impl PresharedKey {
    /// The key of these bytes; `None` for zeros.
    #[must_use]
    pub fn new(mut bytes: [u8; KEY_BYTES]) -> Option<Self> {
        if is_zero(&bytes) {
            return None;
        }
        let key = Self(bytes);
        bytes.zeroize();
        Some(key)
    }
}

secret!(PresharedKey);

/// What a request does to a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KeyUpdate<K> {
    /// It says nothing of it.
    #[default]
    Keep,
    /// It takes it away, by writing zeros.
    Clear,
    /// It sets another.
    Replace(K),
}

impl<K> KeyUpdate<K> {
    /// What leads to `key`.
    pub fn to(key: Option<K>) -> Self {
        key.map_or(Self::Clear, Self::Replace)
    }
}

impl<K: Clone + PartialEq> KeyUpdate<K> {
    /// Does it to `key`, and returns false if that left `key` as it was.
    pub(crate) fn apply(&self, key: &mut Option<K>) -> bool {
        let updated = match self {
            Self::Keep => return false,
            Self::Clear => None,
            Self::Replace(new) => Some(new.clone()),
        };
        let changed = *key != updated;
        *key = updated;
        changed
    }
}

fn is_zero(bytes: &[u8; KEY_BYTES]) -> bool {
    bytes.iter().fold(0, |sum, byte| sum | byte) == 0
}

fn decode_hex(text: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    if text.len() != HEX_CHARS {
        return None;
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    HEXLOWER_PERMISSIVE
        .decode_mut(text.as_bytes(), bytes.as_mut())
        .ok()?;
    Some(bytes)
}

/// Reads base64 as strictly as `wg`: 44 characters, the last of them `=`, and no bit too many.
fn decode_base64(text: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    if text.len() != BASE64_CHARS {
        return None;
    }
    // The decoder wants room for what 44 characters could hold at most.
    let mut room = Zeroizing::new([0; KEY_BYTES + 1]);
    let length = BASE64.decode_mut(text.as_bytes(), room.as_mut()).ok()?;
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    (length == KEY_BYTES).then(|| bytes.copy_from_slice(&room[..KEY_BYTES]))?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: &str = "TnPBXjHbX4VXuj234cL+nRjK+g6fCWDklnFFp+9x4w8=";

    #[test]
    fn base64_is_read_as_strictly_as_wg_reads_it() {
        let key = PublicKey::from_base64(PUBLIC).unwrap();
        assert_eq!(key.to_string(), PUBLIC);
        let wrong = [
            // A bit after the last byte, a missing end, one byte more, one less, other alphabets.
            "TnPBXjHbX4VXuj234cL+nRjK+g6fCWDklnFFp+9x4w9=",
            "TnPBXjHbX4VXuj234cL+nRjK+g6fCWDklnFFp+9x4w8",
            "TnPBXjHbX4VXuj234cL+nRjK+g6fCWDklnFFp+9x4w8A",
            "TnPBXjHbX4VXuj234cL+nRjK+g6fCWDklnFFp+9x4w==",
            "TnPBXjHbX4VXuj234cL-nRjK+g6fCWDklnFFp+9x4w8=",
            "TnPBXjHbX4VXuj234cL+nRjK+g6fCWDklnFFp+9x4w8\n",
            "",
        ];
        for text in wrong {
            assert_eq!(PublicKey::from_base64(text), None, "{text}");
        }
    }

    #[test]
    fn hex_is_read_in_either_case_and_written_in_one() {
        let text = "4e73c15e31db5f8557ba3db7e1c2fe9d18cafa0e9f0960e4967145a7ef71e30f";
        let key = PublicKey::from_hex(text).unwrap();
        assert_eq!(PublicKey::from_hex(&text.to_uppercase()), Some(key));
        assert_eq!(key.to_hex(), text);
        assert_eq!(PublicKey::from_base64(PUBLIC), Some(key));
        assert_eq!(PublicKey::from_hex(&text[2..]), None);
        assert_eq!(PublicKey::from_hex(&text.replace('e', "g")), None);
        assert_eq!(PublicKey::from_hex(&"é".repeat(32)), None);
    }

    #[test]
    fn secrets_are_not_shown_and_zeros_are_none() {
        let private = PrivateKey::new([7; KEY_BYTES]).unwrap();
        assert_eq!(format!("{private:?}"), "PrivateKey(not shown)");
        let update = KeyUpdate::Replace(PresharedKey::new([7; KEY_BYTES]).unwrap());
        assert_eq!(format!("{update:?}"), "Replace(PresharedKey(not shown))");
        assert_eq!(PrivateKey::new([0; KEY_BYTES]), None);
        assert_eq!(PresharedKey::from_hex(&"0".repeat(64)), Some(None));
    }

    #[test]
    fn private_keys_that_mean_the_same_are_equal() {
        let (mut one, mut other) = ([7; KEY_BYTES], [7; KEY_BYTES]);
        (one[0], other[0]) = (0b1010_1000, 0b1010_1111);
        (one[31], other[31]) = (0b0000_0001, 0b1100_0001);
        assert_eq!(PrivateKey::new(one), PrivateKey::new(other));
        other[1] = 8;
        assert_ne!(PrivateKey::new(one), PrivateKey::new(other));
    }
}
