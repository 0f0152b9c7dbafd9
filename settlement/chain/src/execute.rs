//! One block's execution over the state on disk: the same for a validator and for whoever makes a
//! past state anew.

use std::collections::BTreeMap;

use topnet_ledger::machine::{BlockEnv, Executed, Key, Missing, Rejection, Values};

use crate::{
    machine::AnyMachine,
    state::{self, Batch, SealedBatch},
};

/// Executes with more and more values until the machine lacks none. Before the first block the
/// state is the machine's genesis, which is not on disk yet.
pub(crate) async fn execute<T>(
    batch: &Batch,
    env: &BlockEnv,
    genesis: &BTreeMap<Key, Vec<u8>>,
    reads: Vec<Key>,
    mut step: impl FnMut(&Values) -> Result<T, Missing> + Send,
) -> T {
    let mut values = Values::new();
    if env.height == 1 {
        let genesis = genesis.iter();
        values.extend(genesis.map(|(key, value)| (key.clone(), Some(value.clone()))));
    }
    state::load(batch, reads, &mut values).await;
    loop {
        let known = values.len();
        match step(&values) {
            Ok(result) => return result,
            Err(Missing(keys)) => state::load(batch, keys, &mut values).await,
        }
        assert!(
            values.len() > known,
            "a machine asks only for keys that it was not given"
        );
    }
}

/// Executes the transactions of a block that somebody built.
pub(crate) async fn replay(
    machine: &dyn AnyMachine,
    batch: &Batch,
    env: &BlockEnv,
    genesis: &BTreeMap<Key, Vec<u8>>,
    transactions: &[Vec<u8>],
) -> Result<Executed, Rejection> {
    let reads = machine.reads(env, transactions);
    execute(batch, env, genesis, reads, |values| {
        machine.replay(env, transactions, values)
    })
    .await
}

/// Takes a block's writes and applies them, the genesis state's with those of the first block.
pub(crate) async fn seal(
    batch: Batch,
    height: u64,
    genesis: &BTreeMap<Key, Vec<u8>>,
    executed: &mut Executed,
) -> SealedBatch {
    let mut writes = std::mem::take(&mut executed.writes);
    if height == 1 {
        for (key, value) in genesis {
            writes
                .entry(key.clone())
                .or_insert_with(|| Some(value.clone()));
        }
        // What the first block deletes of the genesis state never was on disk.
        writes.retain(|_, value| value.is_some());
    }
    state::seal(batch, height, writes).await
}
