//! Executes a block: one [`Step`] per transaction and one for what the block does by itself.
//! A step sees the state through what was written before it, collects its own writes, and
//! either happens whole or not at all.

mod channel;
mod epoch;
mod import;
mod offer;
mod order;
mod outflow;
mod recover;
mod step;
mod weigh;

use std::collections::BTreeSet;

use topnet_account::{Amount, Hash, PublicKey};
use topnet_channel::Claim;

pub(crate) use self::{
    step::{Step, Stop},
    weigh::weigh,
};
use crate::{
    event::encode_events,
    genesis::{Genesis, Role},
    machine::{BlockEnv, Executed, FinalHeader, Key, Missing, Receipt, Rejection, Values},
    outbox::commitment,
    refusal::Refusal,
    state::{self, Heads},
    transaction::{Action, Body, Recovery, Transaction, transaction_id},
};

/// Finds the header that a proof shows to be final; see
/// [`Verifier::final_header`](crate::machine::Verifier::final_header).
pub(crate) type Prove<'a> = &'a dyn Fn(&Hash, &[PublicKey], &[u8]) -> Option<FinalHeader>;

/// Finds the value that a proof shows; see
/// [`Verifier::state_value`](crate::machine::Verifier::state_value).
pub(crate) type StateValue<'a> = &'a dyn Fn(&Hash, &Key, &[u8]) -> Option<Vec<u8>>;

/// What does not change while a block is executed.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) genesis: &'a Genesis,
    pub(crate) chain: &'a Hash,
    pub(crate) env: &'a BlockEnv,
    pub(crate) prove: Prove<'a>,
    /// Takes a state root, a key and a proof.
    pub(crate) state_value: StateValue<'a>,
    /// What a claim is worth in all, if its token is its voucher's.
    pub(crate) worth: &'a dyn Fn(&Claim) -> Option<Amount>,
    /// The state before the block.
    pub(crate) values: &'a Values,
}

/// A block in the making.
pub(crate) struct Block<'a> {
    context: Context<'a>,
    writes: Values,
    missing: BTreeSet<Key>,
    executed: Executed,
}

impl<'a> Block<'a> {
    pub(crate) fn new(context: Context<'a>) -> Self {
        Self {
            context,
            writes: Values::new(),
            missing: BTreeSet::new(),
            executed: Executed::default(),
        }
    }

    /// Executes a transaction if it can stand here. Where only values are missing, nothing
    /// happens and execution goes on, to find out what else is missing.
    ///
    /// A proposer leaves out (`skip_idle`) what may stand but changes nothing.
    pub(crate) fn transact(
        &mut self,
        transaction: &Transaction,
        bytes: &[u8],
        skip_idle: bool,
    ) -> Result<(), Refusal> {
        let mut step = Step::new(&self.context, &self.writes);
        let outcome = transact(&mut step, transaction)
            .and_then(|()| match step.idle_below() {
                Some(payout_min) if skip_idle => Err(Refusal::NothingToPay(payout_min).into()),
                _ => Ok(()),
            })
            .and_then(|()| step.finish());
        match outcome {
            Ok((writes, events)) => {
                self.writes.extend(writes);
                let events = encode_events(&events);
                self.executed.receipts.push(Receipt {
                    id: transaction_id(bytes),
                    events,
                });
                self.executed.included.push(bytes.to_vec());
                Ok(())
            }
            Err(Stop::Missing(keys)) => {
                self.missing.extend(keys);
                Ok(())
            }
            Err(Stop::Refused(refusal)) => Err(refusal),
        }
    }

    /// Notes why a candidate was left out.
    pub(crate) fn reject(&mut self, bytes: Vec<u8>, rejection: Rejection) {
        self.executed.rejected.push((bytes, rejection));
    }

