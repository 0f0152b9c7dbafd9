//! A machine whose type is forgotten, so that the engine is compiled once for all machines.

use std::collections::BTreeMap;

use topnet_account::Hash;
use topnet_ledger::machine::{
    Admission, BlockEnv, Executed, Key, Machine, Missing, Rejection, Values,
};

/// [`Machine`] behind a pointer; the methods are the same.
pub(crate) trait AnyMachine: Send + Sync {
    fn genesis(&self) -> BTreeMap<Key, Vec<u8>>;
    fn id(&self, transaction: &[u8]) -> Hash;
    fn admit_many(&self, transactions: &[&[u8]]) -> Vec<Result<Admission, Rejection>>;
    fn weigh(
        &self,
        height: u64,
        transaction: &[u8],
        values: &Values,
    ) -> Result<Result<u64, Rejection>, Missing>;
    fn signatures_hold(&self, transactions: &[Vec<u8>]) -> bool;
    fn reads(&self, env: &BlockEnv, transactions: &[Vec<u8>]) -> Vec<Key>;
    fn build(
        &self,
        env: &BlockEnv,
        candidates: Vec<Vec<u8>>,
        values: &Values,
    ) -> Result<Executed, Missing>;
    fn replay(
        &self,
        env: &BlockEnv,
        transactions: &[Vec<u8>],
        values: &Values,
    ) -> Result<Result<Executed, Rejection>, Missing>;
}

impl<M: Machine> AnyMachine for M {
    fn genesis(&self) -> BTreeMap<Key, Vec<u8>> {
        Machine::genesis(self)
    }

    fn id(&self, transaction: &[u8]) -> Hash {
        Machine::id(self, transaction)
    }

    fn admit_many(&self, transactions: &[&[u8]]) -> Vec<Result<Admission, Rejection>> {
        Machine::admit_many(self, transactions)
    }

    fn weigh(
        &self,
        height: u64,
        transaction: &[u8],
        values: &Values,
    ) -> Result<Result<u64, Rejection>, Missing> {
        Machine::weigh(self, height, transaction, values)
    }

    fn signatures_hold(&self, transactions: &[Vec<u8>]) -> bool {
        Machine::signatures_hold(self, transactions)
    }

    fn reads(&self, env: &BlockEnv, transactions: &[Vec<u8>]) -> Vec<Key> {
        Machine::reads(self, env, transactions)
    }

    fn build(
        &self,
        env: &BlockEnv,
        candidates: Vec<Vec<u8>>,
        values: &Values,
    ) -> Result<Executed, Missing> {
        Machine::build(self, env, candidates, values)
    }

    fn replay(
        &self,
        env: &BlockEnv,
        transactions: &[Vec<u8>],
        values: &Values,
    ) -> Result<Result<Executed, Rejection>, Missing> {
        Machine::replay(self, env, transactions, values)
    }
}
