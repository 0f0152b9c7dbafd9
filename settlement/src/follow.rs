//! Follows a chain's final blocks into the index.

use tokio::sync::watch;
use topnet_api::ChainName;
use topnet_chain::Chain;

use crate::{index::Index, start::TaskError};

/// Takes in every final block from where the index stands, for good. `indexed` tells how far
/// it has come.
pub(crate) async fn follow(
    chain: Chain,
    name: ChainName,
    index: Index,
    indexed: watch::Sender<u64>,
) -> Result<(), TaskError> {
    let mut next = index.cursor(&name)?;
    loop {
        indexed.send_replace(next - 1);
        chain.reached(next).await?;
        let Some(block) = chain.block_at(next).await? else {
            return Err(TaskError::BlockLost {
                chain: name,
                height: next,
            });
        };
        index.apply(&name, &block)?;
        next += 1;
    }
}
