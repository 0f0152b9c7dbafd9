//! Transactions for money that nobody is due.

use anyhow::{Result, bail};
use topnet_account::{ChannelId, Hash};
use topnet_api::ChainName;
use topnet_channel::{Claim, SecretKey, Voucher};
use topnet_ledger::{
    Transaction,
    transaction::{Body, ClaimBody, CloseByPayee, Message as _},
};
use topnet_wallet::chain::{Rpc, RpcError};

/// What there is to claim with, and from whom.
#[derive(Debug)]
pub struct Material<'a> {
    /// The service chain's genesis.
    pub chain: Hash,
    /// A voucher of the forger's channel.
    pub voucher: Voucher,
    /// Signs that channel's vouchers.
    pub forger: &'a SecretKey,
    /// Is paid by both channels.
    pub payee: &'a SecretKey,
    /// Somebody else's channel.
    pub other: ChannelId,
}

impl Material<'_> {
    /// Every false claim, with the code of its refusal.
    pub fn false_claims(&self) -> Vec<(&'static str, Transaction, &'static str)> {
        let own = self.claim(self.voucher, 1);
        let with = |body| Transaction {
            chain: self.chain,
            body,
        };
        let claim = |claim: Claim| {
            with(Body::Claim(ClaimBody {
                signer: self.forger.public_key(),
                claim,
                log_root: Hash::ZERO,
            }))
        };
        let close = |channel, claim, key: &SecretKey| {
            let claim = Some(ClaimBody {
                signer: self.forger.public_key(),
                claim,
                log_root: Hash::ZERO,
            });
            CloseByPayee { channel, claim }.sign(&self.chain, key)
        };
        let foreign = Voucher {
            channel: self.other,
            ..self.voucher
        };
        vec![
            (
                "a claim with a made-up pre-image",
                claim(Claim {
                    preimage: [9; 32],
                    ..own
                }),
                "token_false",
            ),
            (
                "a claim for more units than its token pays",
                claim(Claim { index: 2, ..own }),
                "token_false",
            ),
            (
                "a claim beyond the chain's end",
                claim(Claim {
                    index: self.voucher.tokens + 1,
                    ..own
                }),
                "malformed",
            ),
            (
                "a claim on somebody else's channel",
                claim(self.claim(foreign, 1)),
                "not_the_signer",
            ),
            (
                "a payee's close with the claim of another channel",
                close(self.other, own, self.payee),
                "claim_of_other_channel",
            ),
            (
                "a payee's close by somebody else",
                close(self.voucher.channel, own, self.forger),
                "not_the_payee",
            ),
        ]
    }

    fn claim(&self, voucher: Voucher, index: u16) -> Claim {
        let preimage = voucher.chain(self.forger).preimage(index);
        Claim {
            voucher: voucher.sign(self.forger),
            index,
            preimage: preimage.unwrap_or_default(),
        }
    }
}

/// Hands a transaction to the service's chain over the public RPC; gives the code of its refusal,
/// or `None` if it was taken.
pub async fn submit(url: &str, transaction: &Transaction) -> Result<Option<String>> {
    let rpc = Rpc::new(url)?;
    match rpc.submit(&ChainName::vpn(), transaction).await {
        Ok(_) => Ok(None),
        Err(RpcError::Refused(error)) => Ok(Some(error.code)),
        Err(error) => bail!(error),
    }
}

/// The service chain's genesis, which every transaction names.
pub async fn service_genesis(url: &str) -> Result<Hash> {
    let report = Rpc::new(url)?.chain(&ChainName::vpn()).await?;
    Ok(report.parameters.genesis)
}
