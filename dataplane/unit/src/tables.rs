//! The usage and credit tables: what was forwarded, and how much may be.
//!
//! One record of `topnet-ebpf-abi` a slot, seen as words. Usage is written by the fast path
//! only and never reset; credit is written by metering only. Neither is ever locked.

use std::{mem::offset_of, os::fd::AsFd};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

use topnet_ebpf_abi::{CREDIT_CLOSED, CREDIT_OPEN, Credit, Usage};

use crate::{Access, Mapping, SharedMemoryError, Slot, Words};

const WORD: usize = size_of::<u64>();
const RECORD_WORDS: usize = size_of::<Usage>() / WORD;
const BYTES_WORD: usize = offset_of!(Usage, bytes) / WORD;
const PACKETS_WORD: usize = offset_of!(Usage, packets) / WORD;
const LIMIT_WORD: usize = offset_of!(Credit, limit_bytes) / WORD;
const RECORD_AT_WORD: usize = offset_of!(Credit, record_at_bytes) / WORD;
/// Generation (low half) and state (high half) share a word, so they change together.
const USE_WORD: usize = offset_of!(Credit, generation) / WORD;

const _: () = assert!(size_of::<Usage>() == size_of::<Credit>());
const _: () = assert!(offset_of!(Credit, state) == offset_of!(Credit, generation) + 4);
const _: () = assert!(cfg!(target_endian = "little"));

/// Length of a table with `slots` slots. BPF rounds a mapped array up to whole pages; so do
/// we, so that both kinds of memory are mapped with one length.
pub const fn table_bytes(slots: u32) -> usize {
    (slots as usize * size_of::<Usage>()).next_multiple_of(4096)
}

/// A slot's cumulative totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageTotals {
    /// Billable bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

/// What every slot has forwarded.
#[derive(Debug)]
pub struct UsageTable<W = Mapping> {
    memory: W,
    slots: u32,
}

impl UsageTable {
    /// Maps a table of `slots` slots.
    pub fn map(fd: impl AsFd, slots: u32, access: Access) -> Result<Self, SharedMemoryError> {
        let memory = Mapping::new(fd, table_bytes(slots), access)?;
        Ok(Self { memory, slots })
    }
}

impl<W: Words> UsageTable<W> {
    /// Number of slots, the unused slot 0 included.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Adds a burst's bytes and packets to a slot and returns the bytes before and after. The
    /// table must be mapped for writing. Panics if there is no such slot.
    pub fn add(&self, index: u32, bytes: u64, packets: u64) -> (u64, u64) {
        let record = self.record(index);
        record[PACKETS_WORD].fetch_add(packets, Ordering::Relaxed);
        // Release: who sees the bytes of a burst also sees what was done before it.
        let before = record[BYTES_WORD].fetch_add(bytes, Ordering::AcqRel);
        (before, before.wrapping_add(bytes))
    }

    /// A slot's totals. Panics if there is no such slot.
    pub fn totals(&self, index: u32) -> UsageTotals {
        let record = self.record(index);
        let bytes = record[BYTES_WORD].load(Ordering::Acquire);
        let packets = record[PACKETS_WORD].load(Ordering::Relaxed);
        UsageTotals { bytes, packets }
    }

    fn record(&self, index: u32) -> &[AtomicU64; RECORD_WORDS] {
        record(&self.memory, index, self.slots)
    }
}

/// A slot's credit as metering sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditGrant {
    /// Absolute, compared with `Usage.bytes`.
    pub limit_bytes: u64,
    /// Absolute; a record is published when usage reaches it.
    pub record_at_bytes: u64,
}

/// A slot's credit as the fast path sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Usage with the next packet must stay at or below this.
    pub limit_bytes: u64,
    /// A record is due when usage reaches this.
    pub record_at_bytes: u64,
}

impl Balance {
    /// Nothing passes.
    pub const NONE: Self = Self {
        limit_bytes: 0,
        record_at_bytes: u64::MAX,
    };
}

/// How much every slot may forward.
#[derive(Debug)]
pub struct CreditTable<W = Mapping> {
    memory: W,
    slots: u32,
}

impl CreditTable {
    /// Maps a table of `slots` slots.
    pub fn map(fd: impl AsFd, slots: u32, access: Access) -> Result<Self, SharedMemoryError> {
        let memory = Mapping::new(fd, table_bytes(slots), access)?;
        Ok(Self { memory, slots })
    }
}

