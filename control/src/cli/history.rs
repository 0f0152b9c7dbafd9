//! What happened on the chains: blocks, an account's history, a service's batches.

use std::cmp::Reverse;

use topnet_account::Address;
use topnet_api::{BatchView, BlockRef, BlockSummary, BlockView, ChainName, HistoryEntry};

use super::{
    arguments::Options,
    client::Rpc,
    error::CliError,
    output::Output,
    text::{Table, Text, time},
};
use crate::rpc::PublicClient;

pub(super) async fn block(
    options: &Options,
    chain: ChainName,
    height: u64,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::public(options)?;
    output.print(&rpc.check(rpc.client.block(chain, height).await)?);
    Ok(())
}

pub(super) async fn blocks(
    options: &Options,
    chain: ChainName,
    from: Option<u64>,
    to: Option<u64>,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::public(options)?;
    // Blocks that become final meanwhile would make a list without an end.
    let end = match (from, to) {
        (Some(_), None) => Some(rpc.check(rpc.client.chain(chain.clone()).await)?.height),
        (_, to) => to,
    };
    let page = rpc.client.blocks(chain.clone(), from, end).await;
    let mut blocks = rpc.check(page)?;
    let mut place = None;
    // A range may be longer than one answer.
    while let (Some(end), Some(last)) = (end, blocks.last())
        && last.header.block.height < end
    {
        let height = last.header.block.height;
        rpc.advance(&mut place, height)?;
        let next = height.saturating_add(1);
        let page = rpc.client.blocks(chain.clone(), Some(next), Some(end));
        let page = rpc.check(page.await)?;
        if page.is_empty() {
            break;
        }
        blocks.extend(page);
    }
    output.print(blocks.as_slice());
    Ok(())
}

pub(super) async fn history(
    options: &Options,
    chain: ChainName,
    address: Address,
    count: usize,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::public(options)?;
    let (mut entries, mut place): (Vec<HistoryEntry>, _) = (Vec::new(), None);
    while entries.len() < count {
        let before = place.map(|Reverse(place)| place);
        let page = rpc.client.account_history(chain.clone(), address, before);
        let page = rpc.check(page.await)?;
        let Some(last) = page.last() else {
            break;
        };
        rpc.advance(&mut place, Reverse(last.place))?;
        entries.extend(page);
    }
    entries.truncate(count);
    output.print(entries.as_slice());
    Ok(())
}

pub(super) async fn batches(
    options: &Options,
    chain: ChainName,
    from: u64,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::public(options)?;
    let (mut batches, mut place): (Vec<BatchView>, _) = (Vec::new(), None);
    loop {
        let next = place.map_or(from, |number: u64| number.saturating_add(1));
        let page = rpc.check(rpc.client.batches(chain.clone(), Some(next)).await)?;
        let Some(last) = page.last() else {
            break;
        };
        rpc.advance(&mut place, last.number)?;
        batches.extend(page);
    }
    output.print(batches.as_slice());
    Ok(())
}

fn place(block: &BlockRef) -> String {
    format!("{} {}", block.height, block.hash)
}

impl Text for BlockSummary {
    fn text(&self) -> String {
        let BlockRef { chain, height, .. } = &self.header.block;
        Table::new(format_args!("block {height} of {chain}"))
            .row("hash", self.header.block.hash)
            .row("time", time(self.header.time_ms))
            .row("transactions", self.transaction_count)
            .end()
    }
}

impl Text for BlockView {
    fn text(&self) -> String {
        let header = &self.header;
        let BlockRef {
            chain,
            height,
            hash,
        } = &header.block;
        let mut table = Table::new(format_args!("block {height} of {chain}"))
            .row("hash", hash)
            .row("parent", header.parent)
            .row("time", time(header.time_ms))
            .row("proposer", header.proposer)
            .row("state root", header.state_root);
        for transaction in &self.transactions {
            table = table.row("transaction", transaction.id);
            let events = transaction.events.iter();
            table = events.fold(table, |table, event| table.row("", event));
        }
        let events = self.events.iter();
        events
            .fold(table, |table, event| table.row("did", event))
            .end()
    }
}

impl Text for HistoryEntry {
    fn text(&self) -> String {
        let table = Table::new(format_args!(
            "block {}, {}",
            self.place.height,
            time(self.time_ms)
        ))
        .row_if("transaction", self.transaction);
        let events = self.events.iter();
        events
            .fold(table, |table, event| table.row("did", event))
            .end()
    }
}

impl Text for BatchView {
    fn text(&self) -> String {
        Table::new(format_args!("batch {}", self.number))
            .row("payouts", self.payouts)
            .row("total", self.total)
            .row("burn", self.burn)
            .row("cut in block", place(&self.service_block))
            .row(
                "accepted in",
                self.main_block
                    .as_ref()
                    .map_or_else(|| "not yet".to_owned(), place),
            )
            .end()
    }
}
