//! A machine that adds, and chains that run it.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use topnet_account::{Address, Hash, PublicKey};
use topnet_chain::{Chain, ChainConfig, Validator, limits::MEMPOOL_TRANSACTIONS};
use topnet_channel::SecretKey;
use topnet_ledger::machine::{
    Admission, BlockEnv, Executed, Key, Machine, Missing, NONCES_AHEAD_MAX, Receipt, Rejection,
    Values,
};

pub const INTERVAL: Duration = Duration::from_millis(100);
/// What account 0 has before the first block.
pub const GENESIS_SUM: u64 = 1_000;

/// A transaction of [`Adder`]: adds `amount` to `account`'s sum, once per nonce, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Add {
    pub account: u8,
    pub nonce: u64,
    pub amount: u64,
}

impl Add {
    pub fn bytes(self) -> Vec<u8> {
        [
            &[self.account][..],
            &self.nonce.to_be_bytes(),
            &self.amount.to_be_bytes(),
        ]
        .concat()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (account, rest) = bytes.split_first()?;
        let (nonce, amount) = rest.split_at_checked(8)?;
        Some(Self {
            account: *account,
            nonce: u64::from_be_bytes(nonce.try_into().ok()?),
            amount: u64::from_be_bytes(amount.try_into().ok()?),
        })
    }

    fn id(self) -> Hash {
        let mut id = [0; 32];
        id[..17].copy_from_slice(&self.bytes());
        Hash(id)
    }
}

/// Keeps a sum and the next nonce per account, and the sum of all sums in its outbox.
#[derive(Clone, Debug, Default)]
pub struct Adder;

pub fn sum_key(account: u8) -> Key {
    Key(vec![b's', account])
}

fn total_key() -> Key {
    Key(vec![b't'])
}

/// (sum, next nonce) of a stored value.
pub fn decode(value: Option<&Vec<u8>>) -> (u64, u64) {
    let Some(bytes) = value else { return (0, 0) };
    let number = |range: std::ops::Range<usize>| {
        u64::from_be_bytes(bytes[range].try_into().expect("eight bytes"))
    };
    (number(0..8), number(8..16))
}

fn encode((sum, nonce): (u64, u64)) -> Vec<u8> {
    [sum.to_be_bytes(), nonce.to_be_bytes()].concat()
}

fn rejection(code: &'static str) -> Rejection {
    Rejection {
        code,
        text: String::new(),
    }
}

struct Execution<'a> {
    values: &'a Values,
    writes: BTreeMap<Key, Option<Vec<u8>>>,
}

impl Execution<'_> {
    fn get(&self, key: &Key) -> Result<(u64, u64), Missing> {
        if let Some(value) = self.writes.get(key) {
            return Ok(decode(value.as_ref()));
        }
        let value = self
            .values
            .get(key)
            .ok_or_else(|| Missing(vec![key.clone()]))?;
        Ok(decode(value.as_ref()))
    }

    fn apply(&mut self, add: Add) -> Result<Result<(), Rejection>, Missing> {
        let key = sum_key(add.account);
        let (sum, nonce) = self.get(&key)?;
        // Asked for late on purpose: execution has to run twice.
        let (total, _) = self.get(&total_key())?;
        match add.nonce.cmp(&nonce) {
            std::cmp::Ordering::Less => return Ok(Err(rejection("nonce_behind"))),
            std::cmp::Ordering::Greater => return Ok(Err(rejection("nonce_ahead"))),
            std::cmp::Ordering::Equal if add.amount == 0 => {
                return Ok(Err(rejection("amount_zero")));
            }
            std::cmp::Ordering::Equal => {}
        }
        self.writes
            .insert(key, Some(encode((sum + add.amount, nonce + 1))));
        self.writes
            .insert(total_key(), Some(encode((total + add.amount, 0))));
        Ok(Ok(()))
    }

    fn finish(self, env: &BlockEnv, included: Vec<Vec<u8>>) -> Result<Executed, Missing> {
        let (total, _) = self.get(&total_key())?;
        let mut outbox = [0; 32];
        outbox[..8].copy_from_slice(&total.to_be_bytes());
        let receipts = included
            .iter()
            .filter_map(|bytes| Add::parse(bytes))
            .map(|add| Receipt {
                id: add.id(),
                events: add.amount.to_be_bytes().to_vec(),
            })
            .collect();
        let block_events = match env.height % 10 {
            0 => env.height.to_be_bytes().to_vec(),
            _ => Vec::new(),
        };
        let writes = self.writes;
        let outbox = Hash(outbox);
        Ok(Executed {
            included,
            receipts,
            writes,
            outbox,
            block_events,
            ..Executed::default()
        })
    }
}

