//! The payer's durable record: its newest promise and its own count.

use crate::{
    MessageError, Payer, Promise,
    message::{Fields, promise_bytes},
};

const RECORD_VERSION: u8 = 1;

/// What a payer's journal holds of one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayerRecord {
    /// What was promised last.
    pub promise: Option<Promise>,
    /// What the payer had counted itself.
    pub own_bytes: u64,
}

impl PayerRecord {
    /// Reads what [`Unsaved::record`](crate::Unsaved::record) gave to write. A record of another
    /// version is [`MessageError::Type`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut fields = Fields::new(bytes)?;
        if fields.message_type() != RECORD_VERSION {
            return Err(MessageError::Type);
        }
        let own_bytes = fields.u64()?;
        let [has_promise] = fields.bytes()?;
        let promise = match has_promise {
            0 => None,
            1 => Some(fields.one_promise()?),
            _ => return Err(MessageError::Range),
        };
        fields.end(Self { promise, own_bytes })
    }

    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![RECORD_VERSION];
        bytes.extend(self.own_bytes.to_le_bytes());
        bytes.push(u8::from(self.promise.is_some()));
        bytes.extend(self.promise.as_ref().map(promise_bytes).unwrap_or_default());
        bytes
    }
}

impl Payer {
    pub(crate) fn to_record(&self) -> Vec<u8> {
        let status = self.status();
        PayerRecord {
            promise: self.promise(),
            own_bytes: status.own_bytes,
        }
        .to_bytes()
    }
}
