//! The voucher: a signed, cumulative promise that carries the root of a token chain.

use ring::{digest, hmac};
use topnet_account::{Amount, ChannelId, PublicKey, Signature};

use crate::{Preimage, Salt, SecretKey, TOKENS_PER_VOUCHER_MAX, TokenChain, verify};

/// Domain of a voucher's signature. The signed bytes begin with its length and itself, which
/// is also how the chain engine separates domains.
const DOMAIN: &[u8; 16] = b"topnet/voucher/1";
const SALT_DOMAIN: &[u8; 13] = b"topnet/salt/1";
/// The only signature scheme so far.
const SCHEME_ED25519: u8 = 1;

/// Length of a voucher's signed bytes.
pub const VOUCHER_BYTES: usize = 1 + DOMAIN.len() + BODY_BYTES;
/// Length of a voucher with its signature as it is sent and stored: body and signature.
pub const SIGNED_VOUCHER_BYTES: usize = BODY_BYTES + Signature::SIZE;
const BODY_BYTES: usize = BEFORE_ROOT_BYTES + 32;
const BEFORE_ROOT_BYTES: usize = 1 + 32 + 4 + 8 + 8 + 8 + 2;

/// What a payer promises: `cumulative_amount` in all for what came before, and `unit_price`
/// for each token of the chain that `root` belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voucher {
    /// The channel that pays.
    pub channel: ChannelId,
    /// Counts the channel's vouchers from 1.
    pub seq: u32,
    /// Promised for all units before this voucher's first token.
    pub cumulative_amount: Amount,
    /// Units before this voucher's first token. Money follows `cumulative_amount` alone.
    pub cumulative_units: u64,
    /// What one token of this voucher pays.
    pub unit_price: Amount,
    /// Tokens in the chain, 1..=256.
    pub tokens: u16,
    /// `w[0]` of the chain.
    pub root: Preimage,
}

/// Bytes that are not a voucher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VoucherError {
    /// Too short or too long.
    #[error("a signed voucher has {SIGNED_VOUCHER_BYTES} bytes, not {0}")]
    Length(usize),
    /// Signed under a scheme that is not known here.
    #[error("voucher signature scheme {0} is not known; this version knows 1 (Ed25519)")]
    Scheme(u8),
    /// No tokens, too many of them, or more money than can be named.
    #[error("the voucher's numbers are out of range")]
    Range,
}

impl Voucher {
    /// The most that the voucher can make redeemable: every token used. `None` if that cannot
    /// be named, which makes the voucher invalid.
    pub fn amount_max(&self) -> Option<Amount> {
        self.redeemable(self.tokens)
    }

    /// What can be redeemed with token `index` (0: none), or `None` if it cannot be named.
    pub fn redeemable(&self, index: u16) -> Option<Amount> {
        let by_tokens = self.unit_price.checked_mul(u64::from(index))?;
        self.cumulative_amount.checked_add(by_tokens)
    }

    /// Units paid with token `index` (0: none), or `None` if they cannot be counted.
    pub fn units(&self, index: u16) -> Option<u64> {
        self.cumulative_units.checked_add(u64::from(index))
    }

    /// The salt that binds the token chain to this voucher.
    pub fn salt(&self) -> Salt {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(SALT_DOMAIN);
        context.update(&self.before_root());
        let mut salt = [0; 16];
        salt.copy_from_slice(&context.finish().as_ref()[..16]);
        salt
    }

    /// The payer's token chain under this voucher. It depends on everything that the voucher
    /// says, so a voucher that is signed again with other words has another chain.
    pub fn chain(&self, secret: &SecretKey) -> TokenChain {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.seed());
        let tag = hmac::sign(&key, &self.before_root());
        let mut seed = [0; 32];
        seed.copy_from_slice(tag.as_ref());
        TokenChain::new(seed, &self.salt(), self.tokens)
    }

    /// Fills in the root of `secret`'s chain and signs.
    pub fn sign(mut self, secret: &SecretKey) -> SignedVoucher {
        self.root = self.chain(secret).root();
        let signature = secret.sign(&self.signed_bytes());
        SignedVoucher {
            voucher: self,
            signature,
        }
    }

    /// The bytes that are signed.
    pub fn signed_bytes(&self) -> [u8; VOUCHER_BYTES] {
        let mut bytes = [0; VOUCHER_BYTES];
        bytes[0] = DOMAIN.len() as u8;
        bytes[1..][..DOMAIN.len()].copy_from_slice(DOMAIN);
        bytes[1 + DOMAIN.len()..].copy_from_slice(&self.body());
        bytes
    }

    fn body(&self) -> [u8; BODY_BYTES] {
        let mut bytes = [0; BODY_BYTES];
        bytes[..BEFORE_ROOT_BYTES].copy_from_slice(&self.before_root());
        bytes[BEFORE_ROOT_BYTES..].copy_from_slice(&self.root);
        bytes
    }

    fn before_root(&self) -> [u8; BEFORE_ROOT_BYTES] {
        let mut bytes = [0; BEFORE_ROOT_BYTES];
        bytes[0] = SCHEME_ED25519;
        bytes[1..33].copy_from_slice(self.channel.as_bytes());
        bytes[33..37].copy_from_slice(&self.seq.to_le_bytes());
        bytes[37..45].copy_from_slice(&self.cumulative_amount.ntop().to_le_bytes());
        bytes[45..53].copy_from_slice(&self.cumulative_units.to_le_bytes());
        bytes[53..61].copy_from_slice(&self.unit_price.ntop().to_le_bytes());
        bytes[61..63].copy_from_slice(&self.tokens.to_le_bytes());
        bytes
    }
}

