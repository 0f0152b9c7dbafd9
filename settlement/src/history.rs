//! Blocks as they are told, one by one or in a row.

use topnet_api::{
    ApiError, BlockHeader, BlockRef, BlockSummary, BlockView, ChainName, ExecutedTransaction,
};
use topnet_chain::FinalBlock;
use topnet_ledger::{CodecError, event::decode_events, machine::Receipt};

use crate::{chains::Running, close::unavailable, describe::describe};

/// Blocks in one answer, at most.
const BLOCKS_MAX: usize = 100;
/// No block follows in an answer that has read so many transactions.
const TRANSACTIONS_MAX: u64 = 10_000;

/// The final block at a height.
pub(crate) async fn block(running: &Running, height: u64) -> Result<BlockView, ApiError> {
    let found = running.chain.block_at(height).await.map_err(unavailable)?;
    let found = found.ok_or_else(|| {
        let tip = running.chain.tip().height();
        ApiError::new(
            "block_unknown",
            format!(
                "chain `{}` has no final block {height}; the newest is {tip}",
                running.name
            ),
            "name one up to the newest",
        )
    })?;
    view(&running.name, &found).map_err(unavailable)
}

/// Final blocks in a row: as many as fit from `from` on, or up to `to` if nothing says where to
/// begin.
pub(crate) async fn blocks(
    running: &Running,
    from: Option<u64>,
    to: Option<u64>,
) -> Result<Vec<BlockSummary>, ApiError> {
    let read = |height| async move {
        let found = running.chain.block_at(height).await.map_err(unavailable)?;
        Ok(found.map(|found| BlockSummary {
            header: header(&running.name, &found),
            transaction_count: found.receipts.len() as u64,
        }))
    };
    let to = to.unwrap_or(u64::MAX).min(running.chain.tip().height());
    row(from, to, read).await
}

async fn row<R>(
    from: Option<u64>,
    to: u64,
    read: impl Fn(u64) -> R,
) -> Result<Vec<BlockSummary>, ApiError>
where
    R: Future<Output = Result<Option<BlockSummary>, ApiError>>,
{
    let Some(from) = from else {
        // The newest ones are asked for: what does not fit is what comes before them.
        let mut newest_first = page((1..=to).rev(), read).await?;
        newest_first.reverse();
        return Ok(newest_first);
    };
    page(from.max(1)..=to, read).await
}

/// The first of these blocks, as many as one answer has room for.
async fn page<R>(
    heights: impl Iterator<Item = u64>,
    read: impl Fn(u64) -> R,
) -> Result<Vec<BlockSummary>, ApiError>
where
    R: Future<Output = Result<Option<BlockSummary>, ApiError>>,
{
    let (mut blocks, mut transactions) = (Vec::new(), 0_u64);
    for height in heights.take(BLOCKS_MAX) {
        let Some(block) = read(height).await? else {
            break;
        };
        transactions = transactions.saturating_add(block.transaction_count);
        blocks.push(block);
        if transactions >= TRANSACTIONS_MAX {
            break;
        }
    }
    Ok(blocks)
}

fn view(chain: &ChainName, block: &FinalBlock) -> Result<BlockView, CodecError> {
    let lines = |events: &[u8]| -> Result<Vec<String>, CodecError> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        Ok(decode_events(events)?.iter().map(describe).collect())
    };
    let executed = |receipt: &Receipt| {
        Ok(ExecutedTransaction {
            id: receipt.id,
            events: lines(&receipt.events)?,
        })
    };
    let transactions = block.receipts.iter().map(executed);
    Ok(BlockView {
        header: header(chain, block),
        transactions: transactions.collect::<Result<_, CodecError>>()?,
        events: lines(&block.block_events)?,
    })
}

fn header(chain: &ChainName, block: &FinalBlock) -> BlockHeader {
    let header = &block.header;
    BlockHeader {
        block: BlockRef {
            chain: chain.clone(),
            height: header.height(),
            hash: block.hash,
        },
        parent: header.parent(),
        time_ms: header.time_ms(),
        proposer: header.proposer(),
        body_root: header.body_root(),
        receipts_root: header.receipts_root(),
        state_root: header.state_root(),
        outbox: header.outbox(),
    }
}

#[cfg(test)]
mod tests {
    use topnet_account::{Address, Hash};

    use super::*;

    /// The heights of an answer over blocks of so many transactions.
    async fn heights(from: Option<u64>, to: u64, transaction_count: u64) -> Vec<u64> {
        let block = |height| BlockSummary {
            header: BlockHeader {
                block: BlockRef {
                    chain: ChainName::main(),
                    height,
                    hash: Hash::ZERO,
                },
                parent: Hash::ZERO,
                time_ms: 0,
                proposer: Address([0; 32]),
                body_root: Hash::ZERO,
                receipts_root: Hash::ZERO,
                state_root: Hash::ZERO,
                outbox: Hash::ZERO,
            },
            transaction_count,
        };
        let blocks = row(from, to, |height| async move { Ok(Some(block(height))) }).await;
        let blocks = blocks.unwrap().into_iter();
        blocks.map(|block| block.header.block.height).collect()
    }

    /// (from, to, transactions in each block, first and last height told of)
    #[tokio::test]
    async fn an_answer_that_is_full_leaves_out_what_was_not_asked_for() {
        for (from, to, transactions, told) in [
            (None, 500, 1, (401, 500)),
            (None, 500, 1_000, (491, 500)),
            (None, 500, 20_000, (500, 500)),
            (None, 7, 1, (1, 7)),
            (Some(0), 500, 1, (1, 100)),
            (Some(400), 500, 1_000, (400, 409)),
            (Some(450), 500, 1, (450, 500)),
        ] {
            let heights = heights(from, to, transactions).await;
            let expected: Vec<u64> = (told.0..=told.1).collect();
            assert_eq!(heights, expected, "{from:?} {to} {transactions}");
        }
        assert!(heights(Some(9), 8, 1).await.is_empty());
        assert!(heights(None, 0, 1).await.is_empty());
    }
}
