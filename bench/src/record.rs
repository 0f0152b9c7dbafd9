//! What a run leaves: one record per case, complete enough to be compared years later.

use crate::lane::{Better, Figure, Latency, Measurement};
use serde::Serialize;
use std::collections::BTreeMap;

/// One case's figures. The names of the fields are what readers of the JSON rely on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// The lane's name.
    pub lane: String,
    /// The case's name.
    pub case: String,
    /// What the figure counts.
    pub metric: String,
    /// The figure's unit.
    pub unit: String,
    /// Which direction is good.
    pub better: Better,
    /// The circumstances.
    pub mode: String,
    /// Our median.
    pub value: f64,
    /// Our lowest round.
    pub min: f64,
    /// Our highest round.
    pub max: f64,
    /// How many rounds each contender ran.
    pub rounds: usize,
    /// How many events our rounds were taken from, together.
    pub samples: u64,
    /// CPU time that our rounds took, together, in seconds.
    pub cpu_s: f64,
    /// Percentiles of how long it took, where a case tells: medians of the rounds, and the
    /// slowest of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// What else was measured, by name: medians of the rounds.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<String, Figure>,
    /// The others, measured in the same interleaved run.
    pub peers: BTreeMap<String, Peer>,
    /// Our median ÷ the peer's.
    pub ratios: BTreeMap<String, f64>,
    /// Where it was measured.
    pub machine: String,
    /// What was measured.
    pub commit: String,
}

/// A peer's figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Peer {
    /// Its median.
    pub value: f64,
    /// Its lowest round.
    pub min: f64,
    /// Its highest round.
    pub max: f64,
    /// Its version.
    pub version: String,
    /// As in [`Record`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// As in [`Record`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<String, Figure>,
}

/// Median, lowest and highest of some rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The median; of an even number of rounds, the mean of the middle two.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Summary {
    /// Sums up rounds; `None` if there are none.
    pub fn of(rounds: &[Measurement]) -> Option<Summary> {
        let values: Vec<f64> = rounds.iter().map(|round| round.value).collect();
        Some(Summary {
            min: values.iter().copied().min_by(f64::total_cmp)?,
            max: values.iter().copied().max_by(f64::total_cmp)?,
            median: median(values)?,
        })
    }
}

/// The rounds' latency; `None` if no round told one.
pub fn latency(rounds: &[Measurement]) -> Option<Latency> {
    let told = || rounds.iter().filter_map(|round| round.latency);
    let middle = |of: fn(Latency) -> f64| median(told().map(of).collect());
    Some(Latency {
        p50_us: middle(|latency| latency.p50_us)?,
        p99_us: middle(|latency| latency.p99_us)?,
        p999_us: middle(|latency| latency.p999_us)?,
        max_us: told()
            .map(|latency| latency.max_us)
            .max_by(f64::total_cmp)?,
    })
}

/// The rounds' figures beside the one that they are about.
pub fn beside(rounds: &[Measurement]) -> BTreeMap<String, Figure> {
    let mut values: BTreeMap<&String, (Vec<f64>, &String)> = BTreeMap::new();
    for (name, figure) in rounds.iter().flat_map(|round| &round.beside) {
        let (values, _) = values.entry(name).or_insert((Vec::new(), &figure.unit));
        values.push(figure.value);
    }
    let medians = values.into_iter().filter_map(|(name, (values, unit))| {
        let (value, unit) = (median(values)?, unit.clone());
        Some((name.clone(), Figure { value, unit }))
    });
    medians.collect()
}

/// The median; of an even number of values, the mean of the middle two. `None` if there are none.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let above = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(above);
    }
    Some((values[middle - 1] + above) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_middle() {
        let summary = |values: &[f64]| {
            let rounds: Vec<Measurement> = values
                .iter()
                .map(|&value| Measurement::new(value, 1, 0.0))
                .collect();
            Summary::of(&rounds).map(|found| (found.median, found.min, found.max))
        };
        for (values, expected) in [
            (&[][..], None),
            (&[7.0], Some((7.0, 7.0, 7.0))),
            (&[9.0, 1.0, 2.0], Some((2.0, 1.0, 9.0))),
            (&[4.0, 1.0, 2.0, 9.0], Some((3.0, 1.0, 9.0))),
        ] {
            assert_eq!(summary(values), expected, "{values:?}");
        }
    }

    #[test]
    fn percentiles_and_what_stands_beside_are_medians_and_the_slowest_is_the_slowest() {
        let round = |us: f64, bytes: f64| {
            let latency = Latency {
                p50_us: us,
                p99_us: us * 2.0,
                p999_us: us * 3.0,
                max_us: us * 4.0,
            };
            Measurement::new(1.0, 1, 0.0)
                .with_latency(Some(latency))
                .with("bytes", bytes, "bytes")
        };
        let rounds = [round(1.0, 7.0), round(9.0, 5.0), round(2.0, 6.0)];
        let expected = Latency {
            p50_us: 2.0,
            p99_us: 4.0,
            p999_us: 6.0,
            max_us: 36.0,
        };
        assert_eq!(latency(&rounds), Some(expected));
        assert_eq!(beside(&rounds)["bytes"].value, 6.0);
        assert_eq!(latency(&[Measurement::new(1.0, 1, 0.0)]), None);
    }
}
