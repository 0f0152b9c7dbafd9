//! A block: a header that consensus certifies, and the transactions that it commits to.

use commonware_codec::{
    Buf, EncodeSize, Error as CodecError, MaxEncodeSize, RangeCfg, Read, ReadExt, Write,
    util::max_items_size,
};
use commonware_consensus::{
    Block as ConsensusBlock, BoundedBlock, CertifiableBlock, Heightable,
    types::{Epoch, Height, Round, View},
};
use commonware_cryptography::{Digest as _, Digestible, Hasher, Sha256, ed25519, sha256::Digest};
use commonware_runtime::BufMut;
use topnet_account::Hash;
use topnet_light::{Context, Header, HeaderFields, StateTarget, digest_of, domain_digest, hash_of};

use crate::{
    limits::{BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX, TRANSACTION_BYTES_MAX},
    receipts::Outcome,
};

const BODY_DOMAIN: &[u8] = b"topnet/body/1";

/// A header and its transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub header: Header,
    pub transactions: Vec<Vec<u8>>,
}

impl Block {
    /// The block before the first: it has no transactions, and its state is the empty
    /// database. The machine's genesis state is written by the block at height 1.
    pub(crate) fn genesis(chain: Hash, leader: ed25519::PublicKey, state_log: StateTarget) -> Self {
        let context = Context {
            round: Round::new(Epoch::zero(), View::zero()),
            leader,
            parent: (View::zero(), Digest::EMPTY),
        };
        let header = Header::new(HeaderFields {
            chain,
            height: 0,
            context,
            time_ms: 0,
            body_root: body_root(&[]),
            receipts_root: Outcome::default().root(),
            state_root: Hash::ZERO,
            state_log,
            outbox: Hash::ZERO,
        });
        Self {
            header,
            transactions: Vec::new(),
        }
    }
}

impl Write for Block {
    fn write(&self, buf: &mut impl BufMut) {
        self.header.write(buf);
        self.transactions.write(buf);
    }
}

impl EncodeSize for Block {
    fn encode_size(&self) -> usize {
        self.header.encode_size() + self.transactions.encode_size()
    }
}

impl Read for Block {
    type Cfg = ();

    fn read_cfg(buf: &mut impl Buf, (): &()) -> Result<Self, CodecError> {
        let header = Header::read(buf)?;
        let transaction = (RangeCfg::from(1..=TRANSACTION_BYTES_MAX), ());
        let transactions = Vec::<Vec<u8>>::read_cfg(
            buf,
            &(RangeCfg::from(0..=BLOCK_TRANSACTIONS_MAX), transaction),
        )?;
        if transactions.iter().map(Vec::len).sum::<usize>() > BLOCK_BYTES_MAX {
            return Err(CodecError::Invalid(
                "Block",
                "more bytes of transactions than allowed",
            ));
        }
        Ok(Self {
            header,
            transactions,
        })
    }
}

impl BoundedBlock for Block {
    fn max_encode_size((): &()) -> usize {
        // Every transaction has its own length prefix.
        let prefixes = max_items_size(BLOCK_TRANSACTIONS_MAX, max_items_size(0, 1));
        Header::MAX_ENCODE_SIZE + prefixes + BLOCK_BYTES_MAX
    }
}

impl Digestible for Block {
    type Digest = Digest;

    fn digest(&self) -> Digest {
        self.header.digest()
    }
}

impl Heightable for Block {
    fn height(&self) -> Height {
        Height::new(self.header.height())
    }
}

impl ConsensusBlock for Block {
    fn parent(&self) -> Digest {
        digest_of(&self.header.parent())
    }
}

impl CertifiableBlock for Block {
    type Context = Context;

    fn context(&self) -> Context {
        self.header.context().clone()
    }
}

/// Commits to a list of transactions: a hash over their hashes.
pub(crate) fn body_root(transactions: &[Vec<u8>]) -> Hash {
    let hashes: Vec<Digest> = transactions
        .iter()
        .map(|bytes| Sha256::hash(&[bytes]))
        .collect();
    let parts: Vec<&[u8]> = hashes.iter().map(AsRef::as_ref).collect();
    hash_of(&domain_digest(BODY_DOMAIN, &parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use commonware_codec::{Copying, DecodeExt as _, Encode as _};
    use commonware_cryptography::Signer as _;
    use commonware_storage::mmr::Location;
    use commonware_utils::non_empty_range;

    fn block(transactions: Vec<Vec<u8>>) -> Block {
        let leader = ed25519::PrivateKey::decode(Copying(&[7u8; 32]))
            .unwrap()
            .public_key();
        let state_log = StateTarget::new(
            Digest::from([9; 32]),
            non_empty_range!(Location::new(3), Location::new(300)),
        );
        let mut block = Block::genesis(Hash([1; 32]), leader, state_log);
        block.transactions = transactions;
        block
    }

    #[test]
    fn a_block_has_one_encoding() {
        let original = block(vec![vec![1, 2, 3], vec![4]]);
        let bytes = original.encode();
        assert_eq!(bytes.len(), original.encode_size());
        assert!(bytes.len() <= Block::max_encode_size(&()));
        assert_eq!(Block::decode(bytes.clone()).unwrap(), original);
        assert!(Block::decode(bytes.slice(..bytes.len() - 1)).is_err());
    }

    #[test]
    fn a_body_over_a_limit_is_refused() {
        let cases: [(&str, Vec<Vec<u8>>, bool); 5] = [
            ("none", vec![], true),
            ("an empty transaction", vec![vec![]], false),
            ("the longest", vec![vec![0; TRANSACTION_BYTES_MAX]], true),
            (
                "one byte too long",
                vec![vec![0; TRANSACTION_BYTES_MAX + 1]],
                false,
            ),
            (
                "too many bytes together",
                vec![vec![0; TRANSACTION_BYTES_MAX]; BLOCK_BYTES_MAX / TRANSACTION_BYTES_MAX + 1],
                false,
            ),
        ];
        for (name, transactions, accepted) in cases {
            let bytes = block(transactions).encode();
            assert_eq!(Block::decode(bytes.clone()).is_ok(), accepted, "{name}");
        }
    }

    #[test]
    fn the_body_root_tells_order_and_boundaries_apart() {
        let roots: Vec<Hash> = [
            vec![],
            vec![vec![1], vec![2]],
            vec![vec![2], vec![1]],
            vec![vec![1, 2]],
        ]
        .iter()
        .map(|transactions| body_root(transactions))
        .collect();
        for (i, root) in roots.iter().enumerate() {
            assert!(!roots[..i].contains(root), "{i}");
        }
    }
}
