//! What people, watchtowers and relays ask of a chain.
//!
//! Layout: version (1 byte) ‖ chain id (32) ‖ kind (1) ‖ fields, and for what needs somebody's
//! consent public key (32) ‖ signature (64) at the end. The signature is over the length byte,
//! the domain `topnet/tx/1` and all bytes before it. A transaction's id is SHA-256 over a domain
//! and all its bytes.
//!
//! Kinds fall into classes, and a block holds them in this order: imports from other chains,
//! orders of accounts, claims, closes, finalisations. Orders carry their account's nonce;
//! all others are bound to a channel or a sequence and need none, because none of them can
//! happen twice: channel ids never come back.

use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey, Signature};
use topnet_channel::{Claim, SIGNED_VOUCHER_BYTES, SecretKey, SignedVoucher};

use crate::{
    codec::{CodecError, Reader, Writer},
    genesis::{Counterpart, NAME_BYTES_MAX, VALIDATORS_MAX},
    machine::Key,
    offer::Offer,
    outbox::{Batch, Fund as FundEntry, Import},
    state,
};

/// Length of a transaction, at most.
pub const TRANSACTION_BYTES_MAX: usize = 128 * 1024;
/// Length of the proof of one value of a state, at most.
pub const STATE_PROOF_BYTES_MAX: usize = 16 * 1024;

const DOMAIN: &[u8] = b"topnet/tx/1";
const ID_DOMAIN: &[u8] = b"topnet/txid/1";
const CHANNEL_DOMAIN: &[u8] = b"topnet/channel/1";
const VERSION: u8 = 1;

/// A transaction, bound to one chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Id of the chain that may execute it.
    pub chain: Hash,
    /// What is asked.
    pub body: Body,
}

/// What a transaction asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// On a service: credits funds that main holds in escrow, against main's certificate.
    /// Brought by anybody, free. Every entry is credited to its beneficiary.
    Credit(Import<FundEntry>),
    /// On main: accepts a service's batches, against the service's certificate. Brought by
    /// anybody, free. Payouts are credited, the burn is burned, both leave the escrow.
    Batch(Import<Batch>),
    /// On main: takes something out of a dead service. Brought by anybody; the fee comes out of
    /// what is recovered.
    Recover(Recover),
    /// What an account's owner wants done with its money, in the order of nonces.
    Order(Sealed<Order>),
    /// Redeems a voucher. Brought by anybody, any time until the channel is closed. Pays the
    /// payee what the claim is worth less what was paid before, at most what remains; if that
    /// is less than `claim_payout_min` it pays nothing and costs nothing. The fee comes out of
    /// the payout.
    Claim(ClaimBody),
    /// Ends a channel with its payee's consent, now and for good.
    CloseByPayee(Sealed<CloseByPayee>),
    /// Starts the close window with the payer's consent.
    CloseByPayer(Sealed<CloseByPayer>),
    /// Starts the close window of a channel that has reached its expiry. Brought by anybody;
    /// the fee comes out of the closing fee.
    Expire(ChannelId),
    /// Ends a channel whose deadline has passed: the rest returns to the payer. Brought by
    /// anybody; the fee comes out of the closing fee.
    Finalise(ChannelId),
}

/// A message with the consent of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed<M> {
    /// What is consented to.
    pub message: M,
    /// Whose consent it is.
    pub key: PublicKey,
    /// Over the transaction's bytes before it, in the domain `topnet/tx/1`.
    pub signature: Signature,
}

/// Takes something out of a service that is dead, against the last state root of its that main
/// has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recover {
    /// Id of the service chain.
    pub service: Hash,
    /// What is taken.
    pub claim: Recovery,
}

/// What can be taken out of a dead service. Each can be taken once. A proof shows what stood in
/// the service's state; [`Verifier::state_value`](crate::machine::Verifier::state_value) takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Comes first: tells how many of main's funds the state has credited, and burns what it had
    /// burned and not reported. Both proofs are empty if main never accepted a batch.
    Begin {
        /// Of the service's [`MainLink`](crate::state::MainLink).
        link: Vec<u8>,
        /// Of the service's [`Totals`](crate::conservation::Totals).
        totals: Vec<u8>,
    },
    /// An account's balance goes to the same account on main.
    Account {
        /// Whose.
        account: Address,
        /// Of its record.
        proof: Vec<u8>,
    },
    /// A channel goes on on main, closing: it can be claimed, and closed by its payee, for
    /// `recovery_window` blocks, and is finalised afterwards.
    Channel {
        /// Which.
        channel: ChannelId,
        /// Of its record.
        proof: Vec<u8>,
    },
    /// A fund that the state has not credited goes back to its funder.
    Fund {
        /// Its number.
        seq: u64,
    },
}

