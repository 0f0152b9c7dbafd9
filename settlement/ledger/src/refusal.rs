//! Why a transaction cannot stand in a block.

use topnet_account::{Amount, Hash};

use crate::{codec::CodecError, machine::Rejection, outbox::ImportFault};

/// A rule that a transaction breaks. The codes are part of the interface; texts may change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("not a transaction: {0}")]
    Malformed(#[from] CodecError),
    #[error("made for chain {got}, this is {expected}: sign it for this chain")]
    OtherChain { expected: Hash, got: Hash },
    #[error("{what} belongs on {place}: submit it there")]
    OtherKindOfChain {
        what: &'static str,
        place: &'static str,
    },
    #[error("a signature is not its key's over these bytes: sign again")]
    SignatureFalse,
    #[error("order {got} was executed before: the account's next nonce is {expected}")]
    NonceBehind { expected: u64, got: u64 },
    #[error("order {got} waits for those before it: the account's next nonce is {expected}")]
    NonceAhead { expected: u64, got: u64 },
    #[error("there is no order {0}: the account has used all its numbers")]
    NonceLast(u64),
    #[error("needs {needs}, the balance is {has}: fund the account")]
    BalanceShort { needs: Amount, has: Amount },
    #[error("the amount is zero")]
    AmountZero,
    #[error("a sum exceeds what can be named")]
    Overflow,
    #[error("service {0} is not registered on this chain: check the id")]
    ServiceUnknown(Hash),
    #[error(
        "a service needs a name of 1 to 32 lower-case letters, digits and dashes that is not main's, its own genesis hash and 1 to 100 different validators"
    )]
    ServiceInvalid,
    #[error("the service is or was registered: make a chain with a genesis of its own")]
    ServiceKnown,
    #[error("service {0} has this name: take another")]
    NameTaken(Hash),
    #[error("main has as many services as it can have: one must end first")]
    ServicesFull,
    #[error(
        "an offer needs a price, the address of its payment endpoint and the URL of its RPC, in texts of at most 256 bytes without control characters"
    )]
    OfferInvalid,
    #[error("the account has no offer for this service")]
    OfferUnknown,
    #[error("service {0} has been silent for too long and is dead: recover what is in it")]
    ServiceDead(Hash),
    #[error(
        "the service is alive: what is in it can be recovered from height {from}, if it stays silent"
    )]
    ServiceAlive { from: u64 },
    #[error("the recovery has begun")]
    RecoveryBegun,
    #[error("the recovery has not begun: `begin` comes first")]
    RecoveryNotBegun,
    #[error("it was recovered before, or there never was such a thing")]
    Recovered,
    #[error("the service has credited the fund: its beneficiary's account can be recovered")]
    FundCredited,
    #[error("the proof does not show it in the service's last accepted state")]
    StateProofFalse,
    #[error("this block takes no more funds for the service: it may stand in the next one")]
    BlockFull,
    #[error("a fund must bring at least {0}: fund more at once")]
    FundSmall(Amount),
    #[error("{0} funds wait for the service to credit them: it may stand when the service has")]
    ServiceBehind(u64),
    #[error("the chain is not the one that funds this service")]
    SourceUnknown,
    #[error("brings what was taken before: the next number is {0}")]
    SequenceBehind(u64),
    #[error("brings what cannot follow yet: the next number is {0}")]
    SequenceAhead(u64),
    #[error("the proof does not show a final block of the chain's validators")]
    ProofFalse,
    #[error("the entries are not those that the proved block commits to")]
    OutboxOther,
    #[error("the batch releases {total}, the service's escrow is {escrow}")]
    EscrowShort { total: Amount, escrow: Amount },
    #[error("the batch acknowledges {got} funds; at least {least} and at most {most} are possible")]
    AcknowledgementFalse { got: u64, least: u64, most: u64 },
    #[error("there is no such channel on this chain")]
    ChannelUnknown,
    #[error("the channel exists already")]
    ChannelKnown,
    #[error("the channel is closed: nothing can happen to it")]
    ChannelClosed,
    #[error("the channel is closing: it can be claimed, closed by its payee and finalised")]
    ChannelClosing,
    #[error("the channel is open: close it first")]
    ChannelOpen,
    #[error("only the channel's payer may do this: sign with its key")]
    NotThePayer,
    #[error("only the channel's payee may do this: sign with its key")]
    NotThePayee,
    #[error("the voucher is not signed by the channel's signer key")]
    NotTheSigner,
    #[error("the claim is about another channel than the close")]
    ClaimOfOtherChannel,
    #[error("the token does not belong to the voucher at this index")]
    TokenFalse,
    #[error("nothing to pay: it was paid before, or comes to less than {0}")]
    NothingToPay(Amount),
    #[error("the allocation must be at least {0}")]
    AllocationSmall(Amount),
    #[error("the close window must be {min} to {max} blocks")]
    CloseWindow { min: u32, max: u32 },
    #[error("the expiry must be above this block's height, {0}")]
    ExpiryPast(u64),
    #[error("too early: possible from height {from}, this is {height}")]
    TooEarly { from: u64, height: u64 },
    #[error("what goes home must be more than dust ({0}): withdraw more")]
    Dust(Amount),
    #[error("it stands before a transaction of an earlier class")]
    ClassOrder,
    #[error("money would be made or lost: this is a defect of the ledger, report it")]
    Conservation,
}

