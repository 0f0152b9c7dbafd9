//! Sums in the machine's own byte order.
//!
//! A one's complement sum does not depend on the order of bytes within its words, as long as
//! summing and storing agree, so the sums here run over native words.

/// Bytes that can be summed at once, far above every packet: the sums of so many halves of words
/// of 32 bits fit 32 bits.
pub const BYTES_MAX: usize = 1 << 18;

/// A sum that is not folded to 16 bits yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Of bytes that begin at an even offset of what is summed.
    ///
    /// For each word of 32 bits, the word and its upper half are added up, and the lower halves
    /// come from the difference. That way the compiler's vectors need no wider lanes and no
    /// masks: three instructions for 16 bytes.
    #[inline]
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        debug_assert!(bytes.len() <= BYTES_MAX);
        let (words, rest) = bytes.as_chunks::<4>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        let (mut both, mut upper) = (0u32, 0u32);
        for word in words {
            let word = u32::from_ne_bytes(*word);
            both = both.wrapping_add(word);
            upper = upper.wrapping_add(word >> 16);
        }
        let lower = both.wrapping_sub(upper << 16);
        Self(u64::from(lower) + u64::from(upper) + u64::from(u32::from_ne_bytes(last)))
    }

    /// Of one word in network byte order.
    #[inline]
    #[must_use]
    pub fn word(value: u16) -> Self {
        Self(u64::from(value.to_be()))
    }

    /// Of two such words.
    #[inline]
    #[must_use]
    pub fn double_word(value: u32) -> Self {
        Self(u64::from(value.to_be()))
    }

    /// Both sums.
    #[inline]
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// This sum without a word that is in it.
    #[inline]
    #[must_use]
    pub fn without_word(self, value: u16) -> Self {
        self.plus(Self::word(!value))
    }

    /// The sum in two bytes, as an unfinished checksum stands in a packet.
    #[inline]
    #[must_use]
    pub fn folded(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// The checksum: what brings the sum to nought.
    #[inline]
    #[must_use]
    pub fn complement(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// Whether a checksum that is part of the sum is right.
    #[inline]
    #[must_use]
    pub fn verifies(self) -> bool {
        self.fold() == u16::MAX
    }

    #[inline]
    fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as RFC 1071 has it.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for word in bytes.chunks(2) {
            sum += u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_worst_sum_fits() {
        let mut bytes = vec![0xff; BYTES_MAX];
        assert!(Sum::of(&bytes).plus(Sum::of(&bytes)).verifies());
        bytes[BYTES_MAX - 2..].copy_from_slice(&[0x12, 0x34]);
        assert_eq!(Sum::of(&bytes).folded(), [0x12, 0x34]);
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_rfc(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            word in any::<u16>(),
            double_word in any::<u32>(),
        ) {
            let sum = Sum::of(&bytes);
            prop_assert_eq!(u16::from_be_bytes(sum.folded()), slow(&bytes));
            prop_assert_eq!(u16::from_be_bytes(sum.complement()), !slow(&bytes));
            prop_assert_eq!(crate::checksum(&bytes), !slow(&bytes));
            let mut longer = bytes.clone();
            longer.resize(bytes.len().next_multiple_of(2), 0);
            longer.extend(word.to_be_bytes());
            longer.extend(double_word.to_be_bytes());
            let whole = sum.plus(Sum::word(word)).plus(Sum::double_word(double_word));
            prop_assert_eq!(u16::from_be_bytes(whole.folded()), slow(&longer));
            // Two zeros there are in one's complement, and the sum of something is never +0.
            let without = u16::from_be_bytes(whole.without_word(word).folded());
            let expected = u16::from_be_bytes(sum.plus(Sum::double_word(double_word)).folded());
            prop_assert_eq!(without % 0xffff, expected % 0xffff);
        }

        #[test]
        fn a_checksum_verifies_and_a_damaged_one_does_not(
            mut bytes in prop::collection::vec(any::<u8>(), 2..200),
            flipped_bit in any::<prop::sample::Index>(),
        ) {
            bytes[..2].fill(0);
            let checksum = Sum::of(&bytes).complement();
            bytes[..2].copy_from_slice(&checksum);
            prop_assert!(Sum::of(&bytes).verifies());
            let bit = flipped_bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!Sum::of(&bytes).verifies());
        }
    }
}
