//! One indivisible change of the state, and the moves of money that changes are made of.

use std::collections::BTreeMap;

use topnet_account::{Address, Amount, ChannelId};

use super::Context;
use crate::{
    conservation::{Moved, Totals},
    event::Event,
    genesis::Role,
    machine::{Key, Values},
    refusal::Refusal,
    state::{self, Account, Channel, PayoutQueue, Record},
};

/// Why a step does not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The values of these keys were not given.
    Missing(Vec<Key>),
    /// A rule forbids it.
    Refused(Refusal),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

type Writes = BTreeMap<Key, Option<Vec<u8>>>;

/// A change in the making. Drop it and nothing has happened.
pub(crate) struct Step<'a> {
    context: &'a Context<'a>,
    /// What the block wrote before this step.
    before: &'a Values,
    writes: Writes,
    events: Vec<Event>,
    idle_below: Option<Amount>,
}

impl<'a> Step<'a> {
    pub(crate) fn new(context: &'a Context<'a>, before: &'a Values) -> Self {
        Self {
            context,
            before,
            writes: Writes::new(),
            events: Vec::new(),
            idle_below: None,
        }
    }

    pub(crate) fn context(&self) -> &'a Context<'a> {
        self.context
    }

    pub(crate) fn height(&self) -> u64 {
        self.context.env.height
    }

    /// The record under `key`, if there is one.
    ///
    /// # Panics
    ///
    /// If the value is damaged. The database is then not the chain's state, and going on would
    /// be guessing about money.
    pub(crate) fn read<R: Record>(&self, key: &Key) -> Result<Option<R>, Stop> {
        let bytes = match self.writes.get(key) {
            Some(written) => written.as_deref(),
            None => self.below(key)?,
        };
        Ok(bytes.map(|bytes| decode(key, bytes)))
    }

    /// The record under `key`, which every chain of this kind has from its genesis on.
    ///
    /// # Panics
    ///
    /// If there is none, for the same reason as in [`read`](Self::read).
    pub(crate) fn demand<R: Record>(&self, key: &Key) -> Result<R, Stop> {
        let record = self.read(key)?;
        Ok(record.unwrap_or_else(|| panic!("the state has nothing under {key:?}; rebuild it")))
    }

    /// The record under `key` before the block.
    pub(crate) fn read_before_block<R: Record>(&self, key: &Key) -> Result<Option<R>, Stop> {
        match self.context.values.get(key) {
            Some(value) => Ok(value.as_deref().map(|bytes| decode(key, bytes))),
            None => Err(Stop::Missing(vec![key.clone()])),
        }
    }

