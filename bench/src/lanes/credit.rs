//! In the place of metering, for a payer who never stops paying.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use topnet_unit::{Attachment, CreditGrant, Slot, bytes_paid_for, units_owed};

/// Answers each record of the one slot with the next boundary, as metering does, until it is
/// `ended`; looks each `interval`.
pub fn pay(
    mut metering: Attachment,
    slot: Slot,
    interval: Duration,
    ended: &AtomicBool,
) -> Result<()> {
    while !ended.load(Ordering::Relaxed) {
        let mut used_bytes = None;
        metering.rings[0].drain(|record| used_bytes = Some(record.bytes))?;
        if let Some(used_bytes) = used_bytes {
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
