//! Tells a leak from work and from noise: how much of something a run's last quarter has beside its
//! second one.
//!
//! The first quarter does not count: caches fill then, and tables are touched for the first time.
//! Medians do, so that what comes and goes, or is seen at a bad moment, does not. What must grow
//! with the work that is done is allowed for by that work and by nothing else, so that it has to be
//! stated how much.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

/// Samples that each of both quarters needs: a median of fewer is noise itself.
pub const QUARTER_SAMPLES_MIN: usize = 5;
/// Parts of a run whose medians show its course.
const COURSE_PARTS: u32 = 8;

/// What was there at a time of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Since the run began.
    pub at: Duration,
    /// How much.
    pub value: u64,
}

/// What was done between the middles of both quarters, for which something may have to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Blocks of all chains.
    pub blocks: u64,
    /// Units paid.
    pub units: u64,
}

/// How much more there may be in the last quarter. All parts count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Thousandths of what there was.
    pub per_mille: u64,
    /// However much there was.
    pub fixed: u64,
    /// For each block.
    pub per_block: u64,
    /// For each unit.
    pub per_unit: u64,
    /// What is kept for work is thrown away once there is so much of it.
    pub work_max: Option<u64>,
}

impl Allowance {
    /// Nothing, to begin with.
    pub const NOTHING: Self = Self {
        per_mille: 0,
        fixed: 0,
        per_block: 0,
        per_unit: 0,
        work_max: None,
    };

    fn of(self, before: u64, work: Work) -> u64 {
        let kept = work.blocks * self.per_block + work.units * self.per_unit;
        let kept = self.work_max.map_or(kept, |most| kept.min(most));
        before * self.per_mille / 1000 + self.fixed + kept
    }
}

/// How much there was, and how much more there may have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// The second quarter's median.
    pub before: u64,
    /// The last quarter's.
    pub after: u64,
    /// By how much the latter may be above the former.
    pub allowed: u64,
}

impl Growth {
    /// Judges what a run, from its first sample to its last, saw of something.
    pub fn judge(samples: &[Sample], allowance: Allowance, work: Work) -> Result<Self> {
        let (before, after) = medians(samples)?;
        Ok(Self {
            before,
            after,
            allowed: allowance.of(before, work),
        })
    }

    /// False if it is a leak.
    pub const fn holds(&self) -> bool {
        self.after.saturating_sub(self.before) <= self.allowed
    }

    /// How much more there is.
    pub fn grown(&self) -> i128 {
        i128::from(self.after) - i128::from(self.before)
    }
}

/// The medians of the second quarter and of the last one.
pub fn medians(samples: &[Sample]) -> Result<(u64, u64)> {
    let quarter = |number| {
        let values = part(samples, number, 4);
        ensure!(
            values.len() >= QUARTER_SAMPLES_MIN,
            "{} samples in quarter {} of the run; {QUARTER_SAMPLES_MIN} are needed: let it run longer",
            values.len(),
            number + 1
        );
        Ok(median(values).unwrap_or_default())
    };
    Ok((quarter(1)?, quarter(3)?))
}

/// The medians of as many parts as have samples, for people who want to see the way there.
pub fn course(samples: &[Sample]) -> Vec<u64> {
    let parts = (0..COURSE_PARTS).map(|number| part(samples, number, COURSE_PARTS));
    parts.filter_map(median).collect()
}