/// What an account's owner wants done with its money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Number of the account's orders on this chain before this one.
    pub nonce: u64,
    /// What to do.
    pub action: Action,
}

/// The kinds of [`Order`]. The sender pays amount and fee from its balance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Moves money to another account of the same chain.
    Transfer {
        /// Who receives it.
        to: Address,
        /// How much, more than zero.
        amount: Amount,
    },
    /// On main: locks money in a service's escrow; the service credits the beneficiary.
    Fund {
        /// Id of the service chain.
        service: Hash,
        /// How much, at least `fund_min`.
        amount: Amount,
        /// Whose balance on the service it becomes.
        beneficiary: Address,
    },
    /// On a service: marks part of the balance to be sent home to the same account on main with
    /// the next batch. What is marked must be more than dust.
    Withdraw {
        /// How much, more than zero, out of what is not marked already.
        amount: Amount,
    },
    /// On a service: opens a channel whose id is [`channel_id`] of this order.
    Open(Open),
    /// On a service, by the channel's payer: adds to the allocation of an open channel.
    TopUp {
        /// The channel.
        channel: ChannelId,
        /// How much, more than zero.
        amount: Amount,
    },
    /// On main: registers a service, so that it can be funded. Locks `service_deposit`, which
    /// returns to the sender when the service is dead and nobody's money is left in it.
    Register(Counterpart),
    /// On main: publishes the sender's offer for a service, in the place of its last one. Locks
    /// `offer_deposit` as long as there is one.
    PublishOffer(Offer),
    /// On main: takes the sender's offer for a service away. The deposit returns.
    RetractOffer {
        /// Id of the service chain.
        service: Hash,
    },
}

/// Terms of a new channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Who is paid.
    pub payee: Address,
    /// The most that can be redeemed; at least `allocation_min`. The fees of a close without
    /// the payee are set aside beside it.
    pub allocation: Amount,
    /// Whose vouchers count.
    pub signer: PublicKey,
    /// Blocks between a close by the payer and the deadline for claims, within the rules' bounds.
    pub close_window: u32,
    /// Height from which anybody may close; above the height of the block that opens.
    pub expiry: u64,
}

/// A claim as it stands in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimBody {
    /// The channel's signer key. It is here so that signatures can be checked without the state.
    pub signer: PublicKey,
    /// The voucher and at most one token.
    pub claim: Claim,
    /// Merkle root of the detailed log that the claim is about; zero if there is none.
    pub log_root: Hash,
}

/// Pays the claim, whatever it comes to, and returns the rest of allocation and closing fee to
/// the payer, at any time before the channel is closed. The fee comes out of the payout and is
/// at most all of it, so a payee without a balance can close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseByPayee {
    /// The channel.
    pub channel: ChannelId,
    /// The last claim, if something is owed.
    pub claim: Option<ClaimBody>,
}

/// Sets deadline = height + close window, once. Claims still count until the channel is
/// finalised, no sooner than after the deadline. The fee comes out of the closing fee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseByPayer {
    /// The channel.
    pub channel: ChannelId,
}

/// A transaction's place in a block; classes never go backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// What other chains tell.
    Import,
    /// What accounts order.
    Order,
    /// Claims.
    Claim,
    /// Closes by payee, payer or expiry.
    Close,
    /// Finalisations.
    Finalise,
}

/// The id of the channel that `payer` opens with its order number `nonce`.
pub fn channel_id(chain: &Hash, payer: &Address, payee: &Address, nonce: u64) -> ChannelId {
    let mut writer = Writer::in_domain(CHANNEL_DOMAIN);
    writer.raw(chain).address(payer).address(payee).u64(nonce);
    ChannelId(writer.sha256().0)
}

/// The id of the transaction that these bytes are.
pub fn transaction_id(bytes: &[u8]) -> Hash {
    Writer::in_domain(ID_DOMAIN).sha256_with(bytes)
}

/// What a key can consent to.
pub trait Message: Clone {
    /// The body that holds the message with its consent.
    fn body(sealed: Sealed<Self>) -> Body;

    /// Consents to the message on `chain`.
    fn sign(self, chain: &Hash, secret: &SecretKey) -> Transaction {
        let seal = Sealed {
            message: self,
            key: secret.public_key(),
            signature: Signature([0; 64]),
        };
        let draft = Transaction {
            chain: *chain,
            body: Self::body(seal.clone()),
        };
        let signature = secret.sign(&signed_bytes(&draft.to_bytes()));
        Transaction {
            chain: *chain,
            body: Self::body(Sealed { signature, ..seal }),
        }
    }
}

