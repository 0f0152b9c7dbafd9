//! How far a payer pays ahead.

use topnet_unit::UnitCount;

/// The window for a channel on which `owed` units have come due and been paid: 1 at first, so
/// that a stranger risks one unit, then doubling with paid history up to `cap`.
pub fn window_units(owed: UnitCount, cap: UnitCount) -> UnitCount {
    let history = owed.saturating_add(1);
    (1 << history.ilog2().min(62)).min(cap).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

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
