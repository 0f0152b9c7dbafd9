//! The token: a 32-byte pre-image that pays one unit, and the chain that it belongs to.
//!
//! PayWord (Rivest and Shamir, 1996) with two additions: every link is bound to its
//! voucher by a salt and to its place by its index, so that a pre-image found once is
//! worth nothing anywhere else. `w[i-1] = SHA-256(w[i] ‖ salt ‖ i as u32 LE)`: 52 bytes
//! and padding fill one 64-byte block, so a link costs one compression.

use std::fmt;

use sha2::block_api::compress256;
use topnet_account::ChannelId;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Tokens under one voucher, at most. A claim makes consensus hash up to this many times.
pub const TOKENS_PER_VOUCHER_MAX: u16 = 256;

/// One link of a token chain.
pub type Preimage = [u8; 32];

/// Binds the links of a chain to its voucher.
pub type Salt = [u8; 16];

/// Pays unit `index` under a voucher, and all units before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The channel that pays.
    pub channel: ChannelId,
    /// Sequence number of the voucher that the token belongs to.
    pub seq: u32,
    /// Place in the chain, 1..=n.
    pub index: u16,
    /// `w[index]`.
    pub preimage: Preimage,
    /// What the payer itself has counted so far, in bytes; informs, binds nothing.
    pub own_bytes: u64,
}

/// Where SHA-256 begins (FIPS 180-4, 5.3.3).
const SHA256_INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];
/// Bytes of a link that are hashed; the rest of its block is SHA-256's own padding.
const LINK_BYTES: usize = 52;

/// One step towards the root: from `w[index]` to `w[index - 1]`. The padding is always the same
/// and the link is always one block, so the buffers of a general hasher would only cost time.
fn step(preimage: &Preimage, salt: &Salt, index: u16) -> Preimage {
    let mut block = [0; 64];
    block[..32].copy_from_slice(preimage);
    block[32..48].copy_from_slice(salt);
    block[48..LINK_BYTES].copy_from_slice(&u32::from(index).to_le_bytes());
    block[LINK_BYTES] = 0x80;
    block[56..].copy_from_slice(&(8 * LINK_BYTES as u64).to_be_bytes());
    let mut state = SHA256_INITIAL;
    compress256(&mut state, &[block]);
    let mut digest = [0; 32];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

/// From `w[from]` back to `w[to]`; equal indices give the pre-image itself. The cost is
/// `from - to` hashes: bound it before calling.
pub fn walk_back(mut preimage: Preimage, salt: &Salt, from: u16, to: u16) -> Preimage {
    debug_assert!(from >= to);
    for index in (to + 1..=from).rev() {
        preimage = step(&preimage, salt, index);
    }
    preimage
}

/// The payer's whole chain, `w[0]..=w[n]`.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct TokenChain {
    links: Vec<Preimage>,
}

impl fmt::Debug for TokenChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenChain({} tokens)", self.length())
    }
}

impl TokenChain {
    /// Builds the chain of `length` tokens that ends in `seed`.
    pub fn new(seed: Preimage, salt: &Salt, length: u16) -> Self {
        let mut links = vec![seed; usize::from(length) + 1];
        for index in (1..=length).rev() {
            links[usize::from(index) - 1] = step(&links[usize::from(index)], salt, index);
        }
        Self { links }
    }

    /// `w[0]`, which the voucher carries.
    pub fn root(&self) -> Preimage {
        self.links[0]
    }

    /// Number of tokens.
    pub fn length(&self) -> u16 {
        (self.links.len() - 1) as u16
    }

    /// `w[index]`, or `None` past the end.
    pub fn preimage(&self, index: u16) -> Option<Preimage> {
        self.links.get(usize::from(index)).copied()
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn a_step_is_sha_256() {
        for index in [0, 1, 255, 256, u16::MAX] {
            let (preimage, salt) = ([index as u8 ^ 0x5a; 32], [index as u8; 16]);
            let mut link = preimage.to_vec();
            link.extend(salt);
            link.extend(u32::from(index).to_le_bytes());
            let expected: Preimage = Sha256::digest(link).into();
            assert_eq!(step(&preimage, &salt, index), expected);
        }
    }

    #[test]
    fn every_link_leads_to_the_root_and_no_other_place_or_salt_does() {
        let (salt, other_salt) = ([7; 16], [8; 16]);
        let chain = TokenChain::new([1; 32], &salt, 5);
        for index in 0..=5 {
            let preimage = chain.preimage(index).unwrap();
            assert_eq!(walk_back(preimage, &salt, index, 0), chain.root());
            if index > 0 {
                assert_ne!(walk_back(preimage, &other_salt, index, 0), chain.root());
                assert_ne!(walk_back(preimage, &salt, index + 1, 0), chain.root());
            }
        }
        assert_eq!(chain.preimage(6), None);
    }
}