impl Message for Order {
    fn body(sealed: Sealed<Self>) -> Body {
        Body::Order(sealed)
    }
}

impl Message for CloseByPayee {
    fn body(sealed: Sealed<Self>) -> Body {
        Body::CloseByPayee(sealed)
    }
}

impl Message for CloseByPayer {
    fn body(sealed: Sealed<Self>) -> Body {
        Body::CloseByPayer(sealed)
    }
}

/// The bytes that are signed, out of the whole bytes of a sealed transaction.
fn signed_bytes(transaction: &[u8]) -> Vec<u8> {
    let before_signature = transaction.len().saturating_sub(Signature::SIZE);
    let mut writer = Writer::in_domain(DOMAIN);
    writer.raw(&transaction[..before_signature]);
    writer.into_bytes()
}

/// A signature that a transaction stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    /// Whose it is.
    pub key: PublicKey,
    /// What is signed, with the domain.
    pub bytes: Vec<u8>,
    /// The signature.
    pub signature: Signature,
}

impl Transaction {
    /// As it is sent and stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(VERSION).raw(self.chain);
        self.body.write(&mut writer);
        writer.into_bytes()
    }

    /// Reads [`to_bytes`](Self::to_bytes). No signature is checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > TRANSACTION_BYTES_MAX {
            return Err(CodecError::Range("transaction"));
        }
        Reader::all(bytes, |reader| {
            match reader.u8("transaction version")? {
                VERSION => {}
                tag => {
                    return Err(CodecError::Tag {
                        what: "transaction version",
                        tag,
                    });
                }
            }
            Ok(Self {
                chain: reader.hash("transaction chain")?,
                body: Body::read(reader)?,
            })
        })
    }

    /// The transaction's id.
    pub fn id(&self) -> Hash {
        transaction_id(&self.to_bytes())
    }

    /// The signatures that it stands on: none, one or two.
    pub fn consents(&self) -> Vec<Consent> {
        self.consents_in(&self.to_bytes())
    }

    /// The same where its bytes are at hand.
    pub(crate) fn consents_in(&self, bytes: &[u8]) -> Vec<Consent> {
        let sealed = |key: PublicKey, signature: Signature| Consent {
            key,
            bytes: signed_bytes(bytes),
            signature,
        };
        let claimed = |claim: &ClaimBody| Consent {
            key: claim.signer,
            bytes: claim.claim.voucher.voucher.signed_bytes().to_vec(),
            signature: claim.claim.voucher.signature,
        };
        match &self.body {
            Body::Order(order) => vec![sealed(order.key, order.signature)],
            Body::Claim(claim) => vec![claimed(claim)],
            Body::CloseByPayer(close) => vec![sealed(close.key, close.signature)],
            Body::CloseByPayee(close) => std::iter::once(sealed(close.key, close.signature))
                .chain(close.message.claim.iter().map(claimed))
                .collect(),
            Body::Credit(_)
            | Body::Batch(_)
            | Body::Recover(_)
            | Body::Expire(_)
            | Body::Finalise(_) => Vec::new(),
        }
    }
}

/// Kinds, as they stand in the bytes.
mod kind {
    pub(super) const CREDIT: u8 = 0x01;
    pub(super) const BATCH: u8 = 0x02;
    pub(super) const RECOVER: u8 = 0x03;
    pub(super) const TRANSFER: u8 = 0x10;
    pub(super) const FUND: u8 = 0x11;
    pub(super) const WITHDRAW: u8 = 0x12;
    pub(super) const OPEN: u8 = 0x13;
    pub(super) const TOP_UP: u8 = 0x14;
    pub(super) const REGISTER: u8 = 0x15;
    pub(super) const PUBLISH_OFFER: u8 = 0x16;
    pub(super) const RETRACT_OFFER: u8 = 0x17;
    pub(super) const CLAIM: u8 = 0x20;
    pub(super) const CLOSE_BY_PAYEE: u8 = 0x30;
    pub(super) const CLOSE_BY_PAYER: u8 = 0x31;
    pub(super) const EXPIRE: u8 = 0x32;
    pub(super) const FINALISE: u8 = 0x40;
}

