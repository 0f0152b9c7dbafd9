//! How fast a session may go: a token bucket without a timer (the generic cell rate algorithm, ITU-T
//! I.371, which bounds the same traffic).
//!
//! What is faster is dropped, not delayed: the sender's congestion control finds the rate, and
//! nobody else's packets wait behind it.

use topnet_config::Rates;

/// How much earlier than its turn a packet may come. At a megabit a second these are four packets,
/// and over ten seconds half a percent.
const BURST_NS: u64 = 50_000_000;
const NS_PER_S: u64 = 1_000_000_000;
const BITS_PER_BYTE: u64 = 8;

/// One way of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// What a byte takes, in 1/2^16 ns, so that 100 Gbit/s is exact enough.
    byte_time: u64,
    /// When everything that passed would have passed at the rate.
    due_ns: u64,
}

const FRACTION_BITS: u32 = 16;

impl RateLimit {
    /// A limit of so many bits of inner packets a second, within what can be configured.
    #[must_use]
    pub fn new(bits_per_s: u64) -> Self {
        let bits_per_s = bits_per_s.clamp(Rates::BITS_PER_S_MIN, Rates::BITS_PER_S_MAX);
        Self {
            byte_time: ((NS_PER_S * BITS_PER_BYTE) << FRACTION_BITS) / bits_per_s,
            due_ns: 0,
        }
    }

    /// This limit, at another's rate from now on.
    #[must_use]
    pub const fn at_rate_of(self, other: &Self) -> Self {
        Self {
            byte_time: other.byte_time,
            due_ns: self.due_ns,
        }
    }

    /// True if `bytes` more may pass at `now_ns` of a clock that never goes back.
    #[must_use]
    pub fn admits(&self, now_ns: u64) -> bool {
        self.due_ns <= now_ns.saturating_add(BURST_NS)
    }

    /// Takes note of `bytes` that pass.
    pub fn take(&mut self, bytes: usize, now_ns: u64) {
        let time_ns = (bytes as u64).saturating_mul(self.byte_time) >> FRACTION_BITS;
        self.due_ns = self.due_ns.max(now_ns).saturating_add(time_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bits a second that pass over ten seconds when `offered` times the rate arrives in bursts.
    fn passed(bits_per_s: u64, offered: f64, packet_bytes: usize, burst: u64) -> f64 {
        let mut limit = RateLimit::new(bits_per_s);
        let start = 77 * NS_PER_S;
        let burst_bits = (packet_bytes as u64 * burst * BITS_PER_BYTE) as f64;
        let gap_ns = burst_bits / (bits_per_s as f64 * offered) * NS_PER_S as f64;
        let (mut bursts, mut passed_bytes) = (0u64, 0u64);
        loop {
            let now_ns = start + (bursts as f64 * gap_ns) as u64;
            if now_ns >= start + 10 * NS_PER_S {
                return (passed_bytes * BITS_PER_BYTE) as f64 / 10.0;
            }
            for _ in 0..burst {
                if limit.admits(now_ns) {
                    limit.take(packet_bytes, now_ns);
                    passed_bytes += packet_bytes as u64;
                }
            }
            bursts += 1;
        }
    }

    #[test]
    fn ten_seconds_are_within_two_percent_from_a_megabit_to_a_gigabit() {
        for bits_per_s in [1_000_000, 10_000_000, 100_000_000, 1_000_000_000] {
            for (packet_bytes, burst) in [(1_400, 1), (1_400, 32), (100, 1), (100, 64)] {
                let rate = passed(bits_per_s, 1.5, packet_bytes, burst) / bits_per_s as f64;
                // A burst that is longer than the allowance at this rate cannot pass whole.
                let fits = (packet_bytes as u64 * burst * 8) as f64 / (bits_per_s as f64) < 0.05;
                let least = if fits { 0.98 } else { 0.0 };
                assert!(
                    (least..=1.02).contains(&rate),
                    "{bits_per_s} bit/s, {burst} × {packet_bytes}: {rate}"
                );
            }
        }
    }

    #[test]
    fn a_changed_rate_gives_no_burst_and_takes_none() {
        use crate::session::SessionRates;
        let limited = |bits_per_s| SessionRates {
            up: Some(RateLimit::new(bits_per_s)),
            ..SessionRates::default()
        };
        let (mut rates, now_ns) = (limited(1_000_000), NS_PER_S);
        let up = |rates: &mut SessionRates| {
            rates.up.take().map(|mut up| {
                let admitted = up.admits(now_ns);
                if admitted {
                    up.take(100_000, now_ns);
                }
                rates.up = Some(up);
                admitted
            })
        };
        assert_eq!([up(&mut rates), up(&mut rates)], [Some(true), Some(false)]);
        rates.change(&limited(2_000_000));
        assert_eq!(up(&mut rates), Some(false), "what was used is used");
        rates.change(&SessionRates::default());
        assert_eq!(rates.up, None);
        rates.change(&limited(1_000_000));
        assert_eq!([up(&mut rates), up(&mut rates)], [Some(true), Some(false)]);
    }

    #[test]
    fn what_is_slower_passes_whole() {
        for (bits_per_s, burst) in [(1_000_000, 1), (1_000_000_000, 32)] {
            let offered = passed(bits_per_s, 0.9, 1_400, burst) / bits_per_s as f64;
            assert!((0.899..=0.901).contains(&offered), "{offered}");
        }
    }

    proptest! {
        /// No stretch of time sees more than its share, the allowance and one packet.
        #[test]
        fn never_more_than_the_rate_and_the_allowance(
            bits_per_s in Rates::BITS_PER_S_MIN..10_000_000_000,
            packets in prop::collection::vec((0u64..20_000_000, 1usize..9_000), 1..400),
        ) {
            let mut limit = RateLimit::new(bits_per_s);
            let (mut now_ns, mut bytes, mut largest) = (NS_PER_S, 0u64, 0);
            for (gap_ns, packet_bytes) in packets {
                now_ns += gap_ns;
                if limit.admits(now_ns) {
                    limit.take(packet_bytes, now_ns);
                    bytes += packet_bytes as u64;
                    largest = largest.max(packet_bytes as u64);
                }
            }
            let span_s = (now_ns - NS_PER_S + BURST_NS) as f64 / NS_PER_S as f64;
            let most = bits_per_s as f64 * span_s / 8.0 + largest as f64 + 1.0;
            prop_assert!(bytes as f64 <= most * 1.000_1, "{} {}", bytes, most);
        }
    }
}
