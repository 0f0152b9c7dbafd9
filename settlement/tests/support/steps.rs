//! What a payer and a payee do on the way to a claim.

use topnet_account::{Address, Amount, ChannelId, Hash};
use topnet_api::{BlockRef, ChainName, ClaimBytes, SettlementClient};
use topnet_channel::{SecretKey, Voucher};
use topnet_ledger::{
    Genesis,
    transaction::{Action, Open, channel_id},
};

use super::{Provider, balance, settle, top, until};

pub const UNIT_PRICE: Amount = Amount::from_ntop(26_000);
pub const LOG_ROOT: Hash = Hash([3; 32]);

/// Sends some of the payer's money to a service.
pub fn fund(provider: &Provider, service: &Genesis, amount: Amount) -> Action {
    Action::Fund {
        service: service.hash(),
        amount,
        beneficiary: provider.payer.address(),
    }
}

/// Opens a channel of 60 TOP.
pub fn open(provider: &Provider, payee: Address, close_window: u32) -> Action {
    Action::Open(Open {
        payee,
        allocation: top(60),
        signer: provider.payer.public_key(),
        close_window,
        expiry: 1_000_000,
    })
}

/// The channel that the payer's order `nonce` opens.
pub fn channel(provider: &Provider, nonce: u64, payee: Address) -> ChannelId {
    let payer = provider.payer.address();
    channel_id(&provider.service.hash(), &payer, &payee, nonce)
}

/// Waits until the payer has `amount` on the service.
pub async fn credited(client: &SettlementClient, provider: &Provider, amount: Amount) {
    until("the service's credit", async || {
        let balance = balance(client, &ChainName::vpn(), provider.payer.address()).await;
        (balance == amount).then_some(())
    })
    .await;
}

/// Sends `amount` to the service with the payer's first order.
pub async fn funded(client: &SettlementClient, provider: &Provider, amount: Amount) {
    let action = fund(provider, &provider.service, amount);
    let funding = provider.order(&provider.main, 0, action);
    settle(client, &ChainName::main(), &funding).await;
    credited(client, provider, amount).await;
}

/// Opens a channel with the payer's order `nonce`.
pub async fn opened(
    client: &SettlementClient,
    provider: &Provider,
    nonce: u64,
    payee: Address,
    close_window: u32,
) -> (ChannelId, BlockRef) {
    let action = open(provider, payee, close_window);
    let opening = provider.order(&provider.service, nonce, action);
    let (block, _) = settle(client, &ChainName::vpn(), &opening).await;
    (channel(provider, nonce, payee), block)
}

/// A channel's first voucher: `amount` for what came before, and a unit for each of `tokens`.
pub fn voucher(channel: ChannelId, amount: Amount, tokens: u16) -> Voucher {
    Voucher {
        channel,
        seq: 1,
        cumulative_amount: amount,
        cumulative_units: 1_000,
        unit_price: UNIT_PRICE,
        tokens,
        root: [0; 32],
    }
}

/// A claim with the voucher's token `index`, and what it is worth.
pub fn claim(payer: &SecretKey, voucher: Voucher, index: u16) -> (ClaimBytes, Amount) {
    let preimage = voucher.chain(payer).preimage(index).unwrap();
    let signed = voucher.sign(payer);
    let worth = signed.voucher.redeemable(index).unwrap();
    let claim = ClaimBytes {
        voucher: signed.to_bytes().to_vec(),
        index,
        preimage,
        log_root: LOG_ROOT,
    };
    (claim, worth)
}