impl Body {
    /// Where in a block it belongs.
    pub const fn class(&self) -> Class {
        match self {
            Self::Credit(_) | Self::Batch(_) | Self::Recover(_) => Class::Import,
            Self::Order(_) => Class::Order,
            Self::Claim(_) => Class::Claim,
            Self::CloseByPayee(_) | Self::CloseByPayer(_) | Self::Expire(_) => Class::Close,
            Self::Finalise(_) => Class::Finalise,
        }
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Credit(import) => import.write(writer.u8(kind::CREDIT)),
            Self::Batch(import) => import.write(writer.u8(kind::BATCH)),
            Self::Recover(recover) => recover.write(writer.u8(kind::RECOVER)),
            Self::Order(order) => {
                order.message.write(writer);
                order.write_seal(writer);
            }
            Self::Claim(claim) => claim.write(writer.u8(kind::CLAIM)),
            Self::CloseByPayee(close) => {
                writer.u8(kind::CLOSE_BY_PAYEE).raw(close.message.channel);
                writer.bool(close.message.claim.is_some());
                if let Some(claim) = &close.message.claim {
                    claim.write(writer);
                }
                close.write_seal(writer);
            }
            Self::CloseByPayer(close) => {
                writer.u8(kind::CLOSE_BY_PAYER).raw(close.message.channel);
                close.write_seal(writer);
            }
            Self::Expire(channel) => {
                writer.u8(kind::EXPIRE).raw(channel);
            }
            Self::Finalise(channel) => {
                writer.u8(kind::FINALISE).raw(channel);
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(match reader.u8("transaction kind")? {
            kind::CREDIT => Self::Credit(Import::read(reader)?),
            kind::BATCH => Self::Batch(Import::read(reader)?),
            kind::RECOVER => Self::Recover(Recover::read(reader)?),
            kind::CLAIM => Self::Claim(ClaimBody::read(reader)?),
            kind::CLOSE_BY_PAYEE => {
                let channel = reader.channel("close channel")?;
                let claim = match reader.bool("close claim")? {
                    true => Some(ClaimBody::read(reader)?),
                    false => None,
                };
                Self::CloseByPayee(Sealed::read(CloseByPayee { channel, claim }, reader)?)
            }
            kind::CLOSE_BY_PAYER => {
                let channel = reader.channel("close channel")?;
                Self::CloseByPayer(Sealed::read(CloseByPayer { channel }, reader)?)
            }
            kind::EXPIRE => Self::Expire(reader.channel("expire channel")?),
            kind::FINALISE => Self::Finalise(reader.channel("finalise channel")?),
            order => Self::Order(Sealed::read(Order::read(order, reader)?, reader)?),
        })
    }
}

impl Order {
    fn write(&self, writer: &mut Writer) {
        let mut begin = |kind: u8| {
            writer.u8(kind).u64(self.nonce);
        };
        match &self.action {
            Action::Transfer { to, amount } => {
                begin(kind::TRANSFER);
                writer.address(to).amount(*amount);
            }
            Action::Fund {
                service,
                amount,
                beneficiary,
            } => {
                begin(kind::FUND);
                writer.raw(service).amount(*amount).address(beneficiary);
            }
            Action::Withdraw { amount } => {
                begin(kind::WITHDRAW);
                writer.amount(*amount);
            }
            Action::Open(open) => {
                begin(kind::OPEN);
                writer
                    .address(&open.payee)
                    .amount(open.allocation)
                    .raw(open.signer);
                writer.u32(open.close_window).u64(open.expiry);
            }
            Action::TopUp { channel, amount } => {
                begin(kind::TOP_UP);
                writer.raw(channel).amount(*amount);
            }
            Action::Register(service) => {
                begin(kind::REGISTER);
                writer.bytes(service.name.as_bytes()).raw(service.genesis);
                writer.list(&service.validators, |writer, key| {
                    writer.raw(key);
                });
            }
            Action::PublishOffer(offer) => {
                begin(kind::PUBLISH_OFFER);
                offer.write(writer);
            }
            Action::RetractOffer { service } => {
                begin(kind::RETRACT_OFFER);
                writer.raw(service);
            }
        }
    }

