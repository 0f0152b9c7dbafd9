//! Several threads at the tables: no count is lost, and a use of a slot never spends what was
//! granted to another.
#![allow(clippy::unwrap_used)]

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use topnet_unit::{Balance, BootId, CreditGrant, Handover, Header, Slot, UnitRecord};

fn header(workers: u32) -> Header {
    Header {
        boot: BootId([2; 16]),
        slots: 8,
        workers,
        records: 32,
    }
}

#[test]
fn what_several_workers_count_into_one_slot_adds_up() {
    const WORKERS: u64 = 4;
    const STEPS: u64 = 20_000;
    const SHARED: Slot = Slot {
        index: 3,
        generation: 1,
    };
    let (handover, usage, _credit, producers) =
        Handover::in_memory(header(WORKERS as u32)).unwrap();
    let mut attached = handover.attach().unwrap();
    let mut told = 0;
    thread::scope(|scope| {
        let workers: Vec<_> = producers
            .into_iter()
            .zip(1..)
            .map(|(mut producer, size)| {
                let usage = &usage;
                scope.spawn(move || {
                    for step in 0..STEPS {
                        let (_, bytes) = usage.add(SHARED.index, size, 1);
                        let _ = producer.push(UnitRecord {
                            slot: SHARED,
                            bytes,
                            packets: step,
                            time_ns: size,
                        });
                    }
                })
            })
            .collect();
        let (mut newest, mut over) = ([None; WORKERS as usize], false);
        while !over {
            // Asked before the rings are drained, so that the last turn finds them quiet.
            over = workers.iter().all(|worker| worker.is_finished());
            for (worker, ring) in attached.rings.iter_mut().enumerate() {
                ring.drain(|record| {
                    assert_eq!(record.time_ns, worker as u64 + 1, "a ring has one worker");
                    assert!(newest[worker] < Some(record.bytes), "totals only grow");
                    newest[worker] = Some(record.bytes);
                    told = record.bytes.max(told);
                })
                .unwrap();
            }
        }
    });
    let totals = attached.usage.totals(SHARED.index);
    assert_eq!(totals.bytes, STEPS * (1..=WORKERS).sum::<u64>());
    assert_eq!(totals.packets, STEPS * WORKERS);
    assert!((1..=totals.bytes).contains(&told));
}

/// A worker that still has sessions of a slot's last use asks for its credit while metering has
/// gone on to the next. A machine shows the coarse mistakes only, because both sides hold the
/// cache line for longer than they need it; every interleaving is loom's part (`tables.rs`).
#[test]
fn a_late_worker_never_spends_the_credit_of_the_next_use() {
    const USES: u32 = 1_500_000;
    let slot = |generation| Slot {
        index: 1,
        generation,
    };
    // Each use has a limit that no other has, and its hint beside it.
    let grant = |generation: u32| CreditGrant {
        limit_bytes: u64::from(generation) << 20,
        record_at_bytes: u64::from(generation) << 20 | 1,
    };
    let (handover, _usage, credit, _producers) = Handover::in_memory(header(1)).unwrap();
    let attached = handover.attach().unwrap();
    let (current, over) = (AtomicU32::new(1), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            for generation in 1..=USES {
                attached.credit.grant(slot(generation), grant(generation));
                current.store(generation, Ordering::Release);
                if generation % 3 > 0 {
                    attached.credit.close(slot(generation));
                }
            }
            over.store(true, Ordering::Release);
        });
        while !over.load(Ordering::Acquire) {
            let now = current.load(Ordering::Acquire);
            for generation in now.saturating_sub(1)..=now + 1 {
                let balance = credit.balance(slot(generation));
                if balance.limit_bytes > 0 {
                    let own = grant(generation);
                    assert_eq!(balance.limit_bytes, own.limit_bytes, "use {generation}");
                    assert_eq!(balance.record_at_bytes, own.record_at_bytes);
                }
                if generation < now {
                    assert_eq!(
                        balance,
                        Balance::NONE,
                        "use {generation} ended before {now}"
                    );
                }
            }
        }
    });
    let last = credit.balance(slot(USES));
    assert_eq!(last.limit_bytes, grant(USES).limit_bytes, "left open");
}
