//! The product's ledger over a state that is larger than its transactions could make in the time
//! of a measurement. Accounts and channels are written by *fills*, which only this machine knows;
//! everything else is the ledger's.

use std::{collections::BTreeMap, sync::Arc};

use topnet_account::{Address, Hash};
use topnet_chain::EngineVerifier;
use topnet_ledger::{
    Ledger,
    conservation::{ServiceTotals, Totals},
    machine::{Admission, BlockEnv, Executed, Key, Machine, Missing, Receipt, Rejection, Values},
    state::{Record as _, account_key, channel_key, totals_key},
    transaction::transaction_id,
};

use super::parties::{ALLOCATION, BALANCE, CLOSING_FEE, Parties};

/// No version of a transaction.
const FILL: u8 = 0xf1;
const FILL_BYTES: usize = 17;
/// Records that one fill writes, at most.
pub const FILL_RECORDS_MAX: u64 = 50_000;

/// The ledger, and what it starts with.
#[derive(Clone)]
pub struct Loaded {
    pub ledger: Ledger<EngineVerifier>,
    pub parties: Arc<Parties>,
    pub accounts: u64,
    pub channels: u64,
}

/// Writes records `first..end` of all accounts and channels, the accounts first.
#[derive(Clone, Copy)]
struct Fill {
    first: u64,
    end: u64,
}

impl Fill {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![FILL];
        bytes.extend(self.first.to_be_bytes());
        bytes.extend(self.end.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Fill> {
        let number = |at: usize| {
            let bytes = bytes.get(at..at + 8)?;
            Some(u64::from_be_bytes(bytes.try_into().ok()?))
        };
        let is_fill = bytes.len() == FILL_BYTES && bytes[0] == FILL;
        is_fill.then_some(())?;
        Some(Fill {
            first: number(1)?,
            end: number(9)?,
        })
    }
}

impl Loaded {
    /// All fills, in their order.
    pub fn fills(&self) -> Vec<Vec<u8>> {
        let records = self.accounts + self.channels;
        (0..records)
            .step_by(FILL_RECORDS_MAX as usize)
            .map(|first| Fill {
                first,
                end: records.min(first + FILL_RECORDS_MAX),
            })
            .map(Fill::to_bytes)
            .collect()
    }

    fn record(&self, number: u64) -> (Key, Vec<u8>) {
        match number.checked_sub(self.accounts) {
            None => {
                let (address, account) = self.parties.account(number);
                (account_key(&address), account.to_bytes())
            }
            Some(number) => {
                let (id, channel) = self.parties.channel(number);
                (channel_key(&id), channel.to_bytes())
            }
        }
    }

    /// Executes a fill if it is the next one.
    fn fill(&self, executed: &mut Executed, bytes: &[u8], Fill { first, end }: Fill) {
        executed
            .writes
            .insert(filled_key(), Some(end.to_be_bytes().to_vec()));
        for number in first..end {
            let (key, value) = self.record(number);
            executed.writes.insert(key, Some(value));
        }
        executed.receipts.push(Receipt {
            id: transaction_id(bytes),
            events: Vec::new(),
        });
        executed.included.push(bytes.to_vec());
    }
}

fn filled_key() -> Key {
    Key(b"filled".to_vec())
}

/// Records that are written already.
fn filled(values: &Values) -> Result<u64, Missing> {
    let value = values
        .get(&filled_key())
        .ok_or_else(|| Missing(vec![filled_key()]))?;
    let bytes = value.as_deref().and_then(|bytes| bytes.try_into().ok());
    Ok(bytes.map_or(0, u64::from_be_bytes))
}

impl Machine for Loaded {
    /// The ledger's, with the totals that hold when all fills are done.
    fn genesis(&self) -> BTreeMap<Key, Vec<u8>> {
        let mut state = self.ledger.genesis();
        let in_all = |count: u64, each: u64| u128::from(count) * u128::from(each);
        let balances = in_all(self.accounts, BALANCE.ntop());
        let allocations = in_all(self.channels, ALLOCATION.ntop() + CLOSING_FEE.ntop());
        let totals = Totals::Service(ServiceTotals {
            credited: balances + allocations,
            balances,
            allocations,
            ..ServiceTotals::default()
        });
        state.insert(totals_key(), totals.to_bytes());
        state
    }

    fn id(&self, transaction: &[u8]) -> Hash {
        self.ledger.id(transaction)
    }

    fn admit(&self, bytes: &[u8]) -> Result<Admission, Rejection> {
        match Fill::from_bytes(bytes) {
            None => self.ledger.admit(bytes),
            Some(fill) => Ok(Admission {
                id: transaction_id(bytes),
                sender: Some(Address([FILL; 32])),
                nonce: fill.first,
                reads: Vec::new(),
            }),
        }
    }

    fn admit_many(&self, transactions: &[&[u8]]) -> Vec<Result<Admission, Rejection>> {
        if transactions
            .iter()
            .all(|bytes| Fill::from_bytes(bytes).is_none())
        {
            return self.ledger.admit_many(transactions);
        }
        transactions.iter().map(|bytes| self.admit(bytes)).collect()
    }

    fn weigh(
        &self,
        height: u64,
        bytes: &[u8],
        values: &Values,
    ) -> Result<Result<u64, Rejection>, Missing> {
        match Fill::from_bytes(bytes) {
            None => self.ledger.weigh(height, bytes, values),
            Some(_) => Ok(Ok(u64::MAX)),
        }
    }

    fn signatures_hold(&self, transactions: &[Vec<u8>]) -> bool {
        let sealed: Vec<Vec<u8>> = transactions
            .iter()
            .filter(|bytes| Fill::from_bytes(bytes).is_none())
            .cloned()
            .collect();
        self.ledger.signatures_hold(&sealed)
    }

    fn reads(&self, env: &BlockEnv, transactions: &[Vec<u8>]) -> Vec<Key> {
        let mut keys = self.ledger.reads(env, transactions);
        keys.push(filled_key());
        keys
    }

    /// The first fill alone, if there is one.
    fn build(
        &self,
        env: &BlockEnv,
        candidates: Vec<Vec<u8>>,
        values: &Values,
    ) -> Result<Executed, Missing> {
        let first = candidates
            .iter()
            .filter_map(|bytes| Some((Fill::from_bytes(bytes)?, bytes)))
            .min_by_key(|(fill, _)| fill.first);
        let Some((fill, bytes)) = first else {
            return self.ledger.build(env, candidates, values);
        };
        let mut executed = self.ledger.build(env, Vec::new(), values)?;
        // It waits in the mempool until the block that has it is final.
        if fill.first == filled(values)? {
            self.fill(&mut executed, bytes, fill);
        }
        Ok(executed)
    }

    fn replay(
        &self,
        env: &BlockEnv,
        transactions: &[Vec<u8>],
        values: &Values,
    ) -> Result<Result<Executed, Rejection>, Missing> {
        let [bytes] = transactions else {
            return self.ledger.replay(env, transactions, values);
        };
        let Some(fill) = Fill::from_bytes(bytes) else {
            return self.ledger.replay(env, transactions, values);
        };
        let replayed = self.ledger.replay(env, &[], values)?;
        Ok(replayed.map(|mut executed| {
            self.fill(&mut executed, bytes, fill);
            executed
        }))
    }
}
