//! How much a wallet promises one provider, and how fast: what was promised in the last hour,
//! minute by minute, and what may still be.
//!
//! A pure value; [`Allowance`](crate::allowance::Allowance) keeps it on disk. An hour here is sixty whole
//! minutes and the one that has begun, so what is promised in any sixty minutes on end stays
//! within the limit.
//!
//! **Its clock is its own.** It goes forward by what the machine's boot clock (which no one can
//! set) says has passed since the last look, so that setting the wall clock, forward or back,
//! changes nothing. Only over a reboot the wall clock counts: where it says less than the time
//! since the boot, that time counts, so a clock that was put back neither frees an hour twice
//! nor holds it for ever. A clock that is put forward *and* a reboot free one hour early.

use serde::{Deserialize, Serialize};
use topnet_account::Amount;
use topnet_unit::{UNIT_BYTES, UnitCount};

/// Minutes in an hour, and the one that has begun.
const MINUTES: usize = 61;
const MINUTE_US: u64 = 60_000_000;
const SECOND_US: u64 = 1_000_000;
/// More than this passed is as good as this.
const ELAPSED_MS_MAX: u64 = 2 * 3_600_000;

/// What the wallet's owner allows for one provider. What is left out is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most that is promised in an hour.
    pub hourly_spend: Option<Amount>,
    /// The most bytes that are paid for in an hour; whole units count.
    pub hourly_volume_bytes: Option<u64>,
    /// The most bytes that are paid for in a second, on average; a second's worth, or one unit,
    /// may come at once.
    pub rate_bytes_per_s: Option<u64>,
}

impl Limits {
    /// True if nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// Which limit holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// [`Limits::hourly_spend`].
    HourlySpend,
    /// [`Limits::hourly_volume_bytes`].
    HourlyVolume,
    /// [`Limits::rate_bytes_per_s`].
    Rate,
}

/// A moment by the machine's clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Which run of the kernel; its random id.
    pub boot: [u8; 16],
    /// Since its beginning, sleep included.
    pub boot_ms: u64,
    /// The wall clock, since 1970.
    pub wall_ms: u64,
}

/// What may be promised now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Units; they count as promised from now on.
    pub units: UnitCount,
    /// Why they are fewer than were asked for.
    pub limit: Option<Limit>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Minute {
    units: u64,
    ntop: u64,
}

/// What was promised in the last hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promised {
    last_look: Moment,
    /// The own clock. It starts late enough for all to be over.
    clock_us: u64,
    /// Until when the rate is used up, by the own clock.
    rate_us: u64,
    /// By the own clock's minute, as a ring.
    minutes: [Minute; MINUTES],
}

impl Promised {
    /// Length of [`to_bytes`](Self::to_bytes).
    pub const BYTES: usize = 16 + 4 * 8 + MINUTES * 16;

    /// Nothing was promised before `now`.
    pub fn new(now: Moment) -> Self {
        Self {
            last_look: now,
            clock_us: MINUTES as u64 * MINUTE_US,
            rate_us: 0,
            minutes: [Minute::default(); MINUTES],
        }
    }

    /// Promises up to `units` at `unit_price` each, as many as `limits` allow at `now`.
    pub fn handle_ask(
        &mut self,
        limits: &Limits,
        units: UnitCount,
        unit_price: Amount,
        now: Moment,
    ) -> Grant {
        self.pass_time(now);
        let rate = limits.rate_bytes_per_s.map(Rate::new);
        let ways = [
            limits
                .hourly_spend
                .map(|most| (Limit::HourlySpend, self.units_of_spend(most, unit_price))),
            limits
                .hourly_volume_bytes
                .map(|most| (Limit::HourlyVolume, self.units_of_volume(most))),
            rate.map(|rate| (Limit::Rate, rate.units(self.rate_us, self.clock_us))),
        ];
        let mut grant = Grant { units, limit: None };
        for (limit, most) in ways.into_iter().flatten() {
            if most < grant.units {
                (grant.units, grant.limit) = (most, Some(limit));
            }
        }
        if self.note(grant.units, unit_price).is_none() {
            // More than can be counted was promised; nobody allows that.
            return Grant {
                units: 0,
                limit: Some(Limit::HourlySpend),
            };
        }
        if let Some(rate) = rate {
            self.rate_us = rate.used(self.rate_us, self.clock_us, grant.units);
        }
        grant
    }

