//! `[dataplane.rates]`: how fast a paying session may go.

use serde::Deserialize;

use crate::error::Problems;

/// Limits of each session, in bits of inner packets a second; none where a key is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// From the client.
    pub up_bits_per_s: Option<u64>,
    /// To the client.
    pub down_bits_per_s: Option<u64>,
    /// Both ways once the credit is used up, for nothing; without it nothing passes then.
    pub unpaid_bits_per_s: Option<u64>,
}

impl Rates {
    /// Slowest rate: below it a packet waits for seconds.
    pub const BITS_PER_S_MIN: u64 = 64_000;
    /// Fastest rate: no limit does for more.
    pub const BITS_PER_S_MAX: u64 = 100_000_000_000;

    pub(crate) fn check(&self, problems: &mut Problems<'_>) {
        let rates = [
            ("rates.up_bits_per_s", self.up_bits_per_s),
            ("rates.down_bits_per_s", self.down_bits_per_s),
            ("rates.unpaid_bits_per_s", self.unpaid_bits_per_s),
        ];
        for (key, rate) in rates {
            let possible = Self::BITS_PER_S_MIN..=Self::BITS_PER_S_MAX;
            if let Some(rate) = rate.filter(|rate| !possible.contains(rate)) {
                problems.add(
                    key,
                    format!("{rate} is out of range"),
                    "choose 64000 to 100000000000, or leave the key out for no limit",
                );
            }
        }
    }
}