impl Machine for Adder {
    fn genesis(&self) -> BTreeMap<Key, Vec<u8>> {
        BTreeMap::from([
            (sum_key(0), encode((GENESIS_SUM, 0))),
            (total_key(), encode((GENESIS_SUM, 0))),
        ])
    }

    fn id(&self, transaction: &[u8]) -> Hash {
        Add::parse(transaction).map_or(Hash::ZERO, Add::id)
    }

    fn admit(&self, transaction: &[u8]) -> Result<Admission, Rejection> {
        let add = Add::parse(transaction).ok_or_else(|| rejection("malformed"))?;
        Ok(Admission {
            id: add.id(),
            sender: Some(Address([add.account; 32])),
            nonce: add.nonce,
            reads: Vec::new(),
        })
    }

    /// What comes too late or much too early may not wait. An amount of zero is refused only
    /// when it is executed.
    fn weigh(
        &self,
        height: u64,
        transaction: &[u8],
        values: &Values,
    ) -> Result<Result<u64, Rejection>, Missing> {
        assert!(height > 0, "there is no block before the first");
        let add = Add::parse(transaction).expect("admitted");
        let key = sum_key(add.account);
        let value = values.get(&key).ok_or_else(|| Missing(vec![key]))?;
        let (_, nonce) = decode(value.as_ref());
        Ok(match add.nonce.checked_sub(nonce) {
            None => Err(rejection("nonce_behind")),
            Some(NONCES_AHEAD_MAX..) => Err(rejection("nonce_ahead")),
            Some(_) => Ok(add.amount),
        })
    }

    fn signatures_hold(&self, _: &[Vec<u8>]) -> bool {
        true
    }

    fn reads(&self, _: &BlockEnv, transactions: &[Vec<u8>]) -> Vec<Key> {
        transactions
            .iter()
            .filter_map(|bytes| Add::parse(bytes))
            .map(|a| sum_key(a.account))
            .collect()
    }

    fn build(
        &self,
        env: &BlockEnv,
        candidates: Vec<Vec<u8>>,
        values: &Values,
    ) -> Result<Executed, Missing> {
        let mut execution = Execution {
            values,
            writes: BTreeMap::new(),
        };
        let (mut included, mut rejected) = (Vec::new(), Vec::new());
        for bytes in candidates {
            let add = Add::parse(&bytes).expect("admitted");
            match execution.apply(add)? {
                Ok(()) => included.push(bytes),
                Err(reason) => rejected.push((bytes, reason)),
            }
        }
        let executed = execution.finish(env, included)?;
        Ok(Executed {
            rejected,
            ..executed
        })
    }

    fn replay(
        &self,
        env: &BlockEnv,
        transactions: &[Vec<u8>],
        values: &Values,
    ) -> Result<Result<Executed, Rejection>, Missing> {
        let mut execution = Execution {
            values,
            writes: BTreeMap::new(),
        };
        for bytes in transactions {
            let Some(add) = Add::parse(bytes) else {
                return Ok(Err(rejection("malformed")));
            };
            if let Err(reason) = execution.apply(add)? {
                return Ok(Err(reason));
            }
        }
        execution.finish(env, transactions.to_vec()).map(Ok)
    }
}

pub fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

pub fn public_key(seed: u8) -> PublicKey {
    SecretKey::from_seed([seed; 32])
        .expect("any seed makes a key")
        .public_key()
}

/// A chain with one validator.
pub fn alone(name: &str, seed: u8) -> ChainConfig {
    ChainConfig {
        name: name.to_owned(),
        genesis: Hash([seed; 32]),
        validators: vec![Validator {
            key: public_key(seed),
            address: loopback(1),
        }],
        seed: [seed; 32],
        listen: loopback(0),
        block_interval: INTERVAL,
        mempool_transactions_max: MEMPOOL_TRANSACTIONS,
        halted: false,
    }
}

/// Submits until the transaction is final, as whoever needs it to be final does.
pub async fn settle(chain: &Chain, add: Add) {
    while sum(chain, add.account).await.1 <= add.nonce {
        if let Err(reason) = chain.submit(add.bytes()).await {
            // It has just become final.
            assert_eq!(reason.code, "nonce_behind");
        }
        let next = chain.tip().height() + 1;
        chain.reached(next).await.expect("the chain runs");
    }
}

/// (sum, next nonce) of an account in the final state.
pub async fn sum(chain: &Chain, account: u8) -> (u64, u64) {
    let key = sum_key(account);
    let view = chain.read(vec![key.clone()]).await.expect("the chain runs");
    decode(view.values[&key].as_ref())
}
