//! The records' bytes: their fields in their order.

use topnet_account::{Address, Hash, PublicKey};

use super::{
    Account, Channel, ChannelState, Heads, MainLink, Outflow, PayoutQueue, PublishedOffer, Record,
    Recovered, RecoveryBegun, Service,
};
use crate::{
    codec::{CodecError, Reader, Writer},
    conservation::{MainTotals, ServiceTotals, Totals},
    genesis::{NAME_BYTES_MAX, VALIDATORS_MAX},
    offer::Offer,
    outbox::{OutboxHead, Payout, read_heads, write_heads},
};

impl Record for Account {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer
            .u64(self.nonce)
            .amount(self.balance)
            .amount(self.homeward)
            .bool(self.queued);
        writer.into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, |reader| {
            Ok(Self {
                nonce: reader.u64("account nonce")?,
                balance: reader.amount("account balance")?,
                homeward: reader.amount("account homeward")?,
                queued: reader.bool("account queued")?,
            })
        })
    }
}

impl Record for Channel {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer
            .address(&self.payer)
            .address(&self.payee)
            .raw(self.signer);
        writer
            .amount(self.allocation)
            .amount(self.paid)
            .amount(self.closing_fee);
        writer
            .u32(self.close_window)
            .u64(self.expiry)
            .raw(self.log_root);
        match self.state {
            ChannelState::Open => writer.u8(0),
            ChannelState::Closing { deadline } => writer.u8(1).u64(deadline),
            ChannelState::Closed => writer.u8(2),
        };
        writer.into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, |reader| {
            Ok(Self {
                payer: reader.address("channel payer")?,
                payee: reader.address("channel payee")?,
                signer: reader.key("channel signer")?,
                allocation: reader.amount("channel allocation")?,
                paid: reader.amount("channel paid")?,
                closing_fee: reader.amount("channel closing_fee")?,
                close_window: reader.u32("channel close_window")?,
                expiry: reader.u64("channel expiry")?,
                log_root: reader.hash("channel log_root")?,
                state: match reader.u8("channel state")? {
                    0 => ChannelState::Open,
                    1 => ChannelState::Closing {
                        deadline: reader.u64("channel deadline")?,
                    },
                    2 => ChannelState::Closed,
                    tag => {
                        return Err(CodecError::Tag {
                            what: "channel state",
                            tag,
                        });
                    }
                },
            })
        })
    }
}

impl Record for Service {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(self.name.as_bytes());
        write_validators(&mut writer, &self.validators);
        write_validators(&mut writer, &self.previous_validators);
        writer
            .amount(self.escrow)
            .u128(self.funded)
            .u128(self.accepted)
            .u64(self.credited);
        self.inbox.write(&mut writer);
        writer.u64(self.height).raw(self.state_root);
        writer.bool(self.owner.is_some());
        if let Some(owner) = &self.owner {
            writer.address(owner);
        }
        writer.amount(self.deposit).u64(self.heard);
        self.waiting.write(&mut writer);
        writer
            .amount(self.waiting_amount)
            .u64(self.outflow.epoch)
            .amount(self.outflow.amount);
        writer.bool(self.recovery.is_some());
        if let Some(recovery) = &self.recovery {
            writer.u64(recovery.credited);
        }
        writer.into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, |reader| {
            Ok(Self {
                name: reader.text(NAME_BYTES_MAX, "service name")?,
                validators: read_validators(reader)?,
                previous_validators: read_validators(reader)?,
                escrow: reader.amount("service escrow")?,
                funded: reader.u128("service funded")?,
                accepted: reader.u128("service accepted")?,
                credited: reader.u64("service credited")?,
                inbox: OutboxHead::read(reader)?,
                height: reader.u64("service height")?,
                state_root: reader.hash("service state_root")?,
                owner: match reader.bool("service owned")? {
                    true => Some(reader.address("service owner")?),
                    false => None,
                },
                deposit: reader.amount("service deposit")?,
                heard: reader.u64("service heard")?,
                waiting: PayoutQueue::read(reader)?,
                waiting_amount: reader.amount("service waiting")?,
                outflow: Outflow {
                    epoch: reader.u64("service outflow epoch")?,
                    amount: reader.amount("service outflow")?,
                },
                recovery: match reader.bool("service in recovery")? {
                    true => Some(RecoveryBegun {
                        credited: reader.u64("recovery credited")?,
                    }),
                    false => None,
                },
            })
        })
    }
}

