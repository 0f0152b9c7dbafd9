//! The worker's side of the tables: may this packet pass, and what does the burst come to.
//!
//! Credit is read once per slot and burst and usage is added once per slot and burst, so a
//! packet costs a comparison and an addition in the worker's own memory. With one worker a
//! slot's limit is never exceeded; with several the overrun is at most a burst each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use topnet_unit::{Balance, CreditTable, Mapping, Producer, Slot, UnitRecord, UsageTable};

use crate::drops::DropReason;
use crate::io::BURST_PACKETS;

/// A slot as this worker sees it during one burst.
#[derive(Clone, Copy, Debug)]
struct Meter {
    slot: Slot,
    balance: Balance,
    /// Usage when the burst began.
    used_bytes: u64,
    burst_bytes: u64,
    burst_packets: u64,
    /// The `record_at_bytes` that was last answered with a record.
    recorded_at_bytes: u64,
    touched: bool,
}

const UNUSED: Meter = Meter {
    slot: Slot {
        index: 0,
        generation: 0,
    },
    balance: Balance::NONE,
    used_bytes: 0,
    burst_bytes: 0,
    burst_packets: 0,
    recorded_at_bytes: u64::MAX,
    touched: false,
};

/// Decides whether packets may pass, and counts those that do.
///
/// Order of calls: any number of [`Gate::admit`] and [`Gate::count`] during a burst, then
/// [`Gate::settle`] once.
pub trait Gate {
    /// True if a packet of `bytes` fits under the slot's limit, on top of what this burst has
    /// counted already. Changes no count.
    fn admit(&mut self, slot: Slot, bytes: usize) -> Result<(), DropReason>;

    /// Counts an admitted packet that is being sent.
    fn count(&mut self, slot: Slot, bytes: usize);

    /// Publishes the burst: one addition per slot, and a record where a boundary was passed.
    fn settle(&mut self, burst_began_ns: u64);
}

/// Lets everything pass and counts nothing: what metering costs is measured against this. No
/// configuration leads here.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenGate;

impl Gate for OpenGate {
    fn admit(&mut self, _: Slot, _: usize) -> Result<(), DropReason> {
        Ok(())
    }

    fn count(&mut self, _: Slot, _: usize) {}

    fn settle(&mut self, _: u64) {}
}

/// Counts and limits of all slots, for one worker.
pub struct Accounting {
    usage: Arc<UsageTable>,
    credit: Arc<CreditTable>,
    ring: Producer<Mapping>,
    meters: Box<[Meter]>,
    touched: Vec<u32>,
    ring_overflows: Arc<AtomicU64>,
}

impl Accounting {
    /// Accounting over the shared tables; `ring_overflows` counts records that found no place.
    #[must_use]
    pub fn new(
        usage: Arc<UsageTable>,
        credit: Arc<CreditTable>,
        ring: Producer<Mapping>,
        ring_overflows: Arc<AtomicU64>,
    ) -> Self {
        let slots = usage.slots() as usize;
        Self {
            usage,
            credit,
            ring,
            meters: vec![UNUSED; slots].into(),
            touched: Vec::with_capacity(2 * BURST_PACKETS),
            ring_overflows,
        }
    }

    fn meter(&mut self, slot: Slot) -> &mut Meter {
        let meter = &mut self.meters[slot.index as usize];
        if !meter.touched {
            if meter.slot != slot {
                meter.slot = slot;
                meter.recorded_at_bytes = u64::MAX;
            }
            meter.balance = self.credit.balance(slot);
            meter.used_bytes = self.usage.totals(slot.index).bytes;
            meter.touched = true;
            self.touched.push(slot.index);
        }
        assert_eq!(
            meter.slot, slot,
            "a slot is reused only after a burst without its sessions"
        );
        meter
    }
}

impl Gate for Accounting {
    fn admit(&mut self, slot: Slot, bytes: usize) -> Result<(), DropReason> {
        let meter = self.meter(slot);
        if meter.balance == Balance::NONE {
            return Err(DropReason::CreditClosed);
        }
        let with_it = (meter.used_bytes + meter.burst_bytes).checked_add(bytes as u64);
        match with_it {
            Some(total) if total <= meter.balance.limit_bytes => Ok(()),
            _ => Err(DropReason::CreditExhausted),
        }
    }

    fn count(&mut self, slot: Slot, bytes: usize) {
        let meter = self.meter(slot);
        meter.burst_bytes += bytes as u64;
        meter.burst_packets += 1;
    }