/// A voucher and the signature of the channel's signer key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedVoucher {
    /// What is promised.
    pub voucher: Voucher,
    /// Over [`Voucher::signed_bytes`].
    pub signature: Signature,
}

impl SignedVoucher {
    /// True if `signer` signed it.
    pub fn is_signed_by(&self, signer: &PublicKey) -> bool {
        verify(signer, &self.voucher.signed_bytes(), &self.signature)
    }

    /// As it is sent and stored.
    pub fn to_bytes(&self) -> [u8; SIGNED_VOUCHER_BYTES] {
        let mut bytes = [0; SIGNED_VOUCHER_BYTES];
        bytes[..BODY_BYTES].copy_from_slice(&self.voucher.body());
        bytes[BODY_BYTES..].copy_from_slice(self.signature.as_ref());
        bytes
    }

    /// Reads [`to_bytes`](Self::to_bytes). The signature is not checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, VoucherError> {
        let bytes: &[u8; SIGNED_VOUCHER_BYTES] = bytes
            .try_into()
            .map_err(|_| VoucherError::Length(bytes.len()))?;
        if bytes[0] != SCHEME_ED25519 {
            return Err(VoucherError::Scheme(bytes[0]));
        }
        let voucher = Voucher {
            channel: ChannelId(field(bytes, 1)),
            seq: u32::from_le_bytes(field(bytes, 33)),
            cumulative_amount: Amount::from_ntop(u64::from_le_bytes(field(bytes, 37))),
            cumulative_units: u64::from_le_bytes(field(bytes, 45)),
            unit_price: Amount::from_ntop(u64::from_le_bytes(field(bytes, 53))),
            tokens: u16::from_le_bytes(field(bytes, 61)),
            root: field(bytes, BEFORE_ROOT_BYTES),
        };
        let in_range = (1..=TOKENS_PER_VOUCHER_MAX).contains(&voucher.tokens)
            && voucher.seq > 0
            && voucher.amount_max().is_some()
            && voucher.units(voucher.tokens).is_some();
        if !in_range {
            return Err(VoucherError::Range);
        }
        Ok(Self {
            voucher,
            signature: Signature(field(bytes, BODY_BYTES)),
        })
    }
}

/// `N` bytes at `offset`, which the caller's constants keep inside.
fn field<const N: usize>(bytes: &[u8; SIGNED_VOUCHER_BYTES], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[offset..offset + N]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voucher() -> Voucher {
        Voucher {
            channel: ChannelId([9; 32]),
            seq: 3,
            cumulative_amount: Amount::from_ntop(1_000),
            cumulative_units: 10,
            unit_price: Amount::from_ntop(100),
            tokens: 4,
            root: [0; 32],
        }
    }

    fn secret() -> SecretKey {
        SecretKey::from_seed([5; 32]).unwrap()
    }

    #[test]
    fn signed_voucher_round_trips_and_every_byte_is_signed() {
        let signed = voucher().sign(&secret());
        let bytes = signed.to_bytes();
        assert_eq!(SignedVoucher::from_bytes(&bytes), Ok(signed));
        assert!(signed.is_signed_by(&secret().public_key()));
        for place in 0..bytes.len() {
            let mut changed = bytes;
            changed[place] ^= 1;
            let accepted = SignedVoucher::from_bytes(&changed)
                .is_ok_and(|voucher| voucher.is_signed_by(&secret().public_key()));
            assert!(!accepted, "byte {place}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let cases = [
            Voucher {
                tokens: 0,
                ..voucher()
            },
            Voucher {
                tokens: 257,
                ..voucher()
            },
            Voucher {
                seq: 0,
                ..voucher()
            },
            Voucher {
                cumulative_amount: Amount::MAX,
                ..voucher()
            },
            Voucher {
                unit_price: Amount::MAX,
                ..voucher()
            },
            Voucher {
                cumulative_units: u64::MAX,
                ..voucher()
            },
        ];
        for voucher in cases {
            let signature = Signature([0; 64]);
            let bytes = SignedVoucher { voucher, signature }.to_bytes();
            assert_eq!(SignedVoucher::from_bytes(&bytes), Err(VoucherError::Range));
        }
    }

    #[test]
    fn other_words_give_another_chain() {
        let chain = voucher().chain(&secret()).root();
        let dearer = Voucher {
            unit_price: Amount::from_ntop(101),
            ..voucher()
        };
        assert_ne!(dearer.chain(&secret()).root(), chain);
        assert_ne!(dearer.salt(), voucher().salt());
    }

    /// These bytes are on disks and in channels: they change only with the domain's version.
    #[test]
    fn golden_voucher() {
        let signed = voucher().sign(&secret());
        let hex: String = signed
            .to_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            hex,
            "01090909090909090909090909090909090909090909090909090909090909090903000000e8030000000000000a00000000000000640000000000000004008ab23987860cd85e374a2a2a77569cc9ed1b39d5199ffc14393eba92d521b76734cc2bb2b04f71b6e1984720e252a2f09cd48afd201094b439d6efdf3c6372885ed287d39f408c8c39aaf0006d14360c6ce5127933f85d9c9a16bbb48bc2ee05"
        );
    }
}
