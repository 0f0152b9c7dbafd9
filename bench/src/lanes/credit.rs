//! In the place of metering, for payers who never stop paying.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use topnet_unit::{Attachment, CreditGrant, bytes_paid_for, units_owed};

/// Answers each record with its slot's next boundary, as metering does, until it is `ended`; looks
/// each `interval`.
pub fn pay(mut metering: Attachment, interval: Duration, ended: &AtomicBool) -> Result<()> {
    let mut used = HashMap::new();
    while !ended.load(Ordering::Relaxed) {
        metering.rings[0].drain(|record| {
            used.insert(record.slot, record.bytes);
        })?;
        for (slot, used_bytes) in used.drain() {
            metering.credit.grant(slot, unlimited(used_bytes)?);
        }
        thread::sleep(interval);
    }
    Ok(())
}

/// Credit without end, with a record at the first byte of the next unit.
pub fn unlimited(used_bytes: u64) -> Result<CreditGrant> {
    let boundary = bytes_paid_for(units_owed(used_bytes, 0).max(1), 0);
    Ok(CreditGrant {
        limit_bytes: u64::MAX / 2,
        record_at_bytes: boundary.context("too many units")? + 1,
    })
}
