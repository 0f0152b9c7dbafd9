//! A NAT from a snapshot: whole, or not at all.
//!
//! The digest tells damage. What it does not tell is checked like anything else that was not
//! made by this process: each count against its limit, each port against its block, each key
//! against those before.

use std::net::Ipv4Addr;

use crate::config::{Config, ConfigError, Filtering, TIMEOUT_MS_MAX};
use crate::flows::OutKey;
use crate::hash;
use crate::mappings::{ExternalEnd, InnerEnd, Mapping};
use crate::packet::Protocol;
use crate::snapshot::{DIGEST_BYTES, MAGIC, VERSION, filtering_byte};
use crate::tcp;
use crate::{Nat44, Subscriber};

/// Why a snapshot was refused. The way on is an empty NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The configuration cannot stand, whatever the snapshot.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Too short, cut short, or changed.
    #[error("the NAT snapshot is damaged: begin with an empty NAT")]
    Damaged,
    /// Written by another version.
    #[error("the NAT snapshot has version {0}, not {VERSION}: begin with an empty NAT")]
    Version(u16),
    /// Written with another geometry or another filter.
    #[error(
        "the NAT snapshot was made with another `{0}`: set that again, or begin with an empty NAT"
    )]
    OtherConfig(&'static str),
    /// A subscriber has an address that was taken out of the pool.
    #[error(
        "the NAT snapshot uses {0}, which is not in `pool`: put it back, or begin with an empty NAT"
    )]
    NotInPool(Ipv4Addr),
    /// The tables are smaller than what is in it.
    #[error(
        "the NAT snapshot holds more than `limits.{0}` allows: raise it, or begin with an empty NAT"
    )]
    TooMuch(&'static str),
    /// Whole, and yet not what a NAT writes.
    #[error("the NAT snapshot contradicts itself in `{0}`: begin with an empty NAT")]
    Contradiction(&'static str),
}

impl Nat44 {
    /// The NAT of the snapshot, from `now_ms` on. Addresses may have been added to the pool and
    /// limits and timeouts changed since; the seed is better a new one.
    pub fn restore(
        config: Config,
        seed: [u8; 32],
        now_ms: u64,
        snapshot: &[u8],
    ) -> Result<Self, RestoreError> {
        let mut nat = Self::new(config, seed)?;
        nat.advance(now_ms);
        let (bytes, digest) = snapshot
            .split_last_chunk::<DIGEST_BYTES>()
            .ok_or(RestoreError::Damaged)?;
        if hash::digest(bytes) != u64::from_le_bytes(*digest) {
            return Err(RestoreError::Damaged);
        }
        let mut reader = Reader { rest: bytes };
        nat.read_head(&mut reader)?;
        for _ in 0..reader.u32()? {
            nat.read_resting(&mut reader)?;
        }
        for _ in 0..reader.u32()? {
            nat.read_subscriber(&mut reader)?;
        }
        if !reader.rest.is_empty() {
            return Err(RestoreError::Contradiction("end"));
        }
        Ok(nat)
    }

    fn read_head(&self, reader: &mut Reader<'_>) -> Result<(), RestoreError> {
        if reader.take()? != MAGIC {
            return Err(RestoreError::Damaged);
        }
        match reader.u16()? {
            VERSION => {}
            version => return Err(RestoreError::Version(version)),
        }
        if reader.u16()? != self.config.block_ports {
            return Err(RestoreError::OtherConfig("block_ports"));
        }
        if reader.u8()? != filtering_byte(&self.config) {
            return Err(RestoreError::OtherConfig("filtering"));
        }
        Ok(())
    }

    fn read_resting(&mut self, reader: &mut Reader<'_>) -> Result<(), RestoreError> {
        let (external, port, left_ms) = (reader.u32()?, reader.u16()?, reader.left()?);
        // An address that was taken out of the pool may rest for ever.
        let Some(address) = self.pool.address_number(external) else {
            return Ok(());
        };
        let block = self.block_at(address, port)?;
        let until_ms = self.now_ms.saturating_add(left_ms);
        if self.pool.rest_block(block, until_ms) {
            Ok(())
        } else {
            Err(RestoreError::Contradiction("resting"))
        }
    }

    /// The block of the address that begins at `port`.
    fn block_at(&self, address: u32, port: u16) -> Result<u32, RestoreError> {
        self.pool
            .block_of(address, port)
            .filter(|block| self.pool.first_port(*block) == port)
            .ok_or(RestoreError::Contradiction("block"))
    }

    fn read_subscriber(&mut self, reader: &mut Reader<'_>) -> Result<(), RestoreError> {
        let (subscriber, external) = (Subscriber(reader.u32()?), reader.u32()?);
        let address = self
            .pool
            .address_number(external)
            .ok_or(RestoreError::NotInPool(external.into()))?;
        if self.subscribers.find(&self.hash, subscriber).is_some() {
            return Err(RestoreError::Contradiction("subscriber"));
        }
        let owner = self
            .subscribers
            .insert(&self.hash, subscriber, address)
            .ok_or(RestoreError::TooMuch("subscribers_max"))?;
        let blocks = reader.u32()?;
        if blocks == 0 {
            return Err(RestoreError::Contradiction("blocks"));
        }
        for _ in 0..blocks {
            let block = self.block_at(address, reader.u16()?)?;
            if !self.subscribers.may_have_another_block(owner) {
                return Err(RestoreError::TooMuch("blocks_per_subscriber_max"));
            }
            let is_further = self.subscribers.entry(owner).blocks > 0;
            if !self.pool.lend_block(block, owner, is_further) {
                return Err(RestoreError::Contradiction("block"));
            }
            self.subscribers.add_block(owner, block);
            self.events.restored();
        }
        let mappings = reader.u32()?;
        if mappings > self.config.limits.mappings_per_subscriber_max {
            return Err(RestoreError::TooMuch("mappings_per_subscriber_max"));
        }
        for _ in 0..mappings {
            self.read_mapping(reader, owner)?;
        }
        for block in self.subscribers.blocks(owner) {
            if self.pool.is_idle(*block) {
                self.pool.watch(*block, self.now_ms);
            }
        }
        Ok(())
    }

    fn read_mapping(&mut self, reader: &mut Reader<'_>, owner: u32) -> Result<(), RestoreError> {
        let entry = self.subscribers.entry(owner);
        let protocol = reader.protocol()?;
        let inner = InnerEnd {
            protocol,
            subscriber: entry.subscriber,
            address: reader.u32()?,
            port: reader.u16()?,
        };
        if !self.mapping_share.has_room(entry.mappings) {
            return Err(RestoreError::TooMuch("mappings_max"));
        }
        let address = entry.address;
        let external = ExternalEnd {
            protocol,
            address: self.pool.external(address),
            port: reader.u16()?,
        };
        let block = self
            .pool
            .block_of(address, external.port)
            .filter(|block| self.pool.owner(*block) == owner)
            .ok_or(RestoreError::Contradiction("external port"))?;
        if self
            .mappings
            .find_inner(&self.hash, owner, &inner)
            .is_some()
            || !self.pool.lend_certain(block, protocol, external.port)
        {
            return Err(RestoreError::Contradiction("mapping"));
        }
        let mapping = self
            .insert_mapping(Mapping::new(inner, external, owner, block))
            .ok_or(RestoreError::TooMuch("mappings_max"))?;
        let flows = reader.u32()?;
        if flows == 0 {
            return Err(RestoreError::Contradiction("flows"));
        }
        for _ in 0..flows {
            self.read_flow(reader, mapping)?;
        }
        Ok(())
    }

    fn read_flow(&mut self, reader: &mut Reader<'_>, mapping: u32) -> Result<(), RestoreError> {
        let (remote, remote_port) = (reader.u32()?, reader.u16()?);
        let (state, left_ms) = (reader.state()?, reader.left()?);
        let protocol = self.mappings.entry(mapping).protocol;
        let has_port = match protocol {
            Protocol::Tcp => true,
            Protocol::Udp => self.config.filtering == Filtering::AddressAndPortDependent,
            Protocol::Icmp => false,
        };
        let state_fits = protocol == Protocol::Tcp || state == tcp::State::OpenedOut;
        if (remote_port != 0) != has_port || !state_fits {
            return Err(RestoreError::Contradiction("flow"));
        }
        self.may_begin_flow(mapping)
            .map_err(|refusal| RestoreError::TooMuch(limit_of(refusal)))?;
        let inner = self.mappings.entry(mapping).inner_end();
        let key = OutKey {
            protocol,
            subscriber: inner.subscriber,
            inner: inner.address,
            inner_port: inner.port,
            remote,
            remote_port,
        };
        if self.flows.find_out(&self.hash, &key).is_some() {
            return Err(RestoreError::Contradiction("flow"));
        }
        let deadline_ms = self.now_ms.saturating_add(left_ms);
        self.insert_flow(mapping, remote, remote_port, state, deadline_ms)
            .map(|_| ())
            .ok_or(RestoreError::TooMuch("flows_max"))
    }
}

const fn limit_of(refusal: crate::Refusal) -> &'static str {
    match refusal {
        crate::Refusal::MappingFlows => "flows_per_mapping_max",
        crate::Refusal::SubscriberFlows => "flows_per_subscriber_max",
        _ => "flows_max",
    }
}

