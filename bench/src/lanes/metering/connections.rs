//! What a connected payer costs the payee in memory.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{VERSION, payers::Paying, plane::Timed, provider::Provider};
use crate::{
    lane::{Better, Case, Contender, Measurement},
    lanes::Setup,
    place::Place,
};

/// Until what handshakes needed is given back.
const CALM: Duration = Duration::from_secs(2);

/// The case.
pub fn case(setup: &Setup) -> Case {
    let payers = setup.size.connections();
    let setup = setup.clone();
    Case {
        name: "metering/connections".to_owned(),
        metric: "payee_bytes_per_payer".to_owned(),
        unit: "bytes".to_owned(),
        better: Better::Lower,
        mode: format!(
            "{payers} payers connected at once, each with its own key and QUIC connection, first \
             voucher and first token; resident memory of the payee's process with them less \
             without them, its {payers} channels being open before"
        ),
        ours: Contender::new(VERSION, move || round(&setup)),
        peers: Vec::new(),
    }
}

fn round(setup: &Setup) -> Result<Measurement> {
    let payers = setup.size.connections();
    let mut provider = Provider::start(setup, payers, Timed::Every, Place::Disk, None)?;
    setup.interrupt.sleep(CALM)?;
    let before = provider.payee()?;
    let connect_s = provider.connect(payers, Paying::AtOnce)?;
    setup.interrupt.sleep(CALM)?;
    let after = provider.payee()?;
    ensure!(
        after.connections == u64::from(payers),
        "{} of {payers} payers are connected",
        after.connections
    );
    let count = f64::from(payers);
    let bytes = after.taken.resident_bytes as f64 - before.taken.resident_bytes as f64;
    let cpu_s = after.taken.cpu_s - before.taken.cpu_s;
    Ok(Measurement::new(bytes / count, u64::from(payers), cpu_s)
        .with("payee in all", after.taken.resident_bytes as f64, "bytes")
        .with(
            "payee without payers",
            before.taken.resident_bytes as f64,
            "bytes",
        )
        .with("connections made", count / connect_s, "1/s")
        .with("payee's CPU per connection", cpu_s * 1e6 / count, "us"))
}
