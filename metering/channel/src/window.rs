//! How far a payer pays ahead, and how much it takes itself to have used.

use topnet_unit::UnitCount;

/// The window for a channel on which `owed` units have come due and been paid: 1 at first, so
/// that a stranger risks one unit, then doubling with paid history up to `cap`.
pub fn window_units(owed: UnitCount, cap: UnitCount) -> UnitCount {
    let history = owed.saturating_add(1);
    (1 << history.ilog2().min(62)).min(cap).max(1)
}

const MILLION: u128 = 1_000_000;

/// The most bytes that a payer admits to out of its own count: what it sent, and what it received
/// with `epsilon_ppm` millionths on top, rounded up, because that may have been lost on the last
/// stretch. `None` if that is more than can be counted.
pub fn own_bytes_max(up_bytes: u64, down_bytes: u64, epsilon_ppm: u32) -> Option<u64> {
    let down = u128::from(down_bytes);
    let tolerated = (down * u128::from(epsilon_ppm)).div_ceil(MILLION);
    u64::try_from(u128::from(up_bytes) + down + tolerated).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tolerance_is_on_what_was_received_and_rounds_up() {
        let cases = [
            ((0, 0, 5_000), Some(0)),
            ((7, 0, 5_000), Some(7)),
            ((7, 200, 5_000), Some(208)),
            ((7, 201, 5_000), Some(210)),
            ((0, 1, 1), Some(2)),
            ((3, 4, 0), Some(7)),
            ((u64::MAX, 0, 5_000), Some(u64::MAX)),
            ((u64::MAX, 1, 0), None),
            ((0, u64::MAX, 1), None),
        ];
        for ((up, down, epsilon), bytes) in cases {
            assert_eq!(
                own_bytes_max(up, down, epsilon),
                bytes,
                "{up} {down} {epsilon}"
            );
        }
    }

    #[test]
    fn doubles_with_history_up_to_the_cap() {
        let cases = [
            (0, 64, 1),
            (1, 64, 2),
            (2, 64, 2),
            (3, 64, 4),
            (62, 64, 32),
            (63, 64, 64),
            (1 << 40, 64, 64),
            (9, 5, 5),
            (5, 0, 1),
            (u64::MAX, u64::MAX, 1 << 62),
        ];
        for (owed, cap, window) in cases {
            assert_eq!(window_units(owed, cap), window, "{owed} {cap}");
        }
    }
}
