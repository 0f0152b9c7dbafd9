//! A block: a header that consensus certifies, and the transactions that it commits to.
//!
//! Format of a header, integers big-endian unless the engine's own type is named:
//! version (1 byte) ‖ chain (32) ‖ height (u64) ‖ consensus context (round, leader, parent;
//! varints) ‖ time_ms (u64) ‖ body root (32) ‖ state root (32) ‖ root of the state's log (32) ‖
//! its range (two varints) ‖ outbox (32). A block's hash is SHA-256 over a domain and its encoded header, so the header
//! alone, with a certificate, proves everything that it commits to.

use commonware_codec::{
    Buf, Copying, DecodeExt, Encode, EncodeSize, Error as CodecError, FixedSize, MaxEncodeSize,
    RangeCfg, Read, ReadExt, Write, util::max_items_size,
};
use commonware_consensus::{
    Block as ConsensusBlock, BoundedBlock, CertifiableBlock, Heightable,
    simplex::types::Context as SimplexContext,
    types::{Epoch, Height, Round, View},
};
use commonware_cryptography::{
    Digest as _, Digestible, Hasher, Sha256, ed25519,
    sha256::{self, Digest},
};
use commonware_runtime::BufMut;
use commonware_storage::{mmr::Location, qmdb::sync::Target};
use commonware_utils::range::NonEmptyRange;
use topnet_account::{Address, Hash, PublicKey};
use topnet_ledger::machine::BlockEnv;

use crate::limits::{BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX, TRANSACTION_BYTES_MAX};

const VERSION: u8 = 2;
const HEADER_DOMAIN: &[u8] = b"topnet/header/2";
const BODY_DOMAIN: &[u8] = b"topnet/body/1";

pub(crate) type Context = SimplexContext<Digest, ed25519::PublicKey>;
pub(crate) type StateTarget = Target<commonware_storage::mmr::Family, Digest>;

/// What consensus certifies of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    chain: Hash,
    height: u64,
    context: Context,
    time_ms: u64,
    body_root: Hash,
    state_root: Hash,
    state_log: StateTarget,
    outbox: Hash,
}

/// What a proposer or verifier fills a header with.
pub(crate) struct HeaderFields {
    pub chain: Hash,
    pub height: u64,
    pub context: Context,
    pub time_ms: u64,
    pub body_root: Hash,
    pub state_root: Hash,
    pub state_log: StateTarget,
    pub outbox: Hash,
}

impl Header {
    pub(crate) fn new(fields: HeaderFields) -> Self {
        let HeaderFields {
            chain,
            height,
            context,
            time_ms,
            body_root,
            state_root,
            state_log,
            outbox,
        } = fields;
        Self {
            chain,
            height,
            context,
            time_ms,
            body_root,
            state_root,
            state_log,
            outbox,
        }
    }

    /// Hash of the chain's genesis.
    pub fn chain(&self) -> Hash {
        self.chain
    }

    /// Height; the first block after the genesis block has 1.
    pub fn height(&self) -> u64 {
        self.height
    }

    /// Hash of the block before it; all zero for the genesis block.
    pub fn parent(&self) -> Hash {
        hash_of(&self.context.parent.1)
    }

    /// The proposer's clock, milliseconds since 1970, bounded by the voters' clocks.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The account that is paid the proposer's half of the fees.
    pub fn proposer(&self) -> Address {
        Address::of(&public_key_of(&self.context.leader))
    }

    /// Commits to the transactions.
    pub fn body_root(&self) -> Hash {
        self.body_root
    }

    /// Root of the state after the block: what a value of the state is proved against.
    pub fn state_root(&self) -> Hash {
        self.state_root
    }

    /// What other chains check.
    pub fn outbox(&self) -> Hash {
        self.outbox
    }

    /// The block's hash.
    pub fn hash(&self) -> Hash {
        hash_of(&self.digest())
    }

    /// What the block's execution may know.
    pub fn env(&self) -> BlockEnv {
        BlockEnv {
            chain: self.chain,
            height: self.height,
            proposer: self.proposer(),
        }
    }

    /// The log of all that was ever written, out of which the state can be made anew.
    pub(crate) fn state_log(&self) -> &StateTarget {
        &self.state_log
    }

    pub(crate) fn digest(&self) -> Digest {
        domain_digest(HEADER_DOMAIN, &[&self.encode()])
    }
}

impl Write for Header {
    fn write(&self, buf: &mut impl BufMut) {
        VERSION.write(buf);
        self.chain.0.write(buf);
        self.height.write(buf);
        self.context.write(buf);
        self.time_ms.write(buf);
        self.body_root.0.write(buf);
        self.state_root.0.write(buf);
        self.state_log.root.write(buf);
        self.state_log.range.write(buf);
        self.outbox.0.write(buf);
    }
}

