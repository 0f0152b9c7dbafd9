//! Cuts bytes into billing units and shares the counts between processes.
//!
//! The fast path adds to *usage* and obeys *credit*; metering reads usage and writes
//! credit. Both are tables with one cache line a slot, in memory that the two processes
//! (and the XDP program) map. A *unit record* on a ring tells metering that it is worth
//! looking; it carries cumulative totals, so that losing one, or reading one twice,
//! changes nothing.
//!
//! Left to others: which channel a slot belongs to (the data plane's assignments) and what
//! a unit costs (metering).
#![cfg_attr(test, allow(clippy::unwrap_used))]

// A ring under the model checker lives on the heap, and nobody hands it over.
#[cfg(not(loom))]
mod handover;
mod ring;
mod shared_memory;
mod slot;
mod tables;
mod unit;

#[cfg(not(loom))]
pub use handover::{
    Attachment, Handover, HandoverError, Header, InMemory, RECORDS_MAX, RingHandover, SLOTS_MAX,
    TABLES_VERSION, WORKERS_MAX,
};
pub use ring::{Consumer, Producer, RingCorrupt, UnitRecord, Words};
pub use shared_memory::{Access, Mapping, SharedMemoryError, memfd};
pub use slot::{BootId, BootIdError, Slot};
pub use tables::{Balance, CreditGrant, CreditTable, UsageTable, UsageTotals, table_bytes};
pub use unit::{UNIT_BYTES, UnitCount, bytes_paid_for, units_owed};