    fn pass_time(&mut self, now: Moment) {
        let last = self.last_look;
        let elapsed_ms = if now.boot == last.boot {
            now.boot_ms.saturating_sub(last.boot_ms)
        } else {
            now.wall_ms.saturating_sub(last.wall_ms).max(now.boot_ms)
        };
        let before = self.minute();
        let elapsed_us = elapsed_ms.min(ELAPSED_MS_MAX) * 1_000;
        self.clock_us = self.clock_us.saturating_add(elapsed_us);
        for minute in (before + 1..=self.minute()).take(MINUTES) {
            self.minutes[(minute % MINUTES as u64) as usize] = Minute::default();
        }
        self.last_look = Moment {
            // Never back in one boot, whoever looks.
            boot_ms: if now.boot == last.boot {
                now.boot_ms.max(last.boot_ms)
            } else {
                now.boot_ms
            },
            ..now
        };
    }

    /// The minute of the own clock.
    fn minute(&self) -> u64 {
        self.clock_us / MINUTE_US
    }

    fn units_of_spend(&self, most: Amount, unit_price: Amount) -> UnitCount {
        let spent: u128 = self
            .minutes
            .iter()
            .map(|minute| u128::from(minute.ntop))
            .sum();
        let left = u128::from(most.ntop()).saturating_sub(spent);
        let units = left.checked_div(u128::from(unit_price.ntop()));
        units.map_or(u64::MAX, |units| u64::try_from(units).unwrap_or(u64::MAX))
    }

    fn units_of_volume(&self, most_bytes: u64) -> UnitCount {
        let paid: u128 = self
            .minutes
            .iter()
            .map(|minute| u128::from(minute.units))
            .sum();
        let left = u128::from(most_bytes / UNIT_BYTES).saturating_sub(paid);
        u64::try_from(left).unwrap_or(u64::MAX)
    }

    /// Counts what is promised; `None`, and nothing changed, if it cannot be counted.
    fn note(&mut self, units: UnitCount, unit_price: Amount) -> Option<()> {
        let minute = &mut self.minutes[(self.clock_us / MINUTE_US % MINUTES as u64) as usize];
        let ntop = unit_price.checked_mul(units)?.ntop();
        *minute = Minute {
            units: minute.units.checked_add(units)?,
            ntop: minute.ntop.checked_add(ntop)?,
        };
        Some(())
    }

    /// As it is stored: boot id, then little-endian words.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let Moment {
            boot,
            boot_ms,
            wall_ms,
        } = self.last_look;
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&boot);
        let words = [boot_ms, wall_ms, self.clock_us, self.rate_us].into_iter();
        let minutes = self.minutes.iter();
        let words = words.chain(minutes.flat_map(|minute| [minute.units, minute.ntop]));
        for (place, word) in bytes[16..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let (boot, words) = bytes.split_at(16);
        let mut words = words.chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_le_bytes(bytes)
        });
        let mut next = || words.next().unwrap_or_default();
        let (boot_ms, wall_ms, clock_us, rate_us) = (next(), next(), next(), next());
        let mut promised = Self {
            last_look: Moment {
                boot: [0; 16],
                boot_ms,
                wall_ms,
            },
            clock_us,
            rate_us,
            minutes: [Minute::default(); MINUTES],
        };
        promised.last_look.boot.copy_from_slice(boot);
        for minute in &mut promised.minutes {
            (minute.units, minute.ntop) = (next(), next());
        }
        promised
    }
}

/// A rate as the time that a unit takes.
#[derive(Clone, Copy, Debug)]
struct Rate {
    unit_us: u64,
    /// How much unused time may be saved up: a second, or one unit.
    saved_us_max: u64,
}

