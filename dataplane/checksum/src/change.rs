//! Mending Internet checksums (RFC 1624): what changed is added, nothing is summed up anew, so
//! a packet that arrived damaged leaves damaged.

/// The sum of what 16-bit words changed by, in one's complement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change(u32);

impl Change {
    /// One word. At most a thousand of them fit.
    #[inline(always)]
    #[must_use]
    pub fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + u32::from(!old) + u32::from(new))
    }

    /// An address: two words.
    #[inline(always)]
    #[must_use]
    pub fn address(self, old: u32, new: u32) -> Self {
        self.word((old >> 16) as u16, (new >> 16) as u16)
            .word(old as u16, new as u16)
    }

    /// The checksum after the change (RFC 1624, equation 3).
    #[inline(always)]
    #[must_use]
    pub fn mend(self, checksum: u16) -> u16 {
        let sum = u32::from(!checksum) + self.0;
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }

    /// A UDP checksum after the change. Zero says that there is none and stays; one that comes
    /// out as zero is sent as its other form (RFC 768).
    #[inline(always)]
    #[must_use]
    pub fn mend_udp(self, checksum: u16) -> u16 {
        match (checksum, self.mend(checksum)) {
            (0, _) => 0,
            (_, 0) => 0xffff,
            (_, mended) => mended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_mended_is_what_would_be_computed(
            mut words in prop::collection::vec(any::<u16>(), 4..20),
            address in any::<u32>(),
            port in any::<u16>(),
        ) {
            // All-zero data does not occur: a header has a version.
            words[3] |= 0x4500;
            let bytes = |words: &[u16]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
            let before = checksum(&bytes(&words));
            let old = u32::from(words[0]) << 16 | u32::from(words[1]);
            let change = Change::default().address(old, address).word(words[2], port);
            words[0] = (address >> 16) as u16;
            words[1] = address as u16;
            words[2] = port;
            prop_assert_eq!(change.mend(before), checksum(&bytes(&words)));
        }
    }

    #[test]
    fn a_udp_checksum_is_never_made_or_lost() {
        let change = Change::default().word(1, 2);
        assert_eq!(change.mend_udp(0), 0);
        // !x + !1 + 2 folds to 0xffff for x = 1, which would be written as zero.
        assert_eq!(change.mend(1), 0);
        assert_eq!(change.mend_udp(1), 0xffff);
    }
}