    /// Makes sure that all these keys can be read, or asks for all that cannot at once.
    pub(crate) fn need(&self, keys: impl IntoIterator<Item = Key>) -> Result<(), Stop> {
        let known = |key: &Key| self.writes.contains_key(key) || self.below(key).is_ok();
        let missing: Vec<Key> = keys.into_iter().filter(|key| !known(key)).collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(Stop::Missing(missing))
        }
    }

    pub(crate) fn write(&mut self, key: Key, record: &impl Record) {
        self.write_bytes(key, record.to_bytes());
    }

    pub(crate) fn write_bytes(&mut self, key: Key, bytes: Vec<u8>) {
        self.writes.insert(key, Some(bytes));
    }

    pub(crate) fn delete(&mut self, key: Key) {
        self.writes.insert(key, None);
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Notes that the step stands but changes nothing, because less than `payout_min` would be
    /// paid.
    pub(crate) fn idle(&mut self, payout_min: Amount) {
        self.idle_below = Some(payout_min);
    }

    pub(crate) fn idle_below(&self) -> Option<Amount> {
        self.idle_below
    }

    /// Works out what each place gained or lost and checks that every nTOP is accounted for.
    pub(crate) fn finish(mut self) -> Result<(Writes, Vec<Event>), Stop> {
        let mut moved = Moved::default();
        for (key, new) in &self.writes {
            // What is written without being read first holds no money.
            let old = self.below(key).unwrap_or_default();
            moved
                .note(key, old, new.as_deref())
                .map_err(|_| Refusal::Conservation)?;
        }
        let totals = self.totals()?.moved(&moved).filter(Totals::hold);
        let Some(totals) = totals else {
            return Err(Refusal::Conservation.into());
        };
        self.write(state::totals_key(), &totals);
        // What is as it was need not be written.
        self.writes = std::mem::take(&mut self.writes)
            .into_iter()
            .filter(|(key, new)| self.below(key).ok() != Some(new.as_deref()))
            .collect();
        Ok((self.writes, self.events))
    }

    fn below(&self, key: &Key) -> Result<Option<&'a [u8]>, Stop> {
        let value = self
            .before
            .get(key)
            .or_else(|| self.context.values.get(key));
        match value {
            Some(value) => Ok(value.as_deref()),
            None => Err(Stop::Missing(vec![key.clone()])),
        }
    }

    pub(crate) fn account(&self, address: &Address) -> Result<Account, Stop> {
        Ok(self.read(&state::account_key(address))?.unwrap_or_default())
    }

    pub(crate) fn write_account(&mut self, address: &Address, account: &Account) {
        let key = state::account_key(address);
        if *account == Account::default() {
            self.delete(key);
        } else {
            self.write(key, account);
        }
    }

    pub(crate) fn channel(&self, channel: &ChannelId) -> Result<Channel, Stop> {
        self.read(&state::channel_key(channel))?
            .ok_or(Refusal::ChannelUnknown.into())
    }

    pub(crate) fn totals(&self) -> Result<Totals, Stop> {
        self.demand(&state::totals_key())
    }

    /// Takes money off an account; what is marked to go home goes last.
    pub(crate) fn spend(&mut self, address: &Address, amount: Amount) -> Result<(), Stop> {
        let mut account = self.account(address)?;
        let Some(balance) = account.balance.checked_sub(amount) else {
            return Err(Refusal::BalanceShort {
                needs: amount,
                has: account.balance,
            }
            .into());
        };
        account.balance = balance;
        account.homeward = account.homeward.min(balance);
        self.write_account(address, &account);
        Ok(())
    }

    /// Puts money on an account, to stay.
    pub(crate) fn receive(&mut self, address: &Address, amount: Amount) -> Result<(), Stop> {
        let mut account = self.account(address)?;
        account.balance = plus(account.balance, amount)?;
        self.write_account(address, &account);
        Ok(())
    }

    /// Puts a payout or refund on an account; on a service, on its way home to main.
    pub(crate) fn settle(&mut self, address: &Address, amount: Amount) -> Result<(), Stop> {
        if amount.is_zero() {
            return Ok(());
        }
        self.receive(address, amount)?;
        if let Role::Service { .. } = self.context.genesis.role {
            self.mark_homeward(address, amount)?;
        }
        Ok(())
    }

    /// Marks `amount` more of an account's balance to go home, and queues the account once that
    /// is more than dust. Gives all that is marked.
    pub(crate) fn mark_homeward(
        &mut self,
        address: &Address,
        amount: Amount,
    ) -> Result<Amount, Stop> {
        let mut account = self.account(address)?;
        account.homeward = plus(account.homeward, amount)?;
        if account.homeward > account.balance {
            let (needs, has) = (account.homeward, account.balance);
            return Err(Refusal::BalanceShort { needs, has }.into());
        }
        if !account.queued && account.homeward > self.context.genesis.rules.dust {
            let mut queue: PayoutQueue = self.demand(&state::payout_queue_key())?;
            self.write(state::queued_key(queue.tail), address);
            queue.tail = queue.tail.checked_add(1).ok_or(Refusal::Overflow)?;
            self.write(state::payout_queue_key(), &queue);
            account.queued = true;
        }
        self.write_account(address, &account);
        Ok(account.homeward)
    }

    /// Spends a fee that was taken from somewhere: half of it, rounded down, is burned, the
    /// proposer has the rest.
    pub(crate) fn charge(&mut self, fee: Amount) -> Result<(), Stop> {
        if fee.is_zero() {
            return Ok(());
        }
        let burn = Amount::from_ntop(fee.ntop() / 2);
        self.burn(burn)?;
        let proposer = self.context.env.proposer;
        self.receive(&proposer, minus(fee, burn)?)
    }

    /// Takes money that has left its place out of the world: at once on main, with the next
    /// batch on a service.
    pub(crate) fn burn(&mut self, amount: Amount) -> Result<(), Stop> {
        let mut totals = self.totals()?;
        let burned = match &mut totals {
            Totals::Main(totals) => &mut totals.burned,
            Totals::Service(totals) => &mut totals.burn,
        };
        *burned = burned
            .checked_add(amount.ntop().into())
            .ok_or(Refusal::Overflow)?;
        self.write(state::totals_key(), &totals);
        Ok(())
    }
}