/// Takes fields off the front. What ends inside a field contradicts its digest, or itself.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(RestoreError::Contradiction("length"))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, RestoreError> {
        self.take::<1>().map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Result<u16, RestoreError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, RestoreError> {
        self.take().map(u32::from_le_bytes)
    }

    /// What is left of a timeout.
    fn left(&mut self) -> Result<u64, RestoreError> {
        let left_ms = u64::from(self.u32()?);
        if left_ms > TIMEOUT_MS_MAX {
            return Err(RestoreError::Contradiction("time"));
        }
        Ok(left_ms)
    }

    fn protocol(&mut self) -> Result<Protocol, RestoreError> {
        let number = usize::from(self.u8()?);
        let protocol = Protocol::ALL.get(number).copied();
        protocol.ok_or(RestoreError::Contradiction("protocol"))
    }

    fn state(&mut self) -> Result<tcp::State, RestoreError> {
        let number = usize::from(self.u8()?);
        let state = tcp::State::ALL.get(number).copied();
        state.ok_or(RestoreError::Contradiction("state"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESS: [u8; 4] = [192, 0, 2, 1];

    fn config() -> Config {
        let mut config = Config::new(vec![ADDRESS.into()]);
        config.limits.mappings_max = 64;
        config.limits.flows_max = 64;
        config.limits.subscribers_max = 8;
        config
    }

    fn lively() -> Nat44 {
        let mut nat = Nat44::new(config(), [1; 32]).unwrap();
        for nth in 0..30_u32 {
            let inner = InnerEnd {
                protocol: Protocol::ALL[nth as usize % 3],
                subscriber: Subscriber(nth % 4),
                address: 7,
                port: 1 + (nth / 4) as u16,
            };
            let mapping = nat.begin_mapping(inner).unwrap();
            let state = tcp::State::OpenedOut;
            nat.begin_flow(mapping, nth, 80, state).unwrap();
        }
        nat.remove(1000, Subscriber(3));
        nat.sweep(1000, 5);
        nat
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// With a digest that fits: whatever it says, it is refused, or it is a state that comes
        /// to its end like any other.
        #[test]
        fn what_no_nat_wrote_is_refused_or_harmless(
            damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = lively().snapshot();
            bytes.truncate(bytes.len() - DIGEST_BYTES);
            for (at, value) in damages {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let digest = hash::digest(&bytes);
            bytes.extend_from_slice(&digest.to_le_bytes());
            if let Ok(mut nat) = Nat44::restore(config(), [2; 32], 0, &bytes) {
                let long_ms = TIMEOUT_MS_MAX + 1000;
                (1..5).for_each(|nth| nat.sweep(nth * long_ms, usize::MAX));
                let counters = nat.counters();
                prop_assert_eq!((counters.flows, counters.mappings), (0, 0));
                prop_assert_eq!((counters.blocks_lent, counters.blocks_resting), (0, 0));
                prop_assert_eq!(counters.subscribers, 0);
            }
        }
    }
}
