//! SipHash-1-3 over keys of a few words, and pseudo-random numbers from it.
//!
//! Remotes and subscribers choose what is hashed. With a secret key they cannot aim at one
//! chain of a table, nor foresee which port or block comes next.

/// A keyed hash. The key is a part of the seed and never shown.
#[derive(Clone)]
pub(crate) struct Hash {
    key: [u64; 2],
}

impl Hash {
    pub(crate) const fn new(key: [u64; 2]) -> Self {
        Self { key }
    }

    /// The hash of `words` and the low seven bytes of `tail`, as SipHash reads them from memory
    /// in little endian: the message is `8 × N + 7` bytes long.
    #[inline(always)]
    pub(crate) fn of<const N: usize>(&self, words: [u64; N], tail: u64) -> u64 {
        sip::<1, 3, N>(self.key, words, tail)
    }
}

#[inline(always)]
fn sip<const C: usize, const D: usize, const N: usize>(
    key: [u64; 2],
    words: [u64; N],
    tail: u64,
) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let message_bytes = (N as u64 * 8 + 7) << 56;
    let last = message_bytes | (tail & 0x00ff_ffff_ffff_ffff);
    for word in words {
        absorb::<C>(&mut v, word);
    }
    absorb::<C>(&mut v, last);
    v[2] ^= 0xff;
    for _ in 0..D {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn absorb<const C: usize>(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    for _ in 0..C {
        round(v);
    }
    v[0] ^= word;
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

/// The hash of a counter: numbers that nobody without the key can foresee.
pub(crate) struct Random {
    hash: Hash,
    drawn: u64,
}

impl Random {
    pub(crate) const fn new(key: [u64; 2]) -> Self {
        Self {
            hash: Hash::new(key),
            drawn: 0,
        }
    }

    /// A number below `bound`, which is not zero. The bias is below `bound` in 2³².
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.drawn = self.drawn.wrapping_add(1);
        let drawn = self.hash.of([self.drawn], 0) & 0xffff_ffff;
        ((drawn * u64::from(bound)) >> 32) as u32
    }
}

/// The keys of both, from a seed.
pub(crate) fn from_seed(seed: [u8; 32]) -> (Hash, Random) {
    let (words, _) = seed.as_chunks::<8>();
    let word = |index: usize| u64::from_le_bytes(words[index]);
    (
        Hash::new([word(0), word(1)]),
        Random::new([word(2), word(3)]),
    )
}

/// Tells damaged bytes from whole ones. Its key is no secret: this proves nothing about who
/// wrote them.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let hash = Hash::new([0x746f_706e_6574_6e61, 0x7473_6e61_7073_686f]);
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let start = bytes.len() as u64;
    words.iter().chain([&last]).fold(start, |state, word| {
        hash.of([state, u64::from_le_bytes(*word)], 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::{DefaultHasher, Hasher};

    fn message(words: [u64; 2], tail: u64) -> Vec<u8> {
        let [first, second, last] = [words[0], words[1], tail].map(u64::to_le_bytes);
        [&first[..], &second, &last[..7]].concat()
    }

    /// The standard library's SipHash-1-3 and its SipHash-2-4, written by others.
    #[test]
    #[allow(deprecated)]
    fn the_hash_is_siphash() {
        for number in 0..50_u64 {
            let words = [number.wrapping_mul(0x9e37_79b9_7f4a_7c15), !number];
            let tail = number << 40 | 77;
            let mut oracle = DefaultHasher::new();
            oracle.write(&message(words, tail));
            assert_eq!(Hash::new([0, 0]).of(words, tail), oracle.finish());
            let key = [number ^ 0xdead_beef, number << 7];
            let mut oracle = std::hash::SipHasher::new_with_keys(key[0], key[1]);
            oracle.write(&message(words, tail));
            assert_eq!(sip::<2, 4, 2>(key, words, tail), oracle.finish());
        }
    }

    #[test]
    fn numbers_are_below_their_bound_and_reach_every_value() {
        let mut random = Random::new([1, 2]);
        for bound in [1, 2, 7, 512] {
            let mut seen = vec![false; bound as usize];
            (0..bound * 40).for_each(|_| seen[random.below(bound) as usize] = true);
            assert!(seen.iter().all(|seen| *seen), "{bound}");
        }
    }

    #[test]
    fn every_byte_and_the_length_count_in_a_digest() {
        let bytes: Vec<u8> = (0..37).collect();
        let whole = digest(&bytes);
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert_ne!(digest(&damaged), whole, "{index}");
        }
        assert_ne!(digest(&[bytes, vec![0]].concat()), whole);
    }
}
