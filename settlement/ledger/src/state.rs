//! What a chain remembers: records, and the keys that they stand under.
//!
//! A key is a tag byte and an id, so each record is found without searching; nothing in the
//! ledger iterates over keys that it does not know. An absent account is an empty one.
//!
//! | tag | key | record | on |
//! |---|---|---|---|
//! | `a` | address | [`Account`] | both |
//! | `c` | channel id | [`Channel`] | service; main, of a dead one |
//! | `e` | service's genesis hash, address | [`Recovered`] | main |
//! | `f` | provider, service's genesis hash | [`PublishedOffer`] | main |
//! | `h` | – | [`Heads`]: where the outboxes stand | both |
//! | `l` | – | [`MainLink`]: what was taken from main | service |
//! | `n` | name | genesis hash of the service that has it | main |
//! | `o` | destination, number | an outbox entry, for relays | both |
//! | `p` | – | [`PayoutQueue`] | service |
//! | `q` | place in the queue | [`Address`] to be paid out | service |
//! | `s` | service's genesis hash | [`Service`] | main |
//! | `t` | – | [`Totals`](crate::conservation::Totals) | both |
//! | `w` | service's genesis hash, place | a [`Payout`](crate::outbox::Payout) that waits | main |

mod bytes;

use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey, StateSubject};

use crate::{
    codec::CodecError,
    genesis::{Counterpart, Role, Rules},
    machine::Key,
    offer::Offer,
    outbox::OutboxHead,
};

/// Length of a value of the state, at most: the largest is a full batch.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Length of a key of the state, at most.
pub const KEY_BYTES_MAX: usize = 1 + 32 + 32;

/// A value of the state.
pub trait Record: Sized {
    /// The record's one encoding.
    fn to_bytes(&self) -> Vec<u8>;

    /// Reads [`to_bytes`](Self::to_bytes).
    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError>;
}

/// An account's money on this chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Number of orders executed so far; the nonce of the next one.
    pub nonce: u64,
    /// All of its money here.
    pub balance: Amount,
    /// The part of the balance that the next batch takes home to main: payouts, refunds and
    /// withdrawals. It can be spent until then. Zero on main.
    pub homeward: Amount,
    /// True if the account stands in the payout queue.
    pub queued: bool,
}

/// A payment channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Who pays.
    pub payer: Address,
    /// Who is paid.
    pub payee: Address,
    /// Whose vouchers count.
    pub signer: PublicKey,
    /// The most that can be redeemed in all.
    pub allocation: Amount,
    /// Redeemed so far, fees included; never falls.
    pub paid: Amount,
    /// Set aside for closing without the payee; what is left of it returns to the payer.
    pub closing_fee: Amount,
    /// Blocks between a close by the payer and the deadline.
    pub close_window: u32,
    /// Height from which anybody may close.
    pub expiry: u64,
    /// Root over the channel's part of the service log, as its payee's close says; zero before.
    /// A claim's root is not taken over: whoever brings a claim can write what he likes there.
    pub log_root: Hash,
    /// Where in its life the channel is.
    pub state: ChannelState,
}

/// Where in its life a channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// It can be topped up, claimed and closed.
    Open,
    /// It can be claimed, closed by the payee and, above the deadline, finalised.
    Closing {
        /// The last height that keeps the channel from being finalised.
        deadline: u64,
    },
    /// Nothing can happen to it. The record stays as evidence of what was paid.
    Closed,
}

impl Channel {
    /// What can still be redeemed.
    pub fn remaining(&self) -> Amount {
        match self.state {
            ChannelState::Closed => Amount::ZERO,
            // `paid` never passes `allocation`.
            _ => self
                .allocation
                .checked_sub(self.paid)
                .unwrap_or(Amount::ZERO),
        }
    }

    /// The money that the channel holds.
    pub fn held(&self) -> u128 {
        u128::from(self.remaining().ntop()) + u128::from(self.closing_fee.ntop())
    }
}