    fn settle(&mut self, burst_began_ns: u64) {
        while let Some(index) = self.touched.pop() {
            let meter = &mut self.meters[index as usize];
            meter.touched = false;
            if meter.burst_packets > 0 {
                self.usage
                    .add(index, meter.burst_bytes, meter.burst_packets);
                meter.burst_bytes = 0;
                meter.burst_packets = 0;
            }
            let record_at_bytes = meter.balance.record_at_bytes;
            if record_at_bytes == meter.recorded_at_bytes {
                continue;
            }
            let totals = self.usage.totals(index);
            if totals.bytes < record_at_bytes {
                continue;
            }
            let record = UnitRecord {
                slot: meter.slot,
                bytes: totals.bytes,
                packets: totals.packets,
                time_ns: burst_began_ns,
            };
            if self.ring.push(record) {
                meter.recorded_at_bytes = record_at_bytes;
            } else {
                self.ring_overflows.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use topnet_unit::{Attachment, BootId, CreditGrant, Handover, Header};

    const SLOT: Slot = Slot {
        index: 1,
        generation: 1,
    };

    fn pair(records: u32) -> (Accounting, Attachment) {
        let header = Header {
            boot: BootId([1; 16]),
            slots: 4,
            workers: 1,
            records,
        };
        let (handover, usage, credit, mut rings) = Handover::in_memory(header).unwrap();
        let ring = rings.remove(0);
        let overflows = Arc::new(AtomicU64::new(0));
        let accounting = Accounting::new(Arc::new(usage), Arc::new(credit), ring, overflows);
        (accounting, handover.attach().unwrap())
    }

    fn send(accounting: &mut Accounting, bytes: usize) -> bool {
        let admitted = accounting.admit(SLOT, bytes).is_ok();
        if admitted {
            accounting.count(SLOT, bytes);
        }
        admitted
    }

    #[test]
    fn a_boundary_is_reported_once_and_again_when_it_moves() {
        let (mut accounting, mut metering) = pair(8);
        metering.credit.grant(
            SLOT,
            CreditGrant {
                limit_bytes: 1000,
                record_at_bytes: 100,
            },
        );
        assert!(send(&mut accounting, 99));
        accounting.settle(0);
        assert_eq!(records(&mut metering), [0; 0]);
        assert!(send(&mut accounting, 50));
        assert!(send(&mut accounting, 50));
        accounting.settle(0);
        assert!(send(&mut accounting, 1));
        accounting.settle(0);
        assert_eq!(records(&mut metering), [199]);
        metering.credit.grant(
            SLOT,
            CreditGrant {
                limit_bytes: 1000,
                record_at_bytes: 200,
            },
        );
        // Even a refused packet shows the boundary that was passed meanwhile.
        assert!(!send(&mut accounting, 5000));
        accounting.settle(0);
        assert_eq!(records(&mut metering), [200]);
    }

    /// Totals of all records that wait.
    fn records(metering: &mut Attachment) -> Vec<u64> {
        let mut bytes = Vec::new();
        metering.rings[0]
            .drain(|record| bytes.push(record.bytes))
            .unwrap();
        bytes
    }

    #[test]
    fn a_full_ring_loses_nothing() {
        let (mut accounting, mut metering) = pair(1);
        for at in 1..=3 {
            metering.credit.grant(
                SLOT,
                CreditGrant {
                    limit_bytes: 100,
                    record_at_bytes: at,
                },
            );
            assert!(send(&mut accounting, 1));
            accounting.settle(0);
        }
        assert_eq!(accounting.ring_overflows.load(Ordering::Relaxed), 2);
        assert_eq!(records(&mut metering), [1]);
        assert!(send(&mut accounting, 1));
        accounting.settle(0);
        assert_eq!(records(&mut metering), [4]);
    }

    #[test]
    fn credit_of_another_generation_is_none() {
        let (mut accounting, metering) = pair(8);
        let next = Slot {
            generation: 2,
            ..SLOT
        };
        metering.credit.grant(
            next,
            CreditGrant {
                limit_bytes: 1000,
                record_at_bytes: 1000,
            },
        );
        assert_eq!(accounting.admit(SLOT, 1), Err(DropReason::CreditClosed));
        accounting.settle(0);
        assert_eq!(accounting.admit(next, 1), Ok(()));
    }

    proptest! {
        #[test]
        fn usage_never_passes_the_limit_and_is_exact(
            steps in prop::collection::vec((1usize..1500, 0u64..8000, any::<bool>()), 1..200),
        ) {
            let (mut accounting, metering) = pair(8);
            let (mut sent, mut packets, mut limit, mut highest) = (0u64, 0u64, 0u64, 0u64);
            for (bytes, raise, settle) in steps {
                let fits = sent + bytes as u64 <= limit;
                // A limit that was raised during the burst counts from the next one on.
                let admitted = send(&mut accounting, bytes);
                prop_assert!(fits || !admitted);
                if admitted {
                    sent += bytes as u64;
                    packets += 1;
                }
                prop_assert!(sent <= highest.max(limit));
                if settle {
                    accounting.settle(0);
                    prop_assert_eq!(metering.usage.totals(1).bytes, sent);
                    prop_assert_eq!(metering.usage.totals(1).packets, packets);
                    limit += raise;
                    highest = highest.max(limit);
                    let grant = CreditGrant { limit_bytes: limit, record_at_bytes: limit };
                    metering.credit.grant(SLOT, grant);
                }
            }
        }
    }
}