impl<W: Words> CreditTable<W> {
    /// Number of slots, the unused slot 0 included.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The credit of a slot's generation; none if the slot is closed or its credit is another
    /// generation's. Panics if there is no such slot.
    pub fn balance(&self, slot: Slot) -> Balance {
        let record = self.record(slot.index);
        let open = use_word(slot.generation, CREDIT_OPEN);
        // The use first: a new use is published after the old limit was taken away, so the
        // limit read after it is never an older use's.
        if record[USE_WORD].load(Ordering::Acquire) != open {
            return Balance::NONE;
        }
        let balance = Balance {
            limit_bytes: record[LIMIT_WORD].load(Ordering::Acquire),
            record_at_bytes: record[RECORD_AT_WORD].load(Ordering::Acquire),
        };
        // And the use again: who has read a newer use's limit sees that use here.
        if record[USE_WORD].load(Ordering::Relaxed) != open {
            return Balance::NONE;
        }
        balance
    }

    /// Gives a slot's generation its credit. Raising and lowering are both allowed; the table
    /// must be mapped for writing. Panics if there is no such slot.
    pub fn grant(&self, slot: Slot, grant: CreditGrant) {
        let record = self.record(slot.index);
        let open = use_word(slot.generation, CREDIT_OPEN);
        if record[USE_WORD].load(Ordering::Relaxed) != open {
            record[LIMIT_WORD].store(0, Ordering::Release);
            record[USE_WORD].store(open, Ordering::Release);
        }
        record[RECORD_AT_WORD].store(grant.record_at_bytes, Ordering::Release);
        record[LIMIT_WORD].store(grant.limit_bytes, Ordering::Release);
    }

    /// Takes all credit away. Panics if there is no such slot.
    pub fn close(&self, slot: Slot) {
        let record = self.record(slot.index);
        record[LIMIT_WORD].store(0, Ordering::Release);
        record[USE_WORD].store(use_word(slot.generation, CREDIT_CLOSED), Ordering::Release);
    }

    fn record(&self, index: u32) -> &[AtomicU64; RECORD_WORDS] {
        record(&self.memory, index, self.slots)
    }
}

fn use_word(generation: u32, state: u32) -> u64 {
    u64::from(generation) | u64::from(state) << 32
}

fn record(memory: &impl Words, index: u32, slots: u32) -> &[AtomicU64; RECORD_WORDS] {
    assert!(
        index < slots,
        "slot {index} of {slots}: indices come from the data plane's own list"
    );
    let start = index as usize * RECORD_WORDS;
    let words = &memory.words()[start..start + RECORD_WORDS];
    words
        .try_into()
        .unwrap_or_else(|_| unreachable!("a slice of RECORD_WORDS words"))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memfd;

    const SLOT: Slot = Slot {
        index: 3,
        generation: 2,
    };

    fn credit() -> CreditTable {
        let fd = memfd("topnet-test", table_bytes(8)).unwrap();
        CreditTable::map(fd, 8, Access::ReadWrite).unwrap()
    }

    #[test]
    fn usage_adds_up_and_neighbours_stay() {
        let fd = memfd("topnet-test", table_bytes(8)).unwrap();
        let writer = UsageTable::map(&fd, 8, Access::ReadWrite).unwrap();
        let reader = UsageTable::map(&fd, 8, Access::Read).unwrap();
        assert_eq!(writer.add(3, 100, 2), (0, 100));
        assert_eq!(writer.add(3, 50, 1), (100, 150));
        assert_eq!(
            reader.totals(3),
            UsageTotals {
                bytes: 150,
                packets: 3
            }
        );
        assert_eq!(reader.totals(2), UsageTotals::default());
        assert_eq!(reader.totals(4), UsageTotals::default());
    }

    #[test]
    fn credit_of_another_generation_or_a_closed_slot_is_none() {
        let table = credit();
        assert_eq!(table.balance(SLOT), Balance::NONE);
        table.grant(
            SLOT,
            CreditGrant {
                limit_bytes: 10,
                record_at_bytes: 5,
            },
        );
        assert_eq!(
            table.balance(SLOT),
            Balance {
                limit_bytes: 10,
                record_at_bytes: 5
            }
        );
        for generation in [0, 1, 3] {
            assert_eq!(table.balance(Slot { generation, ..SLOT }), Balance::NONE);
        }
        table.close(SLOT);
        assert_eq!(table.balance(SLOT), Balance::NONE);
        let next = Slot {
            generation: 3,
            ..SLOT
        };
        table.grant(
            next,
            CreditGrant {
                limit_bytes: 20,
                record_at_bytes: 20,
            },
        );
        assert_eq!(table.balance(SLOT), Balance::NONE);
        assert_eq!(table.balance(next).limit_bytes, 20);
    }

    #[test]
    #[should_panic(expected = "slot 8 of 8")]
    fn a_slot_outside_the_table_is_a_broken_invariant() {
        credit().balance(Slot {
            index: 8,
            generation: 1,
        });
    }
}

