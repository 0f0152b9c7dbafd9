//! The unit ring: one producer (a worker), one consumer (metering), in shared memory.
//!
//! Layout, in words: 8 for the header of `handover.rs`, then the producer's index in a line
//! of its own, then the records. The consumer's index lives in memory of its own, which is
//! all of the ring that the consumer may write. Indices count records since the ring was
//! made and never wrap in practice (2⁶⁴). Each side range-checks the other's index before it
//! believes it: a corrupt or hostile other side can lose records, which is harmless, and
//! nothing else.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Slot;

/// First word of the producer's index; before it stands the header.
const PRODUCED_WORD: usize = 8;
/// First word of the records.
const RECORDS_WORD: usize = 16;
/// Words a record. Four to a cache line would save little and tear more.
const RECORD_WORDS: usize = 4;
/// Word of the consumer's index in its own memory.
const CONSUMED_WORD: usize = 0;

/// Length in bytes of a ring's memory.
pub(crate) const fn ring_bytes(records: u32) -> usize {
    (RECORDS_WORD + records as usize * RECORD_WORDS) * size_of::<u64>()
}

/// Length in bytes of the consumer's memory.
pub(crate) const CONSUMER_BYTES: usize = 64;

/// Memory that a ring or a table lives in: shared between processes, or the heap under test.
pub trait Words {
    /// The words; always the same ones.
    fn words(&self) -> &[AtomicU64];
}

#[cfg(not(loom))]
impl Words for crate::Mapping {
    fn words(&self) -> &[AtomicU64] {
        Self::words(self)
    }
}

impl Words for std::sync::Arc<[AtomicU64]> {
    fn words(&self) -> &[AtomicU64] {
        self
    }
}

/// Cumulative totals of a slot at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitRecord {
    /// Whose totals.
    pub slot: Slot,
    /// `Usage.bytes`.
    pub bytes: u64,
    /// `Usage.packets`.
    pub packets: u64,
    /// Monotonic nanoseconds when the burst that passed the boundary began.
    pub time_ns: u64,
}

/// The producer's index made no sense; everything up to it was skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the unit ring's producer index {produced} is not within {records} of {consumed}")]
pub struct RingCorrupt {
    /// As the producer says.
    pub produced: u64,
    /// As the consumer knows.
    pub consumed: u64,
    /// The ring's size.
    pub records: u32,
}

/// The worker's end.
#[derive(Debug)]
pub struct Producer<W> {
    ring: W,
    consumer: W,
    records: u32,
    produced: u64,
    consumed: u64,
}

impl<W: Words> Producer<W> {
    /// The producing end of an empty ring with `records` places (a power of two).
    pub fn new(ring: W, consumer: W, records: u32) -> Self {
        assert!(records.is_power_of_two(), "a ring of {records} records");
        Self {
            ring,
            consumer,
            records,
            produced: 0,
            consumed: 0,
        }
    }

    /// Publishes a record, or returns false if there is no place: then nothing has happened,
    /// and the next record of the slot will say all that this one said.
    pub fn push(&mut self, record: UnitRecord) -> bool {
        if self.is_full() {
            // Said once more: whoever wrote over it, no honest consumer could free a place.
            self.ring.words()[PRODUCED_WORD].store(self.produced, Ordering::Release);
            let consumed = self.consumer.words()[CONSUMED_WORD].load(Ordering::Acquire);
            // Believed only if it moves forward and not past what was produced.
            if (self.consumed..=self.produced).contains(&consumed) {
                self.consumed = consumed;
            }
            if self.is_full() {
                return false;
            }
        }
        let words = place(self.ring.words(), self.produced, self.records);
        words[0].store(slot_word(record.slot), Ordering::Relaxed);
        words[1].store(record.bytes, Ordering::Relaxed);
        words[2].store(record.packets, Ordering::Relaxed);
        words[3].store(record.time_ns, Ordering::Relaxed);
        self.produced += 1;
        self.ring.words()[PRODUCED_WORD].store(self.produced, Ordering::Release);
        true
    }

    fn is_full(&self) -> bool {
        self.produced - self.consumed >= u64::from(self.records)
    }
}