impl Refusal {
    const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::OtherChain { .. } => "other_chain",
            Self::OtherKindOfChain { .. } => "other_kind_of_chain",
            Self::SignatureFalse => "signature_false",
            Self::NonceBehind { .. } => "nonce_behind",
            Self::NonceAhead { .. } => "nonce_ahead",
            Self::NonceLast(_) => "nonce_last",
            Self::BalanceShort { .. } => "balance_short",
            Self::AmountZero => "amount_zero",
            Self::Overflow => "overflow",
            Self::ServiceUnknown(_) => "service_unknown",
            Self::ServiceInvalid => "service_invalid",
            Self::ServiceKnown => "service_known",
            Self::NameTaken(_) => "name_taken",
            Self::ServicesFull => "services_full",
            Self::OfferInvalid => "offer_invalid",
            Self::OfferUnknown => "offer_unknown",
            Self::ServiceDead(_) => "service_dead",
            Self::ServiceAlive { .. } => "service_alive",
            Self::RecoveryBegun => "recovery_begun",
            Self::RecoveryNotBegun => "recovery_not_begun",
            Self::Recovered => "recovered",
            Self::FundCredited => "fund_credited",
            Self::StateProofFalse => "state_proof_false",
            Self::BlockFull => "block_full",
            Self::FundSmall(_) => "fund_small",
            Self::ServiceBehind(_) => "service_behind",
            Self::SourceUnknown => "source_unknown",
            Self::SequenceBehind(_) => "sequence_behind",
            Self::SequenceAhead(_) => "sequence_ahead",
            Self::ProofFalse => "proof_false",
            Self::OutboxOther => "outbox_other",
            Self::EscrowShort { .. } => "escrow_short",
            Self::AcknowledgementFalse { .. } => "acknowledgement_false",
            Self::ChannelUnknown => "channel_unknown",
            Self::ChannelKnown => "channel_known",
            Self::ChannelClosed => "channel_closed",
            Self::ChannelClosing => "channel_closing",
            Self::ChannelOpen => "channel_open",
            Self::NotThePayer => "not_the_payer",
            Self::NotThePayee => "not_the_payee",
            Self::NotTheSigner => "not_the_signer",
            Self::ClaimOfOtherChannel => "claim_of_other_channel",
            Self::TokenFalse => "token_false",
            Self::NothingToPay(_) => "nothing_to_pay",
            Self::AllocationSmall(_) => "allocation_small",
            Self::CloseWindow { .. } => "close_window",
            Self::ExpiryPast(_) => "expiry_past",
            Self::TooEarly { .. } => "too_early",
            Self::Dust(_) => "dust",
            Self::ClassOrder => "class_order",
            Self::Conservation => "conservation",
        }
    }

    /// What became of an import that should start at `next`.
    pub(crate) const fn of_import(fault: ImportFault, next: u64) -> Self {
        match fault {
            ImportFault::Behind => Self::SequenceBehind(next),
            ImportFault::Ahead => Self::SequenceAhead(next),
            ImportFault::Other => Self::OutboxOther,
        }
    }
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        Self {
            code: refusal.code(),
            text: refusal.to_string(),
        }
    }
}