/// Run with `RUSTFLAGS="--cfg loom"`: the fast path asks for one use of a slot's credit while
/// metering ends it and begins the next.
#[cfg(all(test, loom))]
mod interleavings {
    use std::sync::Arc;

    use super::*;

    const OLD: Slot = Slot {
        index: 0,
        generation: 1,
    };
    const NEW: Slot = Slot {
        generation: 2,
        ..OLD
    };
    const OLD_GRANT: CreditGrant = CreditGrant {
        limit_bytes: 10,
        record_at_bytes: 5,
    };
    const NEW_GRANT: CreditGrant = CreditGrant {
        limit_bytes: 20,
        record_at_bytes: 15,
    };

    type HeapTable = CreditTable<Arc<[AtomicU64]>>;

    /// Two views of one table with a single slot.
    fn two_views() -> (HeapTable, HeapTable) {
        let memory: Arc<[AtomicU64]> = (0..RECORD_WORDS).map(|_| AtomicU64::new(0)).collect();
        let view = |memory| CreditTable { memory, slots: 1 };
        (view(memory.clone()), view(memory))
    }

    /// What `slot` may be seen to have while its own grant is `grant`.
    fn is_its_own(balance: Balance, grant: CreditGrant) -> bool {
        // A limit of zero is credit that was taken away, whatever the hint beside it says.
        balance.limit_bytes == 0
            || (balance.limit_bytes, balance.record_at_bytes)
                == (grant.limit_bytes, grant.record_at_bytes)
    }

    #[test]
    fn no_use_of_a_slot_is_given_the_credit_of_another() {
        for closes in [true, false] {
            loom::model(move || {
                let (metering, worker) = two_views();
                metering.grant(OLD, OLD_GRANT);
                let writes = loom::thread::spawn(move || {
                    if closes {
                        metering.close(OLD);
                    }
                    metering.grant(NEW, NEW_GRANT);
                });
                assert!(is_its_own(worker.balance(OLD), OLD_GRANT));
                assert!(is_its_own(worker.balance(NEW), NEW_GRANT));
                writes.join().unwrap();
                assert_eq!(worker.balance(OLD), Balance::NONE);
                assert_eq!(worker.balance(NEW).limit_bytes, NEW_GRANT.limit_bytes);
            });
        }
    }

    /// A limit that rises comes with its own hint or with a later one, never with an earlier.
    #[test]
    fn a_limit_never_comes_with_the_hint_of_the_one_before() {
        loom::model(|| {
            let (metering, worker) = two_views();
            metering.grant(OLD, OLD_GRANT);
            let writes = loom::thread::spawn(move || metering.grant(OLD, NEW_GRANT));
            let balance = worker.balance(OLD);
            let raised = balance.limit_bytes == NEW_GRANT.limit_bytes;
            assert!(!raised || balance.record_at_bytes == NEW_GRANT.record_at_bytes);
            writes.join().unwrap();
        });
    }

    #[test]
    fn no_addition_of_two_workers_is_lost() {
        loom::model(|| {
            let memory: Arc<[AtomicU64]> = (0..RECORD_WORDS).map(|_| AtomicU64::new(0)).collect();
            let view = |memory| UsageTable { memory, slots: 1 };
            let (here, there) = (view(memory.clone()), view(memory));
            let other = loom::thread::spawn(move || there.add(0, 3, 1));
            let (before, after) = here.add(0, 5, 1);
            assert_eq!(after - before, 5);
            other.join().unwrap();
            let expected = UsageTotals {
                bytes: 8,
                packets: 2,
            };
            assert_eq!(here.totals(0), expected);
        });
    }
}