    fn read(kind: u8, reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        if !(kind::TRANSFER..=kind::RETRACT_OFFER).contains(&kind) {
            return Err(CodecError::Tag {
                what: "transaction kind",
                tag: kind,
            });
        }
        let nonce = reader.u64("order nonce")?;
        let action = match kind {
            kind::TRANSFER => Action::Transfer {
                to: reader.address("transfer to")?,
                amount: reader.amount("transfer amount")?,
            },
            kind::FUND => Action::Fund {
                service: reader.hash("fund service")?,
                amount: reader.amount("fund amount")?,
                beneficiary: reader.address("fund beneficiary")?,
            },
            kind::WITHDRAW => Action::Withdraw {
                amount: reader.amount("withdraw amount")?,
            },
            kind::OPEN => Action::Open(Open {
                payee: reader.address("open payee")?,
                allocation: reader.amount("open allocation")?,
                signer: reader.key("open signer")?,
                close_window: reader.u32("open close_window")?,
                expiry: reader.u64("open expiry")?,
            }),
            kind::TOP_UP => Action::TopUp {
                channel: reader.channel("top_up channel")?,
                amount: reader.amount("top_up amount")?,
            },
            kind::REGISTER => Action::Register(Counterpart {
                name: reader.text(NAME_BYTES_MAX, "register name")?,
                genesis: reader.hash("register genesis")?,
                validators: reader.list(VALIDATORS_MAX, "register validators", |reader| {
                    reader.key("register validator")
                })?,
            }),
            kind::PUBLISH_OFFER => Action::PublishOffer(Offer::read(reader)?),
            kind::RETRACT_OFFER => Action::RetractOffer {
                service: reader.hash("retract_offer service")?,
            },
            tag => {
                return Err(CodecError::Tag {
                    what: "transaction kind",
                    tag,
                });
            }
        };
        Ok(Self { nonce, action })
    }
}

impl Recover {
    /// What the proof is about, in the service's state; `None` where main's own says it.
    pub fn subject(&self) -> Option<Key> {
        match &self.claim {
            Recovery::Begin { .. } | Recovery::Fund { .. } => None,
            Recovery::Account { account, .. } => Some(state::account_key(account)),
            Recovery::Channel { channel, .. } => Some(state::channel_key(channel)),
        }
    }

    fn write(&self, writer: &mut Writer) {
        writer.raw(self.service);
        match &self.claim {
            Recovery::Begin { link, totals } => writer.u8(0).bytes(link).bytes(totals),
            Recovery::Account { account, proof } => writer.u8(1).address(account).bytes(proof),
            Recovery::Channel { channel, proof } => writer.u8(2).raw(channel).bytes(proof),
            Recovery::Fund { seq } => writer.u8(3).u64(*seq),
        };
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        fn proof(reader: &mut Reader<'_>) -> Result<Vec<u8>, CodecError> {
            let proof = reader.bytes(STATE_PROOF_BYTES_MAX, "recover proof")?;
            Ok(proof.to_vec())
        }
        Ok(Self {
            service: reader.hash("recover service")?,
            claim: match reader.u8("recover kind")? {
                0 => Recovery::Begin {
                    link: proof(reader)?,
                    totals: proof(reader)?,
                },
                1 => Recovery::Account {
                    account: reader.address("recover account")?,
                    proof: proof(reader)?,
                },
                2 => Recovery::Channel {
                    channel: reader.channel("recover channel")?,
                    proof: proof(reader)?,
                },
                3 => Recovery::Fund {
                    seq: reader.u64("recover seq")?,
                },
                tag => {
                    return Err(CodecError::Tag {
                        what: "recover kind",
                        tag,
                    });
                }
            },
        })
    }
}

impl ClaimBody {
    /// The channel that the voucher is about.
    pub const fn channel(&self) -> ChannelId {
        self.claim.voucher.voucher.channel
    }

    fn write(&self, writer: &mut Writer) {
        writer.raw(self.signer).raw(self.claim.voucher.to_bytes());
        writer
            .u16(self.claim.index)
            .raw(self.claim.preimage)
            .raw(self.log_root);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let signer = reader.key("claim signer")?;
        let voucher = reader.slice(SIGNED_VOUCHER_BYTES, "claim voucher")?;
        let voucher =
            SignedVoucher::from_bytes(voucher).map_err(|_| CodecError::Range("claim voucher"))?;
        let index = reader.u16("claim index")?;
        if index > voucher.voucher.tokens {
            return Err(CodecError::Range("claim index"));
        }
        let preimage = reader.array("claim preimage")?;
        let claim = Claim {
            voucher,
            index,
            preimage,
        };
        Ok(Self {
            signer,
            claim,
            log_root: reader.hash("claim log_root")?,
        })
    }
}

impl<M> Sealed<M> {
    /// The account of the key that consents.
    pub fn account(&self) -> Address {
        Address::of(&self.key)
    }

    fn write_seal(&self, writer: &mut Writer) {
        writer.raw(self.key).raw(self.signature);
    }

    fn read(message: M, reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let key = reader.key("seal key")?;
        Ok(Self {
            message,
            key,
            signature: reader.signature("seal signature")?,
        })
    }
}
