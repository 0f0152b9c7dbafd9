//! The state as bytes, so that a process that starts anew keeps its connections.
//!
//! Little endian, no padding: magic, version, ports of a block, filtering; the number of resting
//! blocks and each one, those of subscribers that left among them; the number of subscribers and each one with its blocks, its mappings
//! and their flows; a digest of all that. Times are what is left of them, since the clock may
//! be another. Not in it: fragments, which are over by then; records that were not taken, which
//! the caller takes before; the seed.

use crate::Nat44;
use crate::config::{Config, Filtering, TIMEOUT_MS_MAX};
use crate::hash;

pub(crate) const MAGIC: [u8; 4] = *b"TNAT";
pub(crate) const VERSION: u16 = 1;
/// Bytes of the digest at the end.
pub(crate) const DIGEST_BYTES: usize = 8;

impl Nat44 {
    /// All that [`Nat44::restore`] needs. Take the waiting records first: their blocks will not
    /// be recorded again.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.put(MAGIC);
        writer.put(VERSION.to_le_bytes());
        writer.put(self.config.block_ports.to_le_bytes());
        writer.put([filtering_byte(&self.config)]);
        // What is not taken back yet of subscribers that left would rest from then on.
        let rest_ms = self.config.timeouts.block_rest_ms;
        let left = self.leaving.iter().filter(|_| rest_ms > 0);
        let left = left.flat_map(|place| self.subscribers.blocks(*place));
        let resting = self.pool.resting(self.now_ms);
        let resting = resting.chain(left.map(|block| (*block, rest_ms)));
        writer.count(resting.clone().count() as u32);
        for (block, left_ms) in resting {
            let address = self.pool.external(self.pool.address_of(block));
            writer.put(address.to_le_bytes());
            writer.put(self.pool.first_port(block).to_le_bytes());
            writer.left(left_ms);
        }
        writer.count(self.subscribers.places().count() as u32);
        for place in self.subscribers.places() {
            self.write_subscriber(&mut writer, place);
        }
        writer.seal()
    }

    fn write_subscriber(&self, writer: &mut Writer, place: u32) {
        let entry = self.subscribers.entry(place);
        writer.put(entry.subscriber.0.to_le_bytes());
        writer.put(self.pool.external(entry.address).to_le_bytes());
        writer.count(entry.blocks);
        for block in self.subscribers.blocks(place) {
            writer.put(self.pool.first_port(*block).to_le_bytes());
        }
        writer.count(entry.mappings);
        for mapping in self.mappings_from(entry.first_mapping) {
            self.write_mapping(writer, mapping);
        }
    }

    fn write_mapping(&self, writer: &mut Writer, place: u32) {
        let mapping = self.mappings.entry(place);
        writer.put([mapping.protocol as u8]);
        writer.put(mapping.inner.to_le_bytes());
        writer.put(mapping.inner_port.to_le_bytes());
        writer.put(mapping.external_port.to_le_bytes());
        writer.count(mapping.flows);
        for flow in self.flows_from(mapping.first_flow) {
            let flow = self.flows.entry(flow);
            writer.put(flow.remote.to_le_bytes());
            writer.put(flow.remote_port.to_le_bytes());
            writer.put([flow.state as u8]);
            writer.left(flow.deadline_ms.saturating_sub(self.now_ms));
        }
    }
}

pub(crate) const fn filtering_byte(config: &Config) -> u8 {
    match config.filtering {
        Filtering::EndpointIndependent => 0,
        Filtering::AddressDependent => 1,
        Filtering::AddressAndPortDependent => 2,
    }
}

impl Config {
    /// The longest snapshot of a NAT with this configuration.
    #[must_use]
    pub fn snapshot_bytes_max(&self) -> u64 {
        const HEAD_BYTES: u64 = 4 + 2 + 2 + 1 + 2 * 4;
        const BLOCK_BYTES: u64 = 4 + 2 + 4;
        const SUBSCRIBER_BYTES: u64 = 4 * 4;
        const MAPPING_BYTES: u64 = 1 + 4 + 2 + 2 + 4;
        const FLOW_BYTES: u64 = 4 + 2 + 1 + 4;
        let limits = &self.limits;
        HEAD_BYTES
            + self.pool.len() as u64 * u64::from(self.blocks_per_address()) * BLOCK_BYTES
            + u64::from(limits.subscribers_max) * SUBSCRIBER_BYTES
            + u64::from(limits.mappings_max) * MAPPING_BYTES
            + u64::from(limits.flows_max) * FLOW_BYTES
            + DIGEST_BYTES as u64
    }
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes.extend_from_slice(&bytes);
    }

    fn count(&mut self, count: u32) {
        self.put(count.to_le_bytes());
    }

    /// What is left of a timeout.
    fn left(&mut self, left_ms: u64) {
        self.put((left_ms.min(TIMEOUT_MS_MAX) as u32).to_le_bytes());
    }

    fn seal(mut self) -> Vec<u8> {
        let digest = hash::digest(&self.bytes);
        self.put(digest.to_le_bytes());
        self.bytes
    }
}