/// Metering's end.
#[derive(Debug)]
pub struct Consumer<W> {
    ring: W,
    consumer: W,
    records: u32,
    consumed: u64,
}

impl<W: Words> Consumer<W> {
    /// The consuming end, from where the last consumer of this ring left off.
    pub fn new(ring: W, consumer: W, records: u32) -> Self {
        assert!(records.is_power_of_two(), "a ring of {records} records");
        let consumed = consumer.words()[CONSUMED_WORD].load(Ordering::Acquire);
        Self {
            ring,
            consumer,
            records,
            consumed,
        }
    }

    /// Hands every waiting record to `take`, oldest first, and returns how many there were.
    pub fn drain(&mut self, mut take: impl FnMut(UnitRecord)) -> Result<u64, RingCorrupt> {
        let produced = self.ring.words()[PRODUCED_WORD].load(Ordering::Acquire);
        let waiting = produced.wrapping_sub(self.consumed);
        if waiting > u64::from(self.records) {
            let consumed = self.consumed;
            self.release(produced);
            return Err(RingCorrupt {
                produced,
                consumed,
                records: self.records,
            });
        }
        for nth in 0..waiting {
            let index = self.consumed.wrapping_add(nth);
            let words = place(self.ring.words(), index, self.records);
            take(UnitRecord {
                slot: slot_of(words[0].load(Ordering::Relaxed)),
                bytes: words[1].load(Ordering::Relaxed),
                packets: words[2].load(Ordering::Relaxed),
                time_ns: words[3].load(Ordering::Relaxed),
            });
        }
        self.release(produced);
        Ok(waiting)
    }

    /// Records that wait.
    pub fn waiting(&self) -> u64 {
        let produced = self.ring.words()[PRODUCED_WORD].load(Ordering::Relaxed);
        produced.wrapping_sub(self.consumed)
    }

    /// Gives the places before `produced` back; the loads above stay before this store.
    fn release(&mut self, produced: u64) {
        self.consumed = produced;
        self.consumer.words()[CONSUMED_WORD].store(produced, Ordering::Release);
    }
}

fn place(words: &[AtomicU64], index: u64, records: u32) -> &[AtomicU64] {
    let place = (index & (u64::from(records) - 1)) as usize;
    let start = RECORDS_WORD + place * RECORD_WORDS;
    &words[start..start + RECORD_WORDS]
}

fn slot_word(slot: Slot) -> u64 {
    u64::from(slot.index) | u64::from(slot.generation) << 32
}