/// What main knows of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// For people.
    pub name: String,
    /// Whose certificates prove its blocks.
    pub validators: Vec<PublicKey>,
    /// Who proved them before; empty until they change.
    pub previous_validators: Vec<PublicKey>,
    /// Money that is on the service: funded less accepted.
    pub escrow: Amount,
    /// All money ever locked for it.
    pub funded: u128,
    /// All money ever released by its batches, burn included.
    pub accepted: u128,
    /// How many of main's funds it has acknowledged.
    pub credited: u64,
    /// Where its outbox to main stands, as far as main has taken it: the number of the next
    /// batch and the root over those before.
    pub inbox: OutboxHead,
    /// Height of the newest block whose proof brought a batch.
    pub height: u64,
    /// State root of that block.
    pub state_root: Hash,
    /// Who registered it and has the deposit back; nobody if it stands in main's genesis.
    pub owner: Option<Address>,
    /// What the owner has locked.
    pub deposit: Amount,
    /// Main's height when it last brought a batch, or was registered.
    pub heard: u64,
    /// Payouts that wait for an epoch that has room for them.
    pub waiting: PayoutQueue,
    /// What they come to.
    pub waiting_amount: Amount,
    /// The epoch of main that paid out for it last, and how much.
    pub outflow: Outflow,
    /// What is known once somebody has begun to recover what is in it.
    pub recovery: Option<RecoveryBegun>,
}

/// What was paid out in one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outflow {
    /// Number of the epoch: height divided by the epoch's blocks.
    pub epoch: u64,
    /// How much.
    pub amount: Amount,
}

/// The state of recovering what is in a dead service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryBegun {
    /// How many of main's funds its last accepted state has credited; the others go back.
    pub credited: u64,
}

impl Service {
    /// A service that main, which is called `main`, hears of at `height`. Nobody has locked
    /// anything for it yet.
    pub fn registered(service: &Counterpart, main: &Hash, height: u64) -> Self {
        Self {
            name: service.name.clone(),
            validators: service.validators.clone(),
            previous_validators: Vec::new(),
            escrow: Amount::ZERO,
            funded: 0,
            accepted: 0,
            credited: 0,
            inbox: OutboxHead::empty(*main),
            height: 0,
            state_root: Hash::ZERO,
            owner: None,
            deposit: Amount::ZERO,
            heard: height,
            waiting: PayoutQueue::default(),
            waiting_amount: Amount::ZERO,
            outflow: Outflow::default(),
            recovery: None,
        }
    }

    /// The first height of main at which the service is dead, if it brings nothing until then.
    pub fn dead_from(&self, rules: &Rules) -> u64 {
        self.heard
            .saturating_add(rules.service_silence)
            .saturating_add(1)
    }

    /// True from then on, for good: a dead service's batches are refused, so nothing sets back
    /// its clock.
    pub fn is_dead(&self, rules: &Rules, height: u64) -> bool {
        height >= self.dead_from(rules)
    }

    /// The money that the record holds.
    pub fn held(&self) -> u128 {
        [self.escrow, self.deposit, self.waiting_amount]
            .iter()
            .map(|amount| u128::from(amount.ntop()))
            .sum()
    }
}

/// A provider's offer for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedOffer {
    /// What is offered.
    pub offer: Offer,
    /// What the provider has locked.
    pub deposit: Amount,
    /// Height of the block that published it last.
    pub height: u64,
}

/// What was recovered of an account of a dead service, so that it happens once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// How much, with the fee.
    pub amount: Amount,
}

/// Where a chain's outboxes stand, one per destination. Their hash is in every header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heads(pub Vec<OutboxHead>);

impl Heads {
    /// The outbox for `destination`.
    pub fn to(&self, destination: &Hash) -> Option<&OutboxHead> {
        self.0.iter().find(|head| head.destination == *destination)
    }
}

