//! The claim: what a ledger redeems.

use topnet_account::{Amount, PublicKey};

use crate::{Preimage, SignedVoucher, walk_back};

/// A voucher and at most one of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The promise.
    pub voucher: SignedVoucher,
    /// Place of the token in the voucher's chain; 0 claims the voucher alone.
    pub index: u16,
    /// `w[index]`; the root itself where `index` is 0.
    pub preimage: Preimage,
}

impl Claim {
    /// What the claim is worth in all, if its token is one of the voucher's. Costs `index`
    /// hashes, at most 256. The signature is not checked here: the chain checks many at once.
    pub fn redeemable(&self) -> Option<Amount> {
        let voucher = &self.voucher.voucher;
        if self.index > voucher.tokens {
            return None;
        }
        let root = walk_back(self.preimage, &voucher.salt(), self.index, 0);
        if root != voucher.root {
            return None;
        }
        voucher.redeemable(self.index)
    }

    /// Units that the claim pays for in all.
    pub fn units(&self) -> Option<u64> {
        self.voucher.voucher.units(self.index)
    }

    /// True if `signer` signed the voucher.
    pub fn is_signed_by(&self, signer: &PublicKey) -> bool {
        self.voucher.is_signed_by(signer)
    }
}
