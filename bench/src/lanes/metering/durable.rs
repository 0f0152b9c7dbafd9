//! Ring → synced journal → credit, without link and payers.

use anyhow::Result;

use super::{
    VERSION, feed,
    parties::WINDOW,
    plane::{Offered, Timed},
    provider::Provider,
};
use crate::{
    lane::{Better, Case, Contender, Measurement},
    lanes::Setup,
    place::Place,
};

/// More than this passes no machine: for how many units a second vouchers are made before.
const UNITS_PER_S_MAX: f64 = 5e6;
const WARM_UP_S: f64 = 30.0;

/// The case.
pub fn case(setup: &Setup) -> Case {
    let size = setup.size;
    let contender = |place| {
        let setup = setup.clone();
        Contender::new(VERSION, move || round(&setup, place))
    };
    Case {
        name: "metering/durable".to_owned(),
        metric: "units_per_s".to_owned(),
        unit: "1/s".to_owned(),
        better: Better::Higher,
        mode: format!(
            "{} channels with a window of {WINDOW} units, {} s; the model data plane in another \
             process uses all the credit there is; vouchers and tokens, one for {} units, are \
             made before and paid from within the payee's process, whose CPU time counts it too; \
             books, keeper and RocksDB journal are the product's, synced before credit rises",
            size.channels(),
            size.durable_seconds(),
            feed::TOKEN_UNITS,
        ),
        ours: contender(Place::Disk),
        peers: vec![(
            "the same with the journal in memory".to_owned(),
            contender(Place::Memory),
        )],
    }
}

fn round(setup: &Setup, place: Place) -> Result<Measurement> {
    let (channels, seconds) = (setup.size.channels(), setup.size.durable_seconds());
    let warm_up_units = 2 * WINDOW;
    let units = (UNITS_PER_S_MAX * seconds / f64::from(channels)) as u64;
    let feed_units = Some(warm_up_units + units.max(2 * WINDOW));
    let mut provider = Provider::start(setup, channels, Timed::Answered, place, feed_units)?;
    provider.warm_up(warm_up_units, WARM_UP_S)?;
    let phase = provider.phase(Offered::Saturation, seconds)?;
    let commits = phase.payee.commits as f64;
    let taken = phase.payee.taken;
    Ok(
        Measurement::new(phase.units_per_s(), phase.plane.units, taken.cpu_s)
            .with_latency(phase.plane.latency)
            .with("commits", commits / phase.plane.elapsed_s, "1/s")
            .with(
                "units per commit",
                phase.plane.units as f64 / commits.max(1.0),
                "units",
            )
            .with(
                "disk bytes per unit",
                phase.per_unit(taken.disk_bytes as f64),
                "bytes",
            )
            .with("payee's CPU", taken.cpu_s / phase.plane.elapsed_s, "cores")
            .with(
                "model's CPU",
                phase.plane.cpu_s / phase.plane.elapsed_s,
                "cores",
            ),
    )
}