impl Record for Heads {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        write_heads(&mut writer, &self.0);
        writer.into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, read_heads).map(Self)
    }
}

impl Record for MainLink {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        write_validators(&mut writer, &self.validators);
        self.inbox.write(&mut writer);
        writer.into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, |reader| {
            Ok(Self {
                validators: read_validators(reader)?,
                inbox: OutboxHead::read(reader)?,
            })
        })
    }
}

impl PayoutQueue {
    fn write(&self, writer: &mut Writer) {
        writer.u64(self.head).u64(self.tail);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self {
            head: reader.u64("queue head")?,
            tail: reader.u64("queue tail")?,
        })
    }
}

impl Record for PayoutQueue {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        self.write(&mut writer);
        writer.into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, Self::read)
    }
}

impl Record for Payout {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        self.write(&mut writer);
        writer.into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, Self::read)
    }
}

impl Record for PublishedOffer {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        self.offer.write(&mut writer);
        writer.amount(self.deposit).u64(self.height);
        writer.into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, |reader| {
            Ok(Self {
                offer: Offer::read(reader)?,
                deposit: reader.amount("offer deposit")?,
                height: reader.u64("offer height")?,
            })
        })
    }
}

impl Record for Recovered {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.amount(self.amount);
        writer.into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, |reader| {
            let amount = reader.amount("recovered amount")?;
            Ok(Self { amount })
        })
    }
}

impl Record for Hash {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, |reader| reader.hash("named service"))
    }
}

impl Record for Address {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, |reader| reader.address("queued address"))
    }
}

impl Record for Totals {
    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        match self {
            Self::Main(totals) => {
                let MainTotals {
                    supply,
                    balances,
                    services,
                    allocations,
                    offers,
                    burned,
                } = *totals;
                writer
                    .u8(0)
                    .u128(supply)
                    .u128(balances)
                    .u128(services)
                    .u128(allocations)
                    .u128(offers)
                    .u128(burned);
            }
            Self::Service(totals) => {
                let ServiceTotals {
                    credited,
                    batched,
                    balances,
                    allocations,
                    burn,
                } = *totals;
                writer.u8(1).u128(credited).u128(batched);
                writer.u128(balances).u128(allocations).u128(burn);
            }
        }
        writer.into_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        Reader::all(bytes, |reader| {
            Ok(match reader.u8("totals kind")? {
                0 => Self::Main(MainTotals {
                    supply: reader.u128("totals supply")?,
                    balances: reader.u128("totals balances")?,
                    services: reader.u128("totals services")?,
                    allocations: reader.u128("totals allocations")?,
                    offers: reader.u128("totals offers")?,
                    burned: reader.u128("totals burned")?,
                }),
                1 => Self::Service(ServiceTotals {
                    credited: reader.u128("totals credited")?,
                    batched: reader.u128("totals batched")?,
                    balances: reader.u128("totals balances")?,
                    allocations: reader.u128("totals allocations")?,
                    burn: reader.u128("totals burn")?,
                }),
                tag => {
                    return Err(CodecError::Tag {
                        what: "totals kind",
                        tag,
                    });
                }
            })
        })
    }
}

fn write_validators(writer: &mut Writer, validators: &[PublicKey]) {
    writer.list(validators, |writer, key| {
        writer.raw(key);
    });
}

fn read_validators(reader: &mut Reader<'_>) -> Result<Vec<PublicKey>, CodecError> {
    reader.list(VALIDATORS_MAX, "validators", |reader| {
        reader.key("validator")
    })
}
