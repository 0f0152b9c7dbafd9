//! What payer and payee say to each other, as bytes.
//!
//! A message is a type byte and fixed fields, integers little-endian. The link below keeps
//! messages apart; a message with bytes left over is refused. Decoding checks shape only.

use topnet_account::{Amount, ChannelId};
use topnet_unit::UnitCount;

use crate::{Preimage, SIGNED_VOUCHER_BYTES, SignedVoucher, Token, VoucherError};

/// Version of the payment protocol; both ends must speak the same.
pub const PROTOCOL_VERSION: u16 = 1;

/// The longest message.
pub const MESSAGE_BYTES_MAX: usize = 1 + 32 + SIGNED_VOUCHER_BYTES + 64;

/// From the payer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayerMessage {
    /// Opens the conversation about one channel, on a connection made with its signer key.
    Hello {
        /// [`PROTOCOL_VERSION`] of the payer.
        version: u16,
        /// The channel.
        channel: ChannelId,
    },
    /// The last thing that the payer promised, as it stands on its disk.
    Resume(Option<Promise>),
    /// A new promise in place of the last one.
    Roll(Roll),
    /// Pays units.
    Token(Token),
}

/// From the payee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayeeMessage {
    /// Answers a hello with the terms of service.
    Offer(Offer),
    /// The best promise that the payee holds, as it stands on its disk.
    Resume(Option<Promise>),
    /// How the channel stands, from the journal.
    Meter(Meter),
    /// Something was not accepted; nothing changed.
    Refused(RefusalCode),
}

/// The payee's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// [`PROTOCOL_VERSION`] of the payee.
    pub version: u16,
    /// Price of a unit.
    pub unit_price: Amount,
    /// Tolerated difference between the two counts, in parts per million of received bytes.
    pub epsilon_ppm: u32,
    /// The furthest ahead that the payee takes payment, in units.
    pub window_max: UnitCount,
}

/// A voucher and the furthest token of its chain: it proves itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The voucher.
    pub voucher: SignedVoucher,
    /// The token's place; 0 for none.
    pub index: u16,
    /// `w[index]`.
    pub preimage: Preimage,
}

/// A new voucher, with the token that settles the chain which it retires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roll {
    /// The new voucher.
    pub voucher: SignedVoucher,
    /// Place of the old chain's last token; 0 where there is no old chain.
    pub retired_index: u16,
    /// `w[retired_index]` of the old chain.
    pub retired_preimage: Preimage,
}

/// How a channel stands with the payee. Journalled totals only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    /// Billable bytes of the channel.
    pub channel_bytes: u64,
    /// Units owed.
    pub owed: UnitCount,
    /// Units paid.
    pub accepted: UnitCount,
    /// Bytes that may still be forwarded.
    pub credit_bytes: u64,
}

/// Why something was not accepted, and so what the payer can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RefusalCode {
    /// The payee speaks another version: update.
    Version = 1,
    /// No such channel here, or the connection's key is not its signer's: check the channel.
    UnknownChannel = 2,
    /// A message before the hello, or twice what comes once: reconnect.
    OutOfOrder = 3,
    /// Not a message: reconnect.
    Malformed = 4,
    /// A token under a voucher that is not the newest: resume.
    StaleVoucher = 5,
    /// A token beyond its chain's end: roll first.
    BeyondChain = 6,
    /// A token further ahead than the payee checks: resume.
    TooFarAhead = 7,
    /// The pre-image is not of this chain.
    WrongPreimage = 8,
    /// The voucher's signature is not the signer's.
    WrongSignature = 9,
    /// The voucher's totals do not follow from the one before.
    WrongTotals = 10,
    /// The voucher pays less for a unit than the offer asks.
    PriceTooLow = 11,
    /// The voucher promises more than the channel's allocation: top up, or fewer tokens.
    BeyondAllocation = 12,
    /// The channel takes no promise: it is closing, near its expiry, or the payee's view of
    /// the chain is stale. Try again later or open another.
    Frozen = 13,
    /// The channel is finished; what was owed has been claimed.
    Finished = 14,
    /// Too many links of this channel lately, or too much on them that was refused: wait.
    TooOften = 15,
}

/// Bytes that are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Too short, or bytes left over.
    #[error("the message has the wrong length for its type {0}")]
    Length(u8),
    /// Empty, or of no known type.
    #[error("there is no message of this type")]
    Type,
    /// A voucher that makes no sense.
    #[error(transparent)]
    Voucher(#[from] VoucherError),
    /// A field with a value that it cannot have.
    #[error("a field of the message is out of range")]
    Range,
}