impl EncodeSize for Header {
    fn encode_size(&self) -> usize {
        u8::SIZE
            + 4 * Hash::SIZE
            + 2 * u64::SIZE
            + sha256::Digest::SIZE
            + self.context.encode_size()
            + self.state_log.range.encode_size()
    }
}

impl MaxEncodeSize for Header {
    const MAX_ENCODE_SIZE: usize = u8::SIZE
        + 4 * Hash::SIZE
        + 2 * u64::SIZE
        + sha256::Digest::SIZE
        + Context::MAX_ENCODE_SIZE
        + NonEmptyRange::<Location>::MAX_ENCODE_SIZE;
}

impl Read for Header {
    type Cfg = ();

    fn read_cfg(buf: &mut impl Buf, (): &()) -> Result<Self, CodecError> {
        if u8::read(buf)? != VERSION {
            return Err(CodecError::Invalid("Header", "unknown version"));
        }
        Ok(Self {
            chain: Hash(<[u8; 32]>::read(buf)?),
            height: u64::read(buf)?,
            context: Context::read(buf)?,
            time_ms: u64::read(buf)?,
            body_root: Hash(<[u8; 32]>::read(buf)?),
            state_root: Hash(<[u8; 32]>::read(buf)?),
            state_log: Target::new(Digest::read(buf)?, NonEmptyRange::<Location>::read(buf)?),
            outbox: Hash(<[u8; 32]>::read(buf)?),
        })
    }
}

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
        Height::new(self.header.height)
    }
}

impl ConsensusBlock for Block {
    fn parent(&self) -> Digest {
        self.header.context.parent.1
    }
}

impl CertifiableBlock for Block {
    type Context = Context;

    fn context(&self) -> Context {
        self.header.context.clone()
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

/// SHA-256 over a domain's length, the domain and the parts.
pub(crate) fn domain_digest(domain: &[u8], parts: &[&[u8]]) -> Digest {
    let length = [u8::try_from(domain.len()).expect("a domain is shorter than 256 bytes")];
    let mut all: Vec<&[u8]> = vec![&length, domain];
    all.extend_from_slice(parts);
    Sha256::hash(&all)
}

pub(crate) fn hash_of(digest: &Digest) -> Hash {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    Hash(bytes)
}

pub(crate) fn digest_of(hash: &Hash) -> Digest {
    Digest::from(hash.0)
}

pub(crate) fn public_key_of(key: &ed25519::PublicKey) -> PublicKey {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(key.as_ref());
    PublicKey(bytes)
}

/// The engine's form of a public key; `None` if the bytes are no point of the curve.
pub(crate) fn engine_key_of(key: &PublicKey) -> Option<ed25519::PublicKey> {
    ed25519::PublicKey::decode(Copying(&key.0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use commonware_codec::Encode;
    use commonware_cryptography::Signer as _;
    use commonware_utils::non_empty_range;

    fn block(transactions: Vec<Vec<u8>>) -> Block {
        let leader = ed25519::PrivateKey::decode(Copying(&[7u8; 32]))
            .unwrap()
            .public_key();
        let state = Target::new(
            Digest::from([9; 32]),
            non_empty_range!(Location::new(3), Location::new(300)),
        );
        let mut block = Block::genesis(Hash([1; 32]), leader, state);
        block.header.height = 5;
        block.header.time_ms = 1_700_000_000_000;
        block.header.outbox = Hash([4; 32]);
        block.header.body_root = body_root(&transactions);
        block.transactions = transactions;
        block
    }

    #[test]
    fn a_block_has_one_encoding_and_every_header_field_changes_its_hash() {
        let original = block(vec![vec![1, 2, 3], vec![4]]);
        let bytes = original.encode();
        assert_eq!(bytes.len(), original.encode_size());
        assert!(bytes.len() <= Block::max_encode_size(&()));
        assert_eq!(Block::decode(bytes.clone()).unwrap(), original);
        assert!(Block::decode(bytes.slice(..bytes.len() - 1)).is_err());

        type Change = fn(&mut Header);
        let changes: [(&str, Change); 8] = [
            ("chain", |h| h.chain.0[0] ^= 1),
            ("height", |h| h.height += 1),
            ("context", |h| {
                h.context.round = Round::new(Epoch::zero(), View::new(9))
            }),
            ("time", |h| h.time_ms += 1),
            ("body", |h| h.body_root.0[0] ^= 1),
            ("state", |h| h.state_root.0[0] ^= 1),
            ("log", |h| h.state_log.root = Digest::from([8; 32])),
            ("outbox", |h| h.outbox.0[0] ^= 1),
        ];
        for (name, change) in changes {
            let mut header = original.header.clone();
            change(&mut header);
            assert_ne!(header.hash(), original.header.hash(), "{name}");
        }
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
