//! The payment path whole: model data plane, payee with journal and payment port, and payers
//! over QUIC, each in a process of its own.

use anyhow::{Result, ensure};
use topnet_unit::UNIT_BYTES;

use super::{
    VERSION,
    parties::WINDOW,
    payers::Paying,
    plane::{Offered, Timed},
    provider::{Phase, Provider},
};
use crate::{
    lane::{Better, Case, Contender, Measurement},
    lanes::Setup,
    place::Place,
};

const WARM_UP_S: f64 = 60.0;
/// Units of each channel before a measurement: every window is open then.
const WARM_UP_UNITS: u64 = 2 * WINDOW;
/// Of what passes at saturation, what is tried until nobody waits for credit.
const SHARES: [f64; 10] = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1];
/// So few steps in a million may find no credit before somebody counts as stalled: none.
const STALLED_PPM_MAX: f64 = 0.0;
/// Half a window is used while the other is paid.
pub const UNITS_PER_TOKEN: u64 = WINDOW / 2;
/// What a wallet meets on a gateway that is not at its limit.
pub const EASY_UNITS_PER_S: f64 = 5_000.0;

/// The cases.
pub fn cases(setup: &Setup) -> Vec<Case> {
    let size = setup.size;
    let load = format!(
        "{} payers in another process (a load of payers without disks) and a model data plane in a \
         third, window {WINDOW}",
        size.payers()
    );
    let throughput = |name: &str, paying, how: &str| {
        let setup = setup.clone();
        Case {
            name: name.to_owned(),
            metric: "units_per_s".to_owned(),
            unit: "1/s".to_owned(),
            better: Better::Higher,
            mode: format!(
                "{load}, {how}; the highest rate found at which no unit waits for credit, for {} s, \
                 or {} of what passes at saturation, with the share that waited; at saturation \
                 every window is dry",
                size.quic_seconds(),
                SHARES[SHARES.len() - 1]
            ),
            ours: Contender::new(VERSION, move || throughput(&setup, paying)),
            peers: Vec::new(),
        }
    };
    let easy = setup.clone();
    vec![
        throughput(
            "metering/quic",
            Paying::Units(UNITS_PER_TOKEN),
            "as many units per token as the window permits: half of it; latency from the unit \
             that a token answers",
        ),
        throughput(
            "metering/quic-one-token-per-unit",
            Paying::EachUnit,
            "one token for each unit",
        ),
        Case {
            name: "metering/credit-latency".to_owned(),
            metric: "median_boundary_to_credit".to_owned(),
            unit: "us".to_owned(),
            better: Better::Lower,
            mode: format!(
                "{load}; {EASY_UNITS_PER_S} units a second are offered, each paid at once as a \
                 wallet does; from the passed boundary over ring, synced journal, QUIC, payer, \
                 QUIC and synced journal to the credit that the data plane reads"
            ),
            ours: Contender::new(VERSION, move || latency(&easy)),
            peers: Vec::new(),
        },
    ]
}

/// A provider whose payers' windows are open.
pub fn warm_provider(setup: &Setup, paying: Paying) -> Result<Provider> {
    let payers = setup.size.payers();
    let timed = match paying {
        Paying::Units(_) => Timed::Answered,
        Paying::AtOnce | Paying::EachUnit => Timed::Every,
    };
    let mut provider = Provider::start(setup, payers, timed, Place::Disk, None)?;
    provider.connect(payers, paying)?;
    provider.warm_up(WARM_UP_UNITS, WARM_UP_S)?;
    Ok(provider)
}

/// Units, a second at a time, each as long as a unit is.
pub fn units(per_s: f64) -> Offered {
    Offered::Steps {
        per_s,
        bytes: UNIT_BYTES as usize,
    }
}

fn throughput(setup: &Setup, paying: Paying) -> Result<Measurement> {
    let seconds = setup.size.quic_seconds();
    let mut provider = warm_provider(setup, paying)?;
    let saturated = provider.phase(Offered::Saturation, seconds / 4.0)?;
    for share in SHARES {
        let offered = units(share * saturated.units_per_s());
        // A short try is enough to see that it is too much.
        if stalled_ppm(&provider.phase(offered, seconds / 6.0)?) > STALLED_PPM_MAX {
            continue;
        }
        let phase = provider.phase(offered, seconds)?;
        if stalled_ppm(&phase) <= STALLED_PPM_MAX {
            return Ok(measurement(&phase, &saturated));
        }
    }
    // A tenth of what passes, and still some waited: the machine was busy with something else.
    let last = SHARES[SHARES.len() - 1];
    let phase = provider.phase(units(last * saturated.units_per_s()), seconds)?;
    Ok(measurement(&phase, &saturated))
}

fn stalled_ppm(phase: &Phase) -> f64 {
    phase.plane.stalled as f64 * 1e6 / (phase.plane.units + phase.plane.stalled).max(1) as f64
}

fn measurement(phase: &Phase, saturated: &Phase) -> Measurement {
    let elapsed_s = phase.plane.elapsed_s;
    let (payee, payers) = (&phase.payee, &phase.payers);
    Measurement::new(phase.units_per_s(), phase.plane.units, payee.taken.cpu_s)
        .with_latency(phase.plane.latency)
        .with("at saturation", saturated.units_per_s(), "1/s")
        .with("stalled", stalled_ppm(phase), "ppm")
        .with("tokens", payers.tokens as f64 / elapsed_s, "1/s")
        .with("commits", payee.commits as f64 / elapsed_s, "1/s")
        .with("payee's CPU", payee.taken.cpu_s / elapsed_s, "cores")
        .with("payers' CPU", payers.cpu_s / elapsed_s, "cores")
        .with("model's CPU", phase.plane.cpu_s / elapsed_s, "cores")
}

fn latency(setup: &Setup) -> Result<Measurement> {
    let mut provider = warm_provider(setup, Paying::AtOnce)?;
    let seconds = setup.size.quic_seconds() / 2.0;
    let phase = provider.phase(units(EASY_UNITS_PER_S), seconds)?;
    let latency = phase.plane.latency;
    ensure!(latency.is_some(), "no credit came while it was measured");
    let median_us = latency.map_or(f64::NAN, |latency| latency.p50_us);
    let cpu_s = phase.payee.taken.cpu_s;
    Ok(Measurement::new(median_us, phase.plane.units, cpu_s)
        .with_latency(latency)
        .with("units", phase.units_per_s(), "1/s")
        .with(
            "commits",
            phase.payee.commits as f64 / phase.plane.elapsed_s,
            "1/s",
        )
        .with("payee's CPU", cpu_s / phase.plane.elapsed_s, "cores"))
}
