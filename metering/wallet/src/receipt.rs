//! The newest promise as a document: whoever has it can check what was promised, and to whom.

use serde::{Deserialize, Serialize};
use topnet_account::{Amount, ChannelId, PublicKey};
use topnet_api::HexBytes;
use topnet_channel::{Claim, Promise, SignedVoucher, VoucherError};

/// A voucher and a token of it, as they were sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Who signed: the channel's signer key, as its chain has it.
    pub signer: PublicKey,
    /// The signed voucher's bytes.
    pub voucher: HexBytes,
    /// The token's place in the voucher's chain; 0 for the voucher alone.
    pub index: u16,
    /// The token; the chain's root where `index` is 0.
    pub preimage: HexBytes,
}

/// What a receipt proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Proved {
    /// The channel that pays.
    pub channel: ChannelId,
    /// The key that signed. Whether it is the channel's, its chain says.
    pub signer: PublicKey,
    /// Which of the channel's vouchers.
    pub seq: u32,
    /// Promised in all, since the channel was opened.
    pub amount: Amount,
    /// Units that this pays for in all.
    pub units: u64,
}

/// Why a receipt proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// The voucher's bytes are none.
    #[error(transparent)]
    Voucher(#[from] VoucherError),
    /// Signed by somebody else, or changed since.
    #[error("the voucher is not signed by {0}, or was changed")]
    Signature(PublicKey),
    /// The token is not of the voucher's chain.
    #[error("the token is not number {0} of the voucher's chain")]
    Token(u16),
}

impl Receipt {
    /// The receipt of `promise`, which `signer` signed.
    pub fn of(promise: &Promise, signer: PublicKey) -> Self {
        Self {
            signer,
            voucher: HexBytes(promise.voucher.to_bytes().to_vec()),
            index: promise.index,
            preimage: HexBytes(promise.preimage.to_vec()),
        }
    }

    /// Checks signature and token: one signature and at most 256 hashes.
    pub fn verify(&self) -> Result<Proved, ReceiptError> {
        let voucher = SignedVoucher::from_bytes(&self.voucher.0)?;
        if !voucher.is_signed_by(&self.signer) {
            return Err(ReceiptError::Signature(self.signer));
        }
        let unfit = ReceiptError::Token(self.index);
        let Ok(preimage) = self.preimage.0.as_slice().try_into() else {
            return Err(unfit);
        };
        let claim = Claim {
            voucher,
            index: self.index,
            preimage,
        };
        match (claim.redeemable(), claim.units()) {
            (Some(amount), Some(units)) => Ok(Proved {
                channel: voucher.voucher.channel,
                signer: self.signer,
                seq: voucher.voucher.seq,
                amount,
                units,
            }),
            _ => Err(unfit),
        }
    }
}

#[cfg(test)]
mod tests {
    use topnet_channel::{SecretKey, Voucher};

    use super::*;

    fn receipt() -> Receipt {
        let secret = SecretKey::from_seed([5; 32]).unwrap();
        let voucher = Voucher {
            channel: ChannelId([9; 32]),
            seq: 3,
            cumulative_amount: Amount::from_ntop(1_000),
            cumulative_units: 10,
            unit_price: Amount::from_ntop(100),
            tokens: 4,
            root: [0; 32],
        };
        let preimage = voucher.chain(&secret).preimage(2).unwrap();
        let promise = Promise {
            voucher: voucher.sign(&secret),
            index: 2,
            preimage,
        };
        Receipt::of(&promise, secret.public_key())
    }

    #[test]
    fn a_receipt_proves_what_was_promised_and_survives_json() {
        let text = serde_json::to_string(&receipt()).unwrap();
        let read: Receipt = serde_json::from_str(&text).unwrap();
        let proved = read.verify().unwrap();
        assert_eq!(proved.amount, Amount::from_ntop(1_200));
        assert_eq!((proved.units, proved.seq), (12, 3));
    }

    #[test]
    fn nothing_in_a_receipt_can_be_changed() {
        let other = SecretKey::from_seed([6; 32]).unwrap().public_key();
        let changes: [fn(&mut Receipt, PublicKey); 6] = [
            |receipt, _| receipt.index = 3,
            |receipt, _| receipt.index = 5,
            |receipt, _| receipt.preimage.0[0] ^= 1,
            |receipt, _| receipt.preimage.0.truncate(31),
            |receipt, _| receipt.voucher.0[50] ^= 1,
            |receipt, other| receipt.signer = other,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut receipt = receipt();
            change(&mut receipt, other);
            assert!(receipt.verify().is_err(), "change {number}");
        }
    }
}