impl Rate {
    fn new(bytes_per_s: u64) -> Self {
        let unit_us = u128::from(UNIT_BYTES) * u128::from(SECOND_US);
        let unit_us = unit_us.div_ceil(u128::from(bytes_per_s.max(1)));
        let unit_us = u64::try_from(unit_us).unwrap_or(u64::MAX);
        Self {
            unit_us,
            saved_us_max: unit_us.max(SECOND_US),
        }
    }

    /// Where the used time ends, not further back than may be saved.
    fn start(self, used_us: u64, now_us: u64) -> u64 {
        used_us.max(now_us.saturating_sub(self.saved_us_max))
    }

    fn units(self, used_us: u64, now_us: u64) -> UnitCount {
        now_us.saturating_sub(self.start(used_us, now_us)) / self.unit_us
    }

    fn used(self, used_us: u64, now_us: u64, units: UnitCount) -> u64 {
        // No more units than fit before now, so this cannot pass it.
        self.start(used_us, now_us) + units * self.unit_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Amount = Amount::from_ntop(7);
    const MINUTE_MS: u64 = 60_000;
    const START: Moment = Moment {
        boot: [1; 16],
        boot_ms: 1_000_000,
        wall_ms: 1_800_000_000_000,
    };

    fn after(ms: u64) -> Moment {
        Moment {
            boot_ms: START.boot_ms + ms,
            wall_ms: START.wall_ms + ms,
            ..START
        }
    }

    fn hourly(units: u64) -> Limits {
        Limits {
            hourly_spend: Some(Amount::from_ntop(7 * units)),
            ..Limits::default()
        }
    }

    fn granted(promised: &mut Promised, limits: &Limits, units: u64, now: Moment) -> u64 {
        promised.handle_ask(limits, units, PRICE, now).units
    }

    #[test]
    fn each_limit_holds_and_is_named() {
        let cases = [
            (Limits::default(), 1_000, None),
            (hourly(10), 10, Some(Limit::HourlySpend)),
            (
                Limits {
                    hourly_volume_bytes: Some(4 * UNIT_BYTES - 1),
                    ..hourly(10)
                },
                3,
                Some(Limit::HourlyVolume),
            ),
            (
                Limits {
                    rate_bytes_per_s: Some(2 * UNIT_BYTES),
                    ..hourly(10)
                },
                2,
                Some(Limit::Rate),
            ),
            (
                Limits {
                    hourly_spend: Some(Amount::from_ntop(6)),
                    ..Limits::default()
                },
                0,
                Some(Limit::HourlySpend),
            ),
        ];
        for (limits, units, limit) in cases {
            let mut promised = Promised::new(START);
            let grant = promised.handle_ask(&limits, 1_000, PRICE, START);
            assert_eq!(grant, Grant { units, limit }, "{limits:?}");
        }
    }

    #[test]
    fn no_sixty_minutes_on_end_have_more_than_the_limit() {
        // As much as is allowed, every 20 seconds for five hours.
        let (limits, step_ms) = (hourly(100), 20_000);
        let mut promised = Promised::new(START);
        let mut given = Vec::new();
        for step in 0..5 * 180 {
            let now = after(step * step_ms);
            given.push(granted(&mut promised, &limits, 3, now));
        }
        let hours = given.windows(180).map(|hour| hour.iter().sum::<u64>());
        assert_eq!(hours.max(), Some(100));
        assert!(given[4 * 180..].iter().sum::<u64>() > 90, "and it goes on");
    }

    #[test]
    fn the_rate_is_kept_over_any_time_and_a_restart() {
        let limits = Limits {
            rate_bytes_per_s: Some(UNIT_BYTES / 10),
            ..Limits::default()
        };
        let mut promised = Promised::new(START);
        let mut given = Vec::new();
        for second in 0..100 {
            given.push(granted(&mut promised, &limits, 64, after(second * 1_000)));
            promised = Promised::from_bytes(&promised.to_bytes());
        }
        assert_eq!(given.iter().sum::<u64>(), 10);
        assert_eq!(given[0], 1, "the first comes at once");
        // Unused time is not saved up.
        assert_eq!(granted(&mut promised, &limits, 64, after(900_000)), 1);
        let slow = Limits {
            rate_bytes_per_s: Some(0),
            ..Limits::default()
        };
        assert_eq!(granted(&mut Promised::new(START), &slow, 1, START), 0);
    }

    #[test]
    fn setting_the_wall_clock_changes_nothing() {
        let limits = hourly(10);
        let mut promised = Promised::new(START);
        assert_eq!(granted(&mut promised, &limits, 10, START), 10);
        for wall_ms in [0, START.wall_ms * 2, 5, u64::MAX, START.wall_ms] {
            let now = Moment {
                wall_ms,
                ..after(MINUTE_MS)
            };
            assert_eq!(granted(&mut promised, &limits, 10, now), 0, "{wall_ms}");
        }
        let now = Moment {
            wall_ms: 0,
            ..after(61 * MINUTE_MS)
        };
        assert_eq!(granted(&mut promised, &limits, 10, now), 10);
    }

    #[test]
    fn over_a_reboot_a_clock_put_back_frees_nothing_and_holds_no_longer_than_an_hour() {
        let limits = hourly(10);
        let rebooted = |boot_ms, wall_ms| Moment {
            boot: [2; 16],
            boot_ms,
            wall_ms,
        };
        let mut promised = Promised::new(START);
        assert_eq!(granted(&mut promised, &limits, 10, START), 10);
        let early = START.wall_ms / 2;
        // The first look after the reboot comes an hour after it.
        let late = rebooted(61 * MINUTE_MS, early);
        assert_eq!(granted(&mut promised.clone(), &limits, 10, late), 10);
        let mut back = promised.clone();
        assert_eq!(granted(&mut back, &limits, 10, rebooted(0, early)), 0);
        let soon = rebooted(61 * MINUTE_MS, early + 61 * MINUTE_MS);
        assert_eq!(granted(&mut back, &limits, 10, soon), 10);
        // Off for an hour: the wall clock says so.
        let later = rebooted(9, START.wall_ms + 61 * MINUTE_MS);
        assert_eq!(granted(&mut promised, &limits, 10, later), 10);
        // Put forward and back again, it is not free once more.
        assert_eq!(granted(&mut promised, &limits, 10, rebooted(10, early)), 0);
    }

    #[test]
    fn another_look_at_an_earlier_moment_frees_nothing() {
        let limits = hourly(10);
        let mut promised = Promised::new(START);
        assert_eq!(granted(&mut promised, &limits, 10, after(1)), 10);
        for step in 0..10_000 {
            // Two processes whose clocks differ take turns.
            let now = after(step % 2 * 30 * MINUTE_MS);
            assert_eq!(granted(&mut promised, &limits, 10, now), 0);
        }
    }

    #[test]
    fn what_cannot_be_counted_is_not_promised() {
        let limits = Limits {
            hourly_volume_bytes: Some(u64::MAX),
            ..Limits::default()
        };
        let mut promised = Promised::new(START);
        let before = promised.clone();
        let grant = promised.handle_ask(&limits, 9, Amount::MAX, START);
        assert_eq!(grant.units, 0);
        assert_eq!(promised, before);
    }

    /// These bytes are on disks: they change only with the file's version.
    #[test]
    fn golden_bytes() {
        let mut promised = Promised::new(START);
        granted(&mut promised, &Limits::default(), 3, after(MINUTE_MS));
        let bytes = promised.to_bytes();
        assert_eq!(Promised::from_bytes(&bytes), promised);
        let hex =
            |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        assert_eq!(
            hex(&bytes[..80]),
            "01010101010101010101010101010101a02c100000000000603a5d18a301000000b2badd00000000\
             0000000000000000000000000000000000000000000000000300000000000000\
             1500000000000000"
        );
        assert!(bytes[80..].iter().all(|byte| *byte == 0));
    }
}