/// What a service knows of main.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MainLink {
    /// Whose certificates prove its blocks.
    pub validators: Vec<PublicKey>,
    /// Where main's outbox to this service stands, as far as it was credited.
    pub inbox: OutboxHead,
}

/// What waits stands under places `head..tail`: accounts for the next batch on a service, payouts
/// for the next epoch on main.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PayoutQueue {
    /// Place of the first that waits.
    pub head: u64,
    /// Place of the next to come.
    pub tail: u64,
}

/// Key of a subject on a chain of this role; `None` if such a chain keeps no such thing.
pub fn subject_key(subject: &StateSubject, role: &Role) -> Option<Key> {
    Some(match (subject, role) {
        (StateSubject::Account(address), _) => account_key(address),
        // Main has those of dead services.
        (StateSubject::Channel(id), _) => channel_key(id),
        (StateSubject::Batch(seq), Role::Service { main }) => outbox_entry_key(&main.genesis, *seq),
        (StateSubject::Service(id), Role::Main { .. }) => service_key(id),
        (StateSubject::Offer { provider, service }, Role::Main { .. }) => {
            offer_key(provider, service)
        }
        (StateSubject::Batch(_), Role::Main { .. })
        | (StateSubject::Service(_) | StateSubject::Offer { .. }, Role::Service { .. }) => {
            return None;
        }
    })
}

/// Key of an [`Account`].
pub fn account_key(address: &Address) -> Key {
    key(b'a', address.as_bytes())
}

/// Key of a [`Channel`].
pub fn channel_key(channel: &ChannelId) -> Key {
    key(b'c', channel.as_bytes())
}

/// Key of [`Heads`].
pub fn heads_key() -> Key {
    key(b'h', &[])
}

/// Key of [`MainLink`].
pub fn main_link_key() -> Key {
    key(b'l', &[])
}

/// Key of an outbox entry: a [`Fund`](crate::outbox::Fund) on main, a
/// [`Batch`](crate::outbox::Batch) on a service.
pub fn outbox_entry_key(destination: &Hash, seq: u64) -> Key {
    numbered(b'o', destination, seq)
}

/// Key of [`PayoutQueue`].
pub fn payout_queue_key() -> Key {
    key(b'p', &[])
}

/// Key of the address at a place of the payout queue.
pub fn queued_key(place: u64) -> Key {
    key(b'q', &place.to_be_bytes())
}

/// Key of the service's genesis hash that has a name.
pub fn name_key(name: &str) -> Key {
    key(b'n', name.as_bytes())
}

/// Key of what was [`Recovered`] of an account of a service.
pub fn recovered_key(service: &Hash, account: &Address) -> Key {
    paired(b'e', service.as_bytes(), account.as_bytes())
}

/// Key of a provider's [`PublishedOffer`] for a service.
pub fn offer_key(provider: &Address, service: &Hash) -> Key {
    paired(b'f', provider.as_bytes(), service.as_bytes())
}

/// Key of a payout that waits on main.
pub fn waiting_key(service: &Hash, place: u64) -> Key {
    numbered(b'w', service, place)
}

/// Key of a [`Service`].
pub fn service_key(genesis: &Hash) -> Key {
    key(b's', genesis.as_bytes())
}

/// Key of [`Totals`](crate::conservation::Totals).
pub fn totals_key() -> Key {
    key(b't', &[])
}

fn paired(tag: u8, one: &[u8; 32], other: &[u8; 32]) -> Key {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(one);
    bytes[32..].copy_from_slice(other);
    key(tag, &bytes)
}

fn numbered(tag: u8, id: &Hash, number: u64) -> Key {
    let mut bytes = [0; 40];
    bytes[..32].copy_from_slice(id.as_bytes());
    bytes[32..].copy_from_slice(&number.to_be_bytes());
    key(tag, &bytes)
}

fn key(tag: u8, id: &[u8]) -> Key {
    let mut bytes = Vec::with_capacity(1 + id.len());
    bytes.push(tag);
    bytes.extend_from_slice(id);
    Key(bytes)
}
