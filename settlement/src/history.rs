//! Blocks as they are told, one by one or in a row.

use topnet_api::{
    ApiError, BlockHeader, BlockRef, BlockSummary, BlockView, ChainName, ExecutedTransaction,
};
use topnet_chain::FinalBlock;
use topnet_ledger::{CodecError, event::decode_events, machine::Receipt};

use crate::{chains::Running, close::unavailable, describe::describe};

/// Blocks in one answer, at most.
const BLOCKS_MAX: u64 = 100;
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

/// Final blocks in a row.
pub(crate) async fn blocks(
    running: &Running,
    from: Option<u64>,
    to: Option<u64>,
) -> Result<Vec<BlockSummary>, ApiError> {
    let to = to.unwrap_or(u64::MAX).min(running.chain.tip().height());
    let from = from.unwrap_or_else(|| to.saturating_sub(BLOCKS_MAX - 1));
    let from = from.max(1);
    let to = to.min(from.saturating_add(BLOCKS_MAX - 1));
    let (mut blocks, mut transactions) = (Vec::new(), 0_u64);
    for height in from..=to {
        let found = running.chain.block_at(height).await.map_err(unavailable)?;
        let Some(found) = found else {
            break;
        };
        let transaction_count = found.receipts.len() as u64;
        blocks.push(BlockSummary {
            header: header(&running.name, &found),
            transaction_count,
        });
        transactions = transactions.saturating_add(transaction_count);
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