    /// True if the outcome so far is only a guess, because values are missing.
    pub(crate) fn is_guess(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Does what the block does by itself and gives the whole.
    ///
    /// # Panics
    ///
    /// If that breaks a rule: then the ledger itself is wrong, and stopping here is what keeps
    /// money from being made.
    pub(crate) fn finish(mut self) -> Result<Executed, Missing> {
        let mut step = Step::new(&self.context, &self.writes);
        let outcome = epoch::end_block(&mut step).and_then(|heads| {
            let (writes, events) = step.finish()?;
            Ok((heads, writes, events))
        });
        match outcome {
            Ok((heads, writes, events)) => {
                self.writes.extend(writes);
                self.executed.block_events = encode_events(&events);
                self.executed.outbox = commitment(&heads.0);
            }
            Err(Stop::Missing(keys)) => self.missing.extend(keys),
            Err(Stop::Refused(_)) if self.is_guess() => {}
            Err(Stop::Refused(refusal)) => {
                panic!(
                    "the end of block {} broke a rule: {refusal}",
                    self.context.env.height
                )
            }
        }
        if self.is_guess() {
            return Err(Missing(self.missing.into_iter().collect()));
        }
        self.executed.writes = self.writes.into_iter().collect();
        Ok(self.executed)
    }
}

fn transact(step: &mut Step<'_>, transaction: &Transaction) -> Result<(), Stop> {
    check_place(step.context().genesis, step.context().chain, transaction)?;
    match &transaction.body {
        Body::Credit(import) => import::credit(step, import),
        Body::Batch(import) => import::batch(step, import),
        Body::Recover(recover) => recover::recover(step, recover),
        Body::Order(order) => order::execute(step, order),
        Body::Claim(claim) => channel::claim(step, claim),
        Body::CloseByPayee(close) => channel::close_by_payee(step, close),
        Body::CloseByPayer(close) => channel::close_by_payer(step, close),
        Body::Expire(channel) => channel::expire(step, channel),
        Body::Finalise(channel) => channel::finalise(step, channel),
    }
}

/// Checks that the transaction was made for this chain and for its kind.
pub(crate) fn check_place(
    genesis: &Genesis,
    chain: &Hash,
    transaction: &Transaction,
) -> Result<(), Refusal> {
    if transaction.chain != *chain {
        return Err(Refusal::OtherChain {
            expected: *chain,
            got: transaction.chain,
        });
    }
    let (what, on_main) = match &transaction.body {
        Body::Batch(_) => ("a batch", true),
        Body::Recover(_) => ("recovering", true),
        Body::Credit(_) => ("a credit", false),
        // Main has the channels of dead services, and they are closing.
        Body::Claim(_) | Body::CloseByPayee(_) | Body::Finalise(_) => return Ok(()),
        Body::CloseByPayer(_) => ("a close", false),
        Body::Expire(_) => ("an expiry", false),
        Body::Order(order) => match order.message.action {
            Action::Transfer { .. } => return Ok(()),
            Action::Register(_) => ("registering a service", true),
            Action::PublishOffer(_) | Action::RetractOffer { .. } => ("an offer", true),
            Action::Fund { .. } => ("funding a service", true),
            Action::Withdraw { .. } => ("withdrawing", false),
            Action::Open(_) | Action::TopUp { .. } => ("a channel", false),
        },
    };
    match (on_main, &genesis.role) {
        (true, Role::Main { .. }) | (false, Role::Service { .. }) => Ok(()),
        (true, Role::Service { .. }) => Err(Refusal::OtherKindOfChain {
            what,
            place: "the main chain",
        }),
        (false, Role::Main { .. }) => Err(Refusal::OtherKindOfChain {
            what,
            place: "a service chain",
        }),
    }
}

/// Keys that a block with these transactions surely needs.
pub(crate) fn known_reads<'a>(
    genesis: &Genesis,
    env: &BlockEnv,
    transactions: impl IntoIterator<Item = &'a Transaction>,
) -> Vec<Key> {
    let mut keys = BTreeSet::from([
        state::totals_key(),
        state::heads_key(),
        state::account_key(&env.proposer),
    ]);
    if let Role::Service { .. } = genesis.role {
        keys.extend([state::main_link_key(), state::payout_queue_key()]);
    }
    for transaction in transactions {
        keys.extend(own_reads(transaction));
    }
    keys.into_iter().collect()
}

/// Keys that a block surely needs for the sake of this transaction.
pub(crate) fn own_reads(transaction: &Transaction) -> Vec<Key> {
    match &transaction.body {
        Body::Credit(import) => {
            let entries = import.entries.iter();
            entries
                .map(|fund| state::account_key(&fund.beneficiary))
                .collect()
        }
        Body::Batch(import) => {
            let payouts = import.entries.iter().flat_map(|batch| &batch.payouts);
            let accounts = payouts.map(|payout| state::account_key(&payout.account));
            std::iter::once(state::service_key(&import.source))
                .chain(accounts)
                .collect()
        }
        Body::Recover(recover) => {
            let service = recover.service;
            let own = match &recover.claim {
                Recovery::Begin { .. } => None,
                Recovery::Account { account, .. } => Some(state::recovered_key(&service, account)),
                Recovery::Channel { channel, .. } => Some(state::channel_key(channel)),
                Recovery::Fund { seq } => Some(state::outbox_entry_key(&service, *seq)),
            };
            std::iter::once(state::service_key(&service))
                .chain(own)
                .collect()
        }
        Body::Order(order) => {
            let sender = order.account();
            let other = match &order.message.action {
                Action::Transfer { to, .. } => Some(state::account_key(to)),
                Action::Fund { service, .. } => Some(state::service_key(service)),
                Action::Register(service) => Some(state::service_key(&service.genesis)),
                Action::PublishOffer(offer) => Some(state::service_key(&offer.service)),
                Action::RetractOffer { service } => Some(state::offer_key(&sender, service)),
                Action::Withdraw { .. } => None,
                Action::Open(open) => {
                    let nonce = order.message.nonce;
                    let chain = &transaction.chain;
                    Some(order::channel_key(chain, &sender, open, nonce))
                }
                Action::TopUp { channel, .. } => Some(state::channel_key(channel)),
            };
            std::iter::once(state::account_key(&sender))
                .chain(other)
                .collect()
        }
        Body::Claim(claim) => vec![state::channel_key(&claim.channel())],
        Body::CloseByPayee(close) => vec![
            state::channel_key(&close.message.channel),
            state::account_key(&close.account()),
        ],
        Body::CloseByPayer(close) => vec![state::channel_key(&close.message.channel)],
        Body::Expire(channel) | Body::Finalise(channel) => vec![state::channel_key(channel)],
    }
}

/// The outboxes as they stand; there is always such a record.
pub(crate) fn heads(step: &Step<'_>) -> Result<Heads, Stop> {
    step.demand(&state::heads_key())
}