const HELLO: u8 = 1;
const PAYER_RESUME: u8 = 2;
const ROLL: u8 = 3;
const TOKEN: u8 = 4;
const OFFER: u8 = 129;
const PAYEE_RESUME: u8 = 130;
const METER: u8 = 131;
const REFUSED: u8 = 132;

impl PayerMessage {
    /// The message as it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Hello { version, channel } => {
                let mut bytes = vec![HELLO];
                bytes.extend(version.to_le_bytes());
                bytes.extend(channel.as_bytes());
                bytes
            }
            Self::Resume(promise) => resume_bytes(PAYER_RESUME, promise.as_ref()),
            Self::Roll(roll) => {
                let mut bytes = vec![ROLL];
                bytes.extend(roll.voucher.to_bytes());
                bytes.extend(roll.retired_index.to_le_bytes());
                bytes.extend(roll.retired_preimage);
                bytes
            }
            Self::Token(token) => {
                let mut bytes = vec![TOKEN];
                bytes.extend(token.channel.as_bytes());
                bytes.extend(token.seq.to_le_bytes());
                bytes.extend(token.index.to_le_bytes());
                bytes.extend(token.preimage);
                bytes.extend(token.own_bytes.to_le_bytes());
                bytes
            }
        }
    }

    /// Reads [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut fields = Fields::new(bytes)?;
        let message = match fields.message_type {
            HELLO => Self::Hello {
                version: fields.u16()?,
                channel: ChannelId(fields.bytes()?),
            },
            PAYER_RESUME => Self::Resume(fields.promise()?),
            ROLL => Self::Roll(Roll {
                voucher: fields.voucher()?,
                retired_index: fields.u16()?,
                retired_preimage: fields.bytes()?,
            }),
            TOKEN => Self::Token(Token {
                channel: ChannelId(fields.bytes()?),
                seq: fields.u32()?,
                index: fields.u16()?,
                preimage: fields.bytes()?,
                own_bytes: fields.u64()?,
            }),
            _ => return Err(MessageError::Type),
        };
        fields.end(message)
    }
}

impl PayeeMessage {
    /// The message as it is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Offer(offer) => {
                let mut bytes = vec![OFFER];
                bytes.extend(offer.version.to_le_bytes());
                bytes.extend(offer.unit_price.ntop().to_le_bytes());
                bytes.extend(offer.epsilon_ppm.to_le_bytes());
                bytes.extend(offer.window_max.to_le_bytes());
                bytes
            }
            Self::Resume(promise) => resume_bytes(PAYEE_RESUME, promise.as_ref()),
            Self::Meter(meter) => {
                let mut bytes = vec![METER];
                for total in [
                    meter.channel_bytes,
                    meter.owed,
                    meter.accepted,
                    meter.credit_bytes,
                ] {
                    bytes.extend(total.to_le_bytes());
                }
                bytes
            }
            Self::Refused(code) => vec![REFUSED, *code as u8],
        }
    }

    /// Reads [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut fields = Fields::new(bytes)?;
        let message = match fields.message_type {
            OFFER => Self::Offer(Offer {
                version: fields.u16()?,
                unit_price: Amount::from_ntop(fields.u64()?),
                epsilon_ppm: fields.u32()?,
                window_max: fields.u64()?,
            }),
            PAYEE_RESUME => Self::Resume(fields.promise()?),
            METER => Self::Meter(Meter {
                channel_bytes: fields.u64()?,
                owed: fields.u64()?,
                accepted: fields.u64()?,
                credit_bytes: fields.u64()?,
            }),
            REFUSED => {
                let [code] = fields.bytes()?;
                Self::Refused(RefusalCode::from_byte(code).ok_or(MessageError::Range)?)
            }
            _ => return Err(MessageError::Type),
        };
        fields.end(message)
    }
}

impl RefusalCode {
    const ALL: [Self; 15] = [
        Self::Version,
        Self::UnknownChannel,
        Self::OutOfOrder,
        Self::Malformed,
        Self::StaleVoucher,
        Self::BeyondChain,
        Self::TooFarAhead,
        Self::WrongPreimage,
        Self::WrongSignature,
        Self::WrongTotals,
        Self::PriceTooLow,
        Self::BeyondAllocation,
        Self::Frozen,
        Self::Finished,
        Self::TooOften,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u8 == byte)
    }
}

pub(crate) fn promise_bytes(promise: &Promise) -> Vec<u8> {
    let mut bytes = promise.voucher.to_bytes().to_vec();
    bytes.extend(promise.index.to_le_bytes());
    bytes.extend(promise.preimage);
    bytes
}

fn resume_bytes(message_type: u8, promise: Option<&Promise>) -> Vec<u8> {
    let mut bytes = vec![message_type];
    bytes.extend(promise.map(promise_bytes).unwrap_or_default());
    bytes
}

