//! What a lane brings: its cases, and for each the contenders.

use anyhow::Result;
use hdrhistogram::Histogram;
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Instant;

/// A subject to measure.
pub trait Lane {
    /// Its name, as on the command line.
    fn name(&self) -> &'static str;

    /// What it measures, in a line.
    fn about(&self) -> &'static str;

    /// Prepares the cases. What a contender needs for all its rounds is made here; what must be
    /// new for each (a topology) is made in its round.
    fn cases(&self) -> Result<Vec<Case>>;
}

/// One figure, and who is measured for it.
pub struct Case {
    /// `lane/figure`, as in `token/verify`.
    pub name: String,
    /// What the figure counts, as in `tokens_per_s`.
    pub metric: String,
    /// Its unit, as in `1/s` or `ns`.
    pub unit: String,
    /// Which direction is good.
    pub better: Better,
    /// The circumstances that one must know to compare: `one core`, `veth, native copy`.
    pub mode: String,
    /// We.
    pub ours: Contender,
    /// The others, by name.
    pub peers: Vec<(String, Contender)>,
}

/// Which direction is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// Whoever is measured.
pub struct Contender {
    /// Its version, as it reports it.
    pub version: String,
    measure: Box<dyn FnMut() -> Result<Measurement>>,
}

impl Contender {
    /// `measure` runs one round.
    pub fn new(
        version: impl Into<String>,
        measure: impl FnMut() -> Result<Measurement> + 'static,
    ) -> Contender {
        Contender {
            version: version.into(),
            measure: Box::new(measure),
        }
    }

    /// Runs one round.
    pub fn measure(&mut self) -> Result<Measurement> {
        (self.measure)()
    }
}

/// What one round gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The figure, in the case's unit.
    pub value: f64,
    /// How many events it was taken from.
    pub samples: u64,
    /// CPU time that the contender took for it, in seconds.
    pub cpu_s: f64,
    /// How long something took, where that is a part of the answer.
    pub latency: Option<Latency>,
    /// What else was measured, by name.
    pub beside: BTreeMap<String, Figure>,
}

/// Percentiles of a latency, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half of the events were faster.
    pub p50_us: f64,
    /// One in a hundred was slower.
    pub p99_us: f64,
    /// One in a thousand was slower.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
}

/// A figure that stands beside the one that a case is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// How much.
    pub value: f64,
    /// Of what, as in `1/s` or `bytes`.
    pub unit: String,
}

impl Measurement {
    /// The figure alone.
    pub fn new(value: f64, samples: u64, cpu_s: f64) -> Measurement {
        Measurement {
            value,
            samples,
            cpu_s,
            latency: None,
            beside: BTreeMap::new(),
        }
    }

    /// With how long it took.
    #[must_use]
    pub fn with_latency(mut self, latency: Option<Latency>) -> Measurement {
        self.latency = latency;
        self
    }

    /// With another figure beside it.
    #[must_use]
    pub fn with(mut self, name: &str, value: f64, unit: &str) -> Measurement {
        let unit = unit.to_owned();
        self.beside.insert(name.to_owned(), Figure { value, unit });
        self
    }
}

/// A slower event than this is told as this.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// For nanoseconds, exact to a thousandth.
pub fn histogram_ns() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)?)
}

impl Latency {
    /// Of a histogram of nanoseconds; `None` if it is empty.
    pub fn of_ns(histogram: &Histogram<u64>) -> Option<Latency> {
        let us = |ns: u64| ns as f64 / 1e3;
        (!histogram.is_empty()).then(|| Latency {
            p50_us: us(histogram.value_at_quantile(0.5)),
            p99_us: us(histogram.value_at_quantile(0.99)),
            p999_us: us(histogram.value_at_quantile(0.999)),
            max_us: us(histogram.max()),
        })
    }
}

/// Measures work of this process: `work` returns how many events it handled, the figure is
/// events per second of wall time.
pub fn per_second(work: impl FnOnce() -> Result<u64>) -> Result<Measurement> {
    let cpu = process_cpu_s();
    let start = Instant::now();
    let samples = work()?;
    let elapsed_s = start.elapsed().as_secs_f64();
    anyhow::ensure!(samples > 0 && elapsed_s > 0.0, "nothing was measured");
    // A count of events is far below 2^53.
    let value = samples as f64 / elapsed_s;
    Ok(Measurement::new(value, samples, process_cpu_s() - cpu))
}

/// CPU time of this process so far, in seconds.
pub fn process_cpu_s() -> f64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ProcessCPUTime);
    tv_sec as f64 + tv_nsec as f64 / 1e9
}
