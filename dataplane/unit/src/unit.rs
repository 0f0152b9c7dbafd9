//! The billing unit, and the one place where bytes are cut into it.

/// Bytes in a billing unit. No other file knows this number.
pub const UNIT_BYTES: u64 = 524_288;

/// A number of units.
pub type UnitCount = u64;

/// Units owed for `channel_bytes`, of which `written_off` whole units are forgiven. A unit is
/// owed as soon as its first byte is forwarded, so this rounds up.
pub fn units_owed(channel_bytes: u64, written_off: UnitCount) -> UnitCount {
    channel_bytes
        .div_ceil(UNIT_BYTES)
        .saturating_sub(written_off)
}

/// Bytes that may be forwarded when `accepted` units are paid for and `written_off` are
/// forgiven, or `None` if they cannot be counted.
pub fn bytes_paid_for(accepted: UnitCount, written_off: UnitCount) -> Option<u64> {
    accepted.checked_add(written_off)?.checked_mul(UNIT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_owed_from_its_first_byte() {
        let cases = [
            (0, 0, 0),
            (1, 0, 1),
            (UNIT_BYTES, 0, 1),
            (UNIT_BYTES + 1, 0, 2),
            (UNIT_BYTES + 1, 1, 1),
            (1, 1, 0),
            (0, 1, 0),
            (u64::MAX, 0, u64::MAX / UNIT_BYTES + 1),
        ];
        for (bytes, written_off, owed) in cases {
            assert_eq!(
                units_owed(bytes, written_off),
                owed,
                "{bytes} − {written_off}"
            );
        }
    }

    #[test]
    fn what_is_paid_for_is_never_owed_twice() {
        for accepted in 0..5 {
            for written_off in 0..3 {
                let bytes = bytes_paid_for(accepted, written_off).unwrap();
                assert_eq!(units_owed(bytes, written_off), accepted);
                assert_eq!(units_owed(bytes + 1, written_off), accepted + 1);
            }
        }
        assert_eq!(bytes_paid_for(u64::MAX, 1), None);
        assert_eq!(bytes_paid_for(u64::MAX / UNIT_BYTES + 1, 0), None);
    }
}