fn slot_of(word: u64) -> Slot {
    Slot {
        index: word as u32,
        generation: (word >> 32) as u32,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn heap(bytes: usize) -> Arc<[AtomicU64]> {
        (0..bytes / 8).map(|_| AtomicU64::new(0)).collect()
    }

    fn record(number: u64) -> UnitRecord {
        let slot = Slot {
            index: number as u32 | 1,
            generation: 7,
        };
        UnitRecord {
            slot,
            bytes: number * 10,
            packets: number,
            time_ns: number + 1,
        }
    }

    #[cfg(not(loom))]
    mod sequential {
        use super::*;

        type Ends = (Producer<Arc<[AtomicU64]>>, Consumer<Arc<[AtomicU64]>>);

        fn ends(records: u32) -> (Arc<[AtomicU64]>, Arc<[AtomicU64]>, Ends) {
            let (ring, consumer) = (heap(ring_bytes(records)), heap(CONSUMER_BYTES));
            let producing = Producer::new(ring.clone(), consumer.clone(), records);
            let consuming = Consumer::new(ring.clone(), consumer.clone(), records);
            (ring, consumer, (producing, consuming))
        }

        #[test]
        fn records_come_out_as_they_went_in_and_a_full_ring_takes_none() {
            let (_, _, (mut producer, mut consumer)) = ends(4);
            let mut next = 0;
            for round in 0..20_u64 {
                let count = round % 6;
                let taken = (0..count)
                    .filter(|n| producer.push(record(next + n)))
                    .count() as u64;
                assert_eq!(taken, count.min(4));
                let mut seen = Vec::new();
                assert_eq!(consumer.drain(|record| seen.push(record)), Ok(taken));
                let expected: Vec<_> = (next..next + taken).map(record).collect();
                assert_eq!(seen, expected);
                next += taken;
            }
        }

        #[test]
        fn a_second_consumer_goes_on_where_the_first_stopped() {
            let (ring, index, (mut producer, mut consumer)) = ends(4);
            assert!(producer.push(record(1)));
            assert_eq!(consumer.drain(|_| ()), Ok(1));
            assert!(producer.push(record(2)));
            let mut second = Consumer::new(ring, index, 4);
            let mut seen = Vec::new();
            second.drain(|record| seen.push(record)).unwrap();
            assert_eq!(seen, [record(2)]);
        }

        #[test]
        fn a_hostile_consumer_index_stops_records_and_nothing_else() {
            for lie in [5, u64::MAX, 1 << 63] {
                let (_, index, (mut producer, _)) = ends(4);
                assert!((0..4).all(|n| producer.push(record(n))));
                index[CONSUMED_WORD].store(lie, Ordering::Relaxed);
                assert!(!producer.push(record(4)), "{lie}");
                index[CONSUMED_WORD].store(1, Ordering::Relaxed);
                assert!(producer.push(record(4)));
            }
        }

        #[test]
        fn a_corrupt_producer_index_is_named_and_skipped() {
            let (ring, _, (mut producer, mut consumer)) = ends(4);
            assert!(producer.push(record(1)));
            ring[PRODUCED_WORD].store(99, Ordering::Relaxed);
            let corrupt = RingCorrupt {
                produced: 99,
                consumed: 0,
                records: 4,
            };
            assert_eq!(
                consumer.drain(|_| panic!("nothing is believed")),
                Err(corrupt)
            );
            assert_eq!(consumer.drain(|_| ()), Ok(0));
        }

        #[test]
        fn a_producer_index_that_was_written_over_is_mended_by_a_full_ring_too() {
            let (ring, _, (mut producer, mut consumer)) = ends(4);
            assert!((0..4).all(|n| producer.push(record(n))));
            ring[PRODUCED_WORD].store(99, Ordering::Relaxed);
            assert!(consumer.drain(|_| ()).is_err());
            assert!(!producer.push(record(4)), "nobody has freed a place");
            assert!(consumer.drain(|_| ()).is_err(), "the true index is another");
            assert!(producer.push(record(5)));
            let mut seen = Vec::new();
            assert_eq!(consumer.drain(|record| seen.push(record)), Ok(1));
            assert_eq!(seen, [record(5)]);
        }

        /// Only garbage brings indices to the end of the numbers; they go round there.
        #[test]
        fn what_is_counted_is_what_was_taken_at_the_end_of_the_numbers_too() {
            let (ring, index, _) = ends(4);
            index[CONSUMED_WORD].store(u64::MAX, Ordering::Relaxed);
            ring[PRODUCED_WORD].store(1, Ordering::Relaxed);
            let mut consumer = Consumer::new(ring, index, 4);
            let mut taken = 0;
            assert_eq!(consumer.drain(|_| taken += 1), Ok(2));
            assert_eq!(taken, 2);
        }
    }

    /// Run with `RUSTFLAGS="--cfg loom"`: every interleaving of a producer that overruns and a
    /// consumer that drains sees whole records, in order, none twice.
    #[cfg(loom)]
    #[test]
    fn every_interleaving_sees_whole_records_in_order() {
        loom::model(|| {
            let (ring, index) = (heap(ring_bytes(2)), heap(CONSUMER_BYTES));
            let mut producer = Producer::new(ring.clone(), index.clone(), 2);
            let mut consumer = Consumer::new(ring, index, 2);
            let producing = loom::thread::spawn(move || {
                (0..3)
                    .map(|n| u64::from(producer.push(record(n))))
                    .sum::<u64>()
            });
            let mut seen = Vec::new();
            for _ in 0..2 {
                consumer.drain(|record| seen.push(record)).unwrap();
            }
            let pushed = producing.join().unwrap();
            consumer.drain(|record| seen.push(record)).unwrap();
            assert_eq!(seen.len() as u64, pushed);
            assert!(
                seen.windows(2)
                    .all(|pair| pair[0].packets < pair[1].packets)
            );
            assert!(seen.iter().all(|seen| *seen == record(seen.packets)));
        });
    }
}