/// The sum, or a refusal.
pub(crate) fn plus(a: Amount, b: Amount) -> Result<Amount, Refusal> {
    a.checked_add(b).ok_or(Refusal::Overflow)
}

/// The difference, or a refusal.
pub(crate) fn minus(a: Amount, b: Amount) -> Result<Amount, Refusal> {
    a.checked_sub(b).ok_or(Refusal::Overflow)
}

fn decode<R: Record>(key: &Key, bytes: &[u8]) -> R {
    R::from_bytes(bytes).unwrap_or_else(|error| {
        panic!("the state is damaged under {key:?}: {error}; rebuild it from the chain")
    })
}

#[cfg(test)]
mod tests {
    use topnet_account::Hash;

    use super::*;
    use crate::{
        conservation::ServiceTotals,
        genesis::{Counterpart, Genesis, Role, Rules},
        machine::BlockEnv,
    };

    /// The last defence: a rule that made or lost money would not get past the end of its step.
    #[test]
    fn a_step_that_makes_or_loses_money_does_not_happen() {
        let genesis = Genesis {
            name: "vpn".to_owned(),
            salt: Hash::ZERO,
            block_interval_ms: 1,
            epoch_blocks: 1,
            validators: Vec::new(),
            rules: Rules::default(),
            role: Role::Service {
                main: Counterpart {
                    name: "main".to_owned(),
                    genesis: Hash::ZERO,
                    validators: Vec::new(),
                },
            },
            balances: BTreeMap::new(),
        };
        let (rich, poor) = (Address([1; 32]), Address([2; 32]));
        let ten = Amount::from_ntop(10);
        let account = Account {
            balance: ten,
            ..Account::default()
        };
        let totals = Totals::Service(ServiceTotals {
            credited: 10,
            balances: 10,
            ..ServiceTotals::default()
        });
        let values = Values::from([
            (state::account_key(&rich), Some(account.to_bytes())),
            (state::account_key(&poor), None),
            (state::totals_key(), Some(totals.to_bytes())),
        ]);
        let context = Context {
            genesis: &genesis,
            chain: &Hash::ZERO,
            env: &BlockEnv {
                chain: Hash::ZERO,
                height: 1,
                proposer: poor,
            },
            prove: &|_, _, _| None,
            state_value: &|_, _, _| None,
            worth: &|_| None,
            values: &values,
        };
        type Moves = fn(&mut Step<'_>, Address, Address, Amount) -> Result<(), Stop>;
        let cases: [(&str, Moves, bool); 5] = [
            ("nothing", |_, _, _, _| Ok(()), true),
            (
                "move",
                |step, rich, poor, ten| {
                    step.spend(&rich, ten)?;
                    step.receive(&poor, ten)
                },
                true,
            ),
            (
                "spend as a fee",
                |step, rich, _, ten| {
                    step.spend(&rich, ten)?;
                    step.charge(ten)
                },
                true,
            ),
            ("make", |step, _, poor, ten| step.receive(&poor, ten), false),
            ("lose", |step, rich, _, ten| step.spend(&rich, ten), false),
        ];
        for (name, moves, stands) in cases {
            let before = Values::new();
            let mut step = Step::new(&context, &before);
            moves(&mut step, rich, poor, ten).unwrap();
            match step.finish() {
                Ok(_) => assert!(stands, "{name}"),
                Err(stop) => {
                    assert!(!stands, "{name}");
                    assert_eq!(stop, Stop::Refused(Refusal::Conservation));
                }
            }
        }
    }
}
