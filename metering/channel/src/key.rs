//! Ed25519 keys for everything that is signed off-chain and on.

use std::fmt;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use topnet_account::{Address, PublicKey, Signature};
use zeroize::Zeroizing;

/// Seed bytes that make no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the seed makes no Ed25519 key")]
pub struct KeyError;

/// An Ed25519 signing key. It is never shown, not even by `Debug`.
pub struct SecretKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

impl SecretKey {
    /// The key that RFC 8032 derives from a 32-byte seed.
    pub fn from_seed(seed: [u8; 32]) -> Result<Self, KeyError> {
        let seed = Zeroizing::new(seed);
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).map_err(|_| KeyError)?;
        Ok(Self { seed, pair })
    }

    /// The seed, for the encrypted key file and for deriving token chains.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// The address of the account that this key signs for.
    pub fn address(&self) -> Address {
        Address::of(&self.public_key())
    }

    /// Signs `bytes` as they are; the caller has put the domain into them.
    pub fn sign(&self, bytes: &[u8]) -> Signature {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(bytes).as_ref());
        Signature(signature)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public_key())
    }
}

/// True if `signature` over `bytes` is `key`'s. Whatever this accepts the chains accept too:
/// it checks without the cofactor and refuses what ZIP-215 still allows.
pub fn verify(key: &PublicKey, bytes: &[u8], signature: &Signature) -> bool {
    UnparsedPublicKey::new(&ED25519, key.as_bytes())
        .verify(bytes, signature.as_ref())
        .is_ok()
}
