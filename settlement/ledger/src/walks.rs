//! Token chains that were walked already.
//!
//! A claim's worth rests on up to 256 hashes, and a claim is looked at three times: when it is
//! admitted, when it is weighed and when its block is built. What it is worth is the same each
//! time, so the walk is remembered for a while. Nothing depends on what is remembered but the
//! time that it takes.

use std::{
    collections::HashSet,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest as _, Sha256};
use topnet_account::Amount;
use topnet_channel::Claim;

/// Walks that are remembered, at least; twice as many at most.
const WALKS_MAX: usize = 1 << 16;
/// A shorter walk costs less than to look it up.
const INDEX_MIN: u16 = 8;

type Name = [u8; 32];

/// Claims whose tokens were found to be their vouchers'.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walks(Arc<Mutex<Generations>>);

#[derive(Debug, Default)]
struct Generations {
    young: HashSet<Name>,
    old: HashSet<Name>,
}

impl Walks {
    /// [`Claim::redeemable`], at the price of a look where the claim was walked lately.
    pub(crate) fn redeemable(&self, claim: &Claim) -> Option<Amount> {
        let voucher = &claim.voucher.voucher;
        if !(INDEX_MIN..=voucher.tokens).contains(&claim.index) {
            return claim.redeemable();
        }
        let name: Name = Sha256::new()
            .chain_update(voucher.signed_bytes())
            .chain_update(claim.index.to_le_bytes())
            .chain_update(claim.preimage)
            .finalize()
            .into();
        if self.knows(&name) {
            return voucher.redeemable(claim.index);
        }
        let worth = claim.redeemable();
        if worth.is_some() {
            self.note(name);
        }
        worth
    }

    fn knows(&self, name: &Name) -> bool {
        let walks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        walks.young.contains(name) || walks.old.contains(name)
    }

    fn note(&self, name: Name) {
        let mut walks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if walks.young.len() == WALKS_MAX {
            walks.old = mem::take(&mut walks.young);
        }
        walks.young.insert(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use topnet_account::ChannelId;
    use topnet_channel::{SecretKey, Voucher};

    #[test]
    fn what_is_remembered_is_what_a_walk_gives() {
        let secret = SecretKey::from_seed([1; 32]).unwrap();
        let voucher = Voucher {
            channel: ChannelId([2; 32]),
            seq: 1,
            cumulative_amount: Amount::from_ntop(1_000),
            cumulative_units: 0,
            unit_price: Amount::from_ntop(3),
            tokens: 100,
            root: [0; 32],
        };
        let chain = voucher.chain(&secret);
        let voucher = voucher.sign(&secret);
        let walks = Walks::default();
        for index in [0, 1, INDEX_MIN - 1, INDEX_MIN, 50, 100] {
            let claim = Claim {
                voucher,
                index,
                preimage: chain.preimage(index).unwrap(),
            };
            for _ in 0..3 {
                assert_eq!(walks.redeemable(&claim), claim.redeemable(), "{index}");
                assert!(claim.redeemable().is_some());
            }
            // Whatever differs has another name.
            let mut dearer = claim;
            dearer.voucher.voucher.unit_price = Amount::from_ntop(4);
            let mut further = claim;
            further.index += 1;
            let mut beyond = claim;
            beyond.index = 101;
            let mut other = claim;
            other.preimage[0] ^= 1;
            for changed in [dearer, further, beyond, other] {
                for _ in 0..2 {
                    assert_eq!(walks.redeemable(&changed), changed.redeemable(), "{index}");
                }
            }
            assert_eq!(walks.redeemable(&other), None);
        }
        let known = walks.0.lock().unwrap().young.len();
        assert_eq!(known, 3, "long ones, once each");
    }
}
