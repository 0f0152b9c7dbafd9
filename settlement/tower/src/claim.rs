//! A claim as processes hand it to one another: what it is worth, what is wrong with it, and how a
//! ledger takes it.

use topnet_account::{Amount, ChannelId};
use topnet_api::{ApiError, ClaimBytes};
use topnet_channel::{Claim, SignedVoucher, VoucherError};
use topnet_ledger::{state::Channel, transaction::ClaimBody};

/// What is wrong with a claim that somebody wants held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimFault {
    /// Its bytes are no voucher.
    #[error("its voucher: {0}")]
    Voucher(#[from] VoucherError),
    /// It belongs elsewhere.
    #[error("its voucher is another channel's")]
    OtherChannel,
    /// Its token does not lead to the voucher's root.
    #[error("its token is none of the voucher's")]
    Token,
}

/// The claim in the ledger's terms.
pub fn decode(channel: &ChannelId, bytes: &ClaimBytes) -> Result<Claim, ClaimFault> {
    let voucher = SignedVoucher::from_bytes(&bytes.voucher)?;
    if voucher.voucher.channel != *channel {
        return Err(ClaimFault::OtherChannel);
    }
    Ok(Claim {
        voucher,
        index: bytes.index,
        preimage: bytes.preimage,
    })
}

/// The same, and what it is worth. Its signature is not looked at.
pub fn check(channel: &ChannelId, bytes: &ClaimBytes) -> Result<(Claim, Amount), ClaimFault> {
    let claim = decode(channel, bytes)?;
    let worth = claim.redeemable().ok_or(ClaimFault::Token)?;
    Ok((claim, worth))
}

/// A claim on a channel as it stands in a transaction.
pub fn claim_body(
    id: &ChannelId,
    channel: &Channel,
    bytes: &ClaimBytes,
) -> Result<ClaimBody, ClaimFault> {
    Ok(ClaimBody {
        signer: channel.signer,
        claim: decode(id, bytes)?,
        log_root: bytes.log_root,
    })
}

/// What whoever brought a claim is told of it.
pub fn malformed(id: &ChannelId, fault: ClaimFault) -> ApiError {
    ApiError::new(
        "claim_malformed",
        format!("the claim on channel {id}: {fault}"),
        "bring what metering gave as the channel's claim",
    )
}
