//! When what a service paid is in its receivers' balances on main.

use topnet_account::Address;
use topnet_api::BlockRef;
use topnet_ledger::state::{Account, account_key};

use crate::{
    chains::{Chains, Running},
    relay::record,
    start::TaskError,
};

/// The block of main from which on `parties` have there what block `paid` gave them: that of the
/// batch after it, or of the later one with the last of them. What is not worth sending stays on
/// the service and is waited for by nobody. `None` while something is on its way.
pub(crate) async fn settled(
    chains: &Chains,
    parties: &[Address],
    paid: &BlockRef,
) -> Result<Option<BlockRef>, TaskError> {
    if paid.chain == chains.main().name {
        return Ok(Some(paid.clone()));
    }
    // A chain that is stopped tells nothing.
    let Ok(Running { chain, .. }) = chains.get(&paid.chain) else {
        return Ok(None);
    };
    let (index, service) = (chains.index(), chain.genesis());
    let Some(batch) = index.batch_from(&service, paid.height)? else {
        return Ok(None);
    };
    let mut settled = batch.main_block;
    for party in parties {
        if let Some(payout) = index.payout_from(&service, party, batch.seq)? {
            if payout.height > settled.height {
                settled = payout;
            }
            continue;
        }
        let account: Option<Account> = record(&chain, account_key(party)).await?;
        let on_main = chains.on_main(&service).await?;
        // A payout that main lets wait is not told from others'.
        let waits = on_main.is_some_and(|service| !service.waiting_amount.is_zero());
        if waits || account.is_some_and(|account| account.queued) {
            return Ok(None);
        }
    }
    Ok(Some(settled))
}