/// The values of one part of so many, from 0 on. The last sample is the last part's.
fn part(samples: &[Sample], number: u32, of: u32) -> Vec<u64> {
    let end = samples.last().map_or(Duration::ZERO, |sample| sample.at);
    let begins = |number| end * number / of;
    let inside = samples.iter().filter(|sample| {
        let is_last = number + 1 == of;
        sample.at >= begins(number) && (is_last || sample.at < begins(number + 1))
    });
    inside.map(|sample| sample.value).collect()
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD_S: u64 = 5;
    /// 5 % and 2 MiB.
    const USUAL: Allowance = Allowance {
        per_mille: 50,
        fixed: 2 << 20,
        ..Allowance::NOTHING
    };
    const MIB: u64 = 1 << 20;

    /// A run of so many samples.
    fn run(count: u64, value: impl Fn(u64) -> u64) -> Vec<Sample> {
        let sample = |number| Sample {
            at: Duration::from_secs(number * PERIOD_S),
            value: value(number),
        };
        (0..count).map(sample).collect()
    }

    fn judge(samples: &[Sample]) -> Growth {
        Growth::judge(samples, USUAL, Work::default()).unwrap()
    }

    #[test]
    fn a_leak_is_found_however_slow_if_the_run_is_long() {
        // What it leaks a second and how long it takes until that is seen.
        for (bytes_per_s, samples) in [(100_000, 36), (10_000, 240), (2_500, 720)] {
            let leak = |number| 40 * MIB + number * PERIOD_S * bytes_per_s;
            let growth = judge(&run(samples, leak));
            assert!(!growth.holds(), "{bytes_per_s} bytes a second: {growth:?}");
        }
        // One descriptor in two minutes.
        let slack = Allowance {
            fixed: 4,
            ..Allowance::NOTHING
        };
        let descriptors = run(720, |number| 60 + number * PERIOD_S / 120);
        let growth = Growth::judge(&descriptors, slack, Work::default()).unwrap();
        assert_eq!((growth.before, growth.after), (71, 86));
        assert!(!growth.holds());
    }

    #[test]
    fn a_leak_within_noise_is_found() {
        let noise = |number: u64| number.wrapping_mul(2_654_435_761) % (3 * MIB);
        let samples = run(720, |number| 40 * MIB + number * 20_000 + noise(number));
        assert!(!judge(&samples).holds());
    }

    #[test]
    fn what_comes_and_goes_or_stays_is_no_leak() {
        type Value = fn(u64) -> u64;
        let cases: [(&str, Value); 5] = [
            ("nothing happens", |_| 40 * MIB),
            ("a warm-up", |number| 40 * MIB - 20 * MIB / (1 + number)),
            ("noise", |number| {
                40 * MIB + number.wrapping_mul(2_654_435_761) % (3 * MIB)
            }),
            ("a saw", |number| 40 * MIB + number % 60 * MIB / 6),
            ("a few high peaks", |number| {
                40 * MIB + if number % 7 == 6 { 500 * MIB } else { 0 }
            }),
        ];
        for (case, value) in cases {
            for count in [36, 720] {
                let growth = judge(&run(count, value));
                assert!(growth.holds(), "{case}, {count} samples: {growth:?}");
            }
        }
        assert!(judge(&run(40, |number| 90 * MIB - number * MIB)).holds());
    }

    #[test]
    fn work_is_allowed_for_by_itself_and_no_further() {
        let samples = run(80, |number| 1000 + number * 100);
        let growth = |per_block, per_unit, work_max| {
            let allowance = Allowance {
                per_block,
                per_unit,
                work_max,
                ..Allowance::NOTHING
            };
            let work = Work {
                blocks: 100,
                units: 50,
            };
            Growth::judge(&samples, allowance, work).unwrap()
        };
        let grown = growth(0, 0, None);
        assert_eq!((grown.before, grown.after), (4000, 8000));
        assert_eq!(grown.grown(), 4000);
        for (per_block, per_unit, work_max, holds) in [
            (0, 0, None, false),
            (40, 0, None, true),
            (39, 0, None, false),
            (0, 80, None, true),
            (20, 40, None, true),
            (20, 39, None, false),
            (40, 0, Some(4000), true),
            (40, 0, Some(3999), false),
        ] {
            let growth = growth(per_block, per_unit, work_max);
            assert_eq!(growth.holds(), holds, "{per_block} {per_unit}: {growth:?}");
        }
    }

    #[test]
    fn too_few_samples_are_an_error_and_no_judgement() {
        for count in [0, 1, 2, 16] {
            let error = Growth::judge(&run(count, |_| 1), USUAL, Work::default()).unwrap_err();
            let words = error.to_string();
            assert!(words.contains("let it run longer"), "{count}: {words}");
        }
        // Many, but none of the second quarter.
        let mut samples = run(100, |_| 1);
        samples.retain(|sample| sample.at.as_secs() < 100 || sample.at.as_secs() > 300);
        assert!(Growth::judge(&samples, USUAL, Work::default()).is_err());
        assert!(Growth::judge(&run(24, |_| 1), USUAL, Work::default()).is_ok());
    }

    #[test]
    fn the_course_shows_each_part_in_its_place() {
        assert_eq!(
            course(&run(81, |number| number)),
            [5, 15, 25, 35, 45, 55, 65, 75]
        );
        assert_eq!(course(&[]), [0; 0]);
    }
}
