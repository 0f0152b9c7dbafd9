//! Several workers on one slot: what they count is exact, and they pass its limit by no more
//! than a burst for each worker beside the first.
#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use topnet_dataplane::accounting::{Accounting, Gate};
use topnet_dataplane::io::BURST_PACKETS;
use topnet_unit::{Attachment, BootId, CreditGrant, Handover, Header, Slot};

const WORKERS: u32 = 4;
const PACKET_BYTES: usize = 1_400;
const BURST_BYTES: u64 = (BURST_PACKETS * PACKET_BYTES) as u64;
const SLOT: Slot = Slot {
    index: 1,
    generation: 1,
};

fn workers() -> (Vec<Accounting>, Attachment) {
    let header = Header {
        boot: BootId([1; 16]),
        slots: 4,
        workers: WORKERS,
        records: 64,
    };
    let (handover, usage, credit, rings) = Handover::in_memory(header).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    handover.send(&ours).unwrap();
    let (usage, credit) = (Arc::new(usage), Arc::new(credit));
    let overflows = Arc::new(AtomicU64::new(0));
    let workers = rings
        .into_iter()
        .map(|ring| Accounting::new(usage.clone(), credit.clone(), ring, overflows.clone()))
        .collect();
    (workers, Attachment::receive(&theirs).unwrap())
}

fn grant(metering: &Attachment, limit_bytes: u64) {
    let record_at_bytes = limit_bytes;
    metering.credit.grant(
        SLOT,
        CreditGrant {
            limit_bytes,
            record_at_bytes,
        },
    );
}

/// Admits and counts up to a burst; how many bytes that were.
fn burst(worker: &mut Accounting) -> u64 {
    let mut bytes = 0;
    for _ in 0..BURST_PACKETS {
        if worker.admit(SLOT, PACKET_BYTES).is_ok() {
            worker.count(SLOT, PACKET_BYTES);
            bytes += PACKET_BYTES as u64;
        }
    }
    bytes
}

#[test]
fn bursts_at_one_time_pass_the_limit_by_one_for_each_further_worker() {
    let (mut workers, metering) = workers();
    grant(&metering, BURST_BYTES);
    let admitted: u64 = workers.iter_mut().map(burst).sum();
    workers.iter_mut().for_each(|worker| worker.settle(0));
    assert_eq!(
        admitted,
        u64::from(WORKERS) * BURST_BYTES,
        "the worst that can be"
    );
    assert_eq!(metering.usage.totals(SLOT.index).bytes, admitted);
    assert_eq!(
        workers.iter_mut().map(burst).sum::<u64>(),
        0,
        "and then nothing"
    );
}

#[test]
fn workers_that_race_for_a_limit_count_exactly_and_stop() {
    const ROUNDS: u64 = 50;
    let (workers, mut metering) = workers();
    let over = AtomicBool::new(false);
    let admitted = thread::scope(|scope| {
        let running: Vec<_> = workers
            .into_iter()
            .map(|mut worker| {
                let over = &over;
                scope.spawn(move || {
                    let mut admitted = 0;
                    while !over.load(Ordering::Relaxed) {
                        admitted += burst(&mut worker);
                        worker.settle(0);
                    }
                    admitted
                })
            })
            .collect();
        for round in 1..=ROUNDS {
            grant(&metering, round * BURST_BYTES);
            let used = metering.usage.totals(SLOT.index).bytes;
            let most = round * BURST_BYTES + u64::from(WORKERS - 1) * BURST_BYTES;
            assert!(used <= most, "round {round}: {used} > {most}");
            thread::yield_now();
        }
        over.store(true, Ordering::Relaxed);
        running
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .sum::<u64>()
    });
    let totals = metering.usage.totals(SLOT.index);
    assert_eq!(totals.bytes, admitted);
    assert_eq!(totals.packets, admitted / PACKET_BYTES as u64);
    let overrun = totals.bytes.saturating_sub(ROUNDS * BURST_BYTES);
    assert!(overrun <= u64::from(WORKERS - 1) * BURST_BYTES, "{overrun}");
    for ring in &mut metering.rings {
        ring.drain(|record| assert!(record.bytes <= totals.bytes))
            .unwrap();
    }
}
