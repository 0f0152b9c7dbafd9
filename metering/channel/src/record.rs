//! The payee's durable record of a channel, as bytes.
//!
//! Everything that a restart needs: promises, counts by slot, what is owed. A record replaces
//! the one before it as a whole, so there is no order of partial updates to get wrong.

use topnet_account::ChannelId;
use topnet_unit::{BootId, Slot};

use crate::{
    MessageError, Payee, PayeeState, PayeeTerms,
    message::{Fields, promise_bytes},
    payee::{SLOTS_PER_CHANNEL_MAX, SlotCount, SlotUse},
    promises::PROMISES_PER_CHANNEL_MAX,
};

/// Version of the record's layout; its first byte.
const RECORD_VERSION: u8 = 1;

const OPEN: u8 = 0;
const FINISHED: u8 = 1;
const BROKEN: u8 = 2;

/// A journal's bytes that are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by another version.
    #[error("the journal's record has version {0}; this release reads version 1")]
    Version(u8),
    /// The record is another channel's.
    #[error("the journal's record is channel {0}'s")]
    Channel(ChannelId),
    /// Cut short, overlong or with impossible values: the journal is damaged.
    #[error("the journal's record is damaged: {0}")]
    Damaged(#[from] MessageError),
}

impl Payee {
    pub(crate) fn to_record(&self) -> Vec<u8> {
        let mut bytes = vec![RECORD_VERSION];
        bytes.extend(self.terms.channel.as_bytes());
        bytes.push(match self.state {
            PayeeState::Open | PayeeState::Frozen => OPEN,
            PayeeState::Finished => FINISHED,
            PayeeState::Broken => BROKEN,
        });
        for total in [self.forgotten_bytes, self.written_off, self.owed] {
            bytes.extend(total.to_le_bytes());
        }
        bytes.extend((self.slots.len() as u16).to_le_bytes());
        for slot in &self.slots {
            bytes.extend(slot.slot_use.boot.0);
            bytes.extend(slot.slot_use.slot.index.to_le_bytes());
            bytes.extend(slot.slot_use.slot.generation.to_le_bytes());
            bytes.extend(slot.base_bytes.to_le_bytes());
            bytes.extend(slot.usage_bytes.to_le_bytes());
            bytes.push(u8::from(slot.over));
        }
        bytes.extend((self.promises.iter().count() as u16).to_le_bytes());
        for promise in self.promises.iter() {
            bytes.extend(promise_bytes(&promise));
        }
        bytes
    }

    /// The channel as it stood when `record` was written, frozen until
    /// [`handle_frozen`](Self::handle_frozen) says that the chain still has it open.
    pub fn from_record(terms: PayeeTerms, record: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::new(record)?;
        if fields.message_type() != RECORD_VERSION {
            return Err(RecordError::Version(fields.message_type()));
        }
        let channel = ChannelId(fields.bytes()?);
        if channel != terms.channel {
            return Err(RecordError::Channel(channel));
        }
        let mut payee = Self::new(terms);
        let [state] = fields.bytes()?;
        payee.state = match state {
            // Until the chain has been heard anew, nobody knows that the channel still pays.
            OPEN => PayeeState::Frozen,
            FINISHED => PayeeState::Finished,
            BROKEN => PayeeState::Broken,
            _ => return Err(MessageError::Range.into()),
        };
        payee.forgotten_bytes = fields.u64()?;
        payee.written_off = fields.u64()?;
        payee.owed = fields.u64()?;
        for _ in 0..bounded(fields.u16()?, SLOTS_PER_CHANNEL_MAX)? {
            let boot = BootId(fields.bytes()?);
            let slot = Slot {
                index: fields.u32()?,
                generation: fields.u32()?,
            };
            let (base_bytes, usage_bytes) = (fields.u64()?, fields.u64()?);
            let over = match fields.bytes()? {
                [0] => false,
                [1] => true,
                _ => return Err(MessageError::Range.into()),
            };
            let slot_use = SlotUse { boot, slot };
            payee.slots.push(SlotCount {
                slot_use,
                base_bytes,
                usage_bytes,
                over,
            });
        }
        for _ in 0..bounded(fields.u16()?, PROMISES_PER_CHANNEL_MAX)? {
            let promise = fields.one_promise()?;
            payee
                .promises
                .push(None, promise)
                .map_err(|_| MessageError::Range)?;
        }
        Ok(fields.end(payee)?.restored())
    }
}

/// The channel that a record is about, without reading the rest.
pub fn record_channel(record: &[u8]) -> Result<ChannelId, RecordError> {
    let mut fields = Fields::new(record)?;
    if fields.message_type() != RECORD_VERSION {
        return Err(RecordError::Version(fields.message_type()));
    }
    Ok(ChannelId(fields.bytes()?))
}

fn bounded(count: u16, max: usize) -> Result<u16, MessageError> {
    if usize::from(count) <= max {
        Ok(count)
    } else {
        Err(MessageError::Range)
    }
}