/// Takes fixed fields off the front.
pub(crate) struct Fields<'a> {
    message_type: u8,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, MessageError> {
        let (message_type, rest) = bytes.split_first().ok_or(MessageError::Type)?;
        Ok(Self {
            message_type: *message_type,
            rest,
        })
    }

    pub(crate) fn message_type(&self) -> u8 {
        self.message_type
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let length = MessageError::Length(self.message_type);
        let (field, rest) = self.rest.split_first_chunk().ok_or(length)?;
        self.rest = rest;
        Ok(*field)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, MessageError> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, MessageError> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, MessageError> {
        self.bytes().map(u64::from_le_bytes)
    }

    pub(crate) fn voucher(&mut self) -> Result<SignedVoucher, MessageError> {
        let bytes: [u8; SIGNED_VOUCHER_BYTES] = self.bytes()?;
        Ok(SignedVoucher::from_bytes(&bytes)?)
    }

    /// One promise, or nothing at all.
    fn promise(&mut self) -> Result<Option<Promise>, MessageError> {
        if self.rest.is_empty() {
            Ok(None)
        } else {
            self.one_promise().map(Some)
        }
    }

    pub(crate) fn one_promise(&mut self) -> Result<Promise, MessageError> {
        let voucher = self.voucher()?;
        let (index, preimage) = (self.u16()?, self.bytes()?);
        if index > voucher.voucher.tokens {
            return Err(MessageError::Range);
        }
        Ok(Promise {
            voucher,
            index,
            preimage,
        })
    }

    pub(crate) fn end<T>(self, value: T) -> Result<T, MessageError> {
        if self.rest.is_empty() {
            Ok(value)
        } else {
            Err(MessageError::Length(self.message_type))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SecretKey, Voucher};

    fn promise() -> Promise {
        let voucher = Voucher {
            channel: ChannelId([1; 32]),
            seq: 1,
            cumulative_amount: Amount::ZERO,
            cumulative_units: 0,
            unit_price: Amount::from_ntop(25),
            tokens: 8,
            root: [0; 32],
        };
        let voucher = voucher.sign(&SecretKey::from_seed([2; 32]).unwrap());
        Promise {
            voucher,
            index: 3,
            preimage: [4; 32],
        }
    }

    #[test]
    fn payer_messages_round_trip_and_no_other_length_is_read() {
        let voucher = promise().voucher;
        let token = Token {
            channel: ChannelId([1; 32]),
            seq: 2,
            index: 3,
            preimage: [4; 32],
            own_bytes: 5,
        };
        let messages = [
            PayerMessage::Hello {
                version: 1,
                channel: ChannelId([1; 32]),
            },
            PayerMessage::Resume(None),
            PayerMessage::Resume(Some(promise())),
            PayerMessage::Roll(Roll {
                voucher,
                retired_index: 7,
                retired_preimage: [8; 32],
            }),
            PayerMessage::Token(token),
        ];
        for message in messages {
            let bytes = message.to_bytes();
            assert!(bytes.len() <= MESSAGE_BYTES_MAX);
            assert_eq!(PayerMessage::from_bytes(&bytes), Ok(message));
            assert!(PayerMessage::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
            assert!(PayeeMessage::from_bytes(&bytes).is_err());
            for end in 2..bytes.len() {
                assert!(
                    PayerMessage::from_bytes(&bytes[..end]).is_err(),
                    "{message:?} {end}"
                );
            }
        }
    }

    #[test]
    fn payee_messages_round_trip_and_no_other_length_is_read() {
        let offer = Offer {
            version: 1,
            unit_price: Amount::from_ntop(25),
            epsilon_ppm: 5_000,
            window_max: 64,
        };
        let meter = Meter {
            channel_bytes: 1,
            owed: 2,
            accepted: 3,
            credit_bytes: 4,
        };
        let mut messages = vec![
            PayeeMessage::Offer(offer),
            PayeeMessage::Resume(None),
            PayeeMessage::Resume(Some(promise())),
            PayeeMessage::Meter(meter),
        ];
        messages.extend(RefusalCode::ALL.map(PayeeMessage::Refused));
        for message in messages {
            let bytes = message.to_bytes();
            assert!(bytes.len() <= MESSAGE_BYTES_MAX);
            assert_eq!(PayeeMessage::from_bytes(&bytes), Ok(message));
            assert!(PayeeMessage::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
            for end in 2..bytes.len() {
                assert!(
                    PayeeMessage::from_bytes(&bytes[..end]).is_err(),
                    "{message:?} {end}"
                );
            }
        }
        assert_eq!(
            PayeeMessage::from_bytes(&[REFUSED, 0]),
            Err(MessageError::Range)
        );
        assert_eq!(PayerMessage::from_bytes(&[]), Err(MessageError::Type));
    }
}
