//! What passes beyond what was paid for, when somebody stops paying at 1 Gbit/s.

use std::time::Duration;

use anyhow::{Result, ensure};
use topnet_unit::UNIT_BYTES;

use super::{
    VERSION,
    parties::{WINDOW, monotonic_ns},
    payers::Paying,
    plane::{Offered, Timed},
    provider::Provider,
};
use crate::{
    lane::{Better, Case, Contender, Measurement},
    lanes::Setup,
    place::Place,
};

/// 1 Gbit/s.
const BYTES_PER_S: f64 = 125e6;
const PACKET_BYTES: usize = 1400;
/// How often the peers of this market look at what was used.
const POLL_S: f64 = 5.0;
const WARM_UP_S: f64 = 30.0;
/// Paying, then not any more: a full window lasts 0.27 s.
const PAYING: Duration = Duration::from_millis(1_000);
const SECONDS: f64 = 2.5;
/// Until the last commit.
const CALM: Duration = Duration::from_millis(1_500);

/// The case.
pub fn case(setup: &Setup) -> Case {
    let setup = setup.clone();
    Case {
        name: "unit/overrun".to_owned(),
        metric: "unpaid_bytes_at_cut_off".to_owned(),
        unit: "bytes".to_owned(),
        better: Better::Lower,
        mode: format!(
            "one channel at 1 Gbit/s in {PACKET_BYTES}-byte packets through the product's \
             accounting in one worker, window {WINDOW} units, the payer killed in the middle; the \
             peer is computed, not measured: {POLL_S} s at that rate until the next look"
        ),
        ours: Contender::new(VERSION, move || round(&setup)),
        peers: vec![(
            format!("a {POLL_S}-second poll, computed"),
            Contender::new("computed", || {
                Ok(Measurement::new(BYTES_PER_S * POLL_S, 1, 0.0).with(
                    "units",
                    BYTES_PER_S * POLL_S / UNIT_BYTES as f64,
                    "units",
                ))
            }),
        )],
    }
}

fn round(setup: &Setup) -> Result<Measurement> {
    let mut provider = Provider::start(setup, 1, Timed::Every, Place::Disk, None)?;
    provider.connect(1, Paying::AtOnce)?;
    provider.warm_up(2 * WINDOW, WARM_UP_S)?;
    let offered = Offered::Steps {
        per_s: BYTES_PER_S / PACKET_BYTES as f64,
        bytes: PACKET_BYTES,
    };
    provider.offer(offered, SECONDS)?;
    setup.interrupt.sleep(PAYING)?;
    let killed_ns = monotonic_ns();
    provider.kill_payers();
    let plane = provider.answer()?;
    setup.interrupt.sleep(CALM)?;
    let channel = provider.channel(0)?;
    ensure!(
        channel.metered_bytes == plane.bytes_ever,
        "the payee journalled {} of {} bytes",
        channel.metered_bytes,
        plane.bytes_ever
    );
    ensure!(
        plane.stalled > 0,
        "the payer is gone and nothing was refused"
    );
    let paid_bytes = channel.accepted_units * UNIT_BYTES;
    let unpaid_bytes = plane.bytes_ever.saturating_sub(paid_bytes);
    ensure!(
        unpaid_bytes <= channel.unpaid_bytes,
        "{unpaid_bytes} bytes passed unpaid, the payee knows of {}",
        channel.unpaid_bytes
    );
    let stopped_ms = plane.last_passed_ns.saturating_sub(killed_ns) as f64 / 1e6;
    let cpu_s = provider.payee()?.taken.cpu_s;
    Ok(
        Measurement::new(channel.unpaid_bytes as f64, plane.units, cpu_s)
            .with("payer's death to cut-off", stopped_ms, "ms")
            .with(
                "prepaid and unused",
                paid_bytes.saturating_sub(plane.bytes_ever) as f64,
                "bytes",
            ),
    )
}
