//! A block's header: what consensus certifies.
//!
//! Format, integers big-endian unless the engine's own type is named: version (1 byte) ‖ chain
//! (32) ‖ height (u64) ‖ consensus context (round, leader, parent; varints) ‖ time_ms (u64) ‖ body
//! root (32) ‖ receipts root (32) ‖ state root (32) ‖ root of the state's log (32) ‖ its range (two
//! varints) ‖ outbox (32). A block's hash is SHA-256 over a domain and its encoded header, so the header alone, with
//! a certificate, proves everything that it commits to.

use commonware_codec::{
    Buf, Copying, DecodeExt, Encode, EncodeSize, Error as CodecError, FixedSize, MaxEncodeSize,
    Read, ReadExt, Write,
};
use commonware_consensus::simplex::types::Context as SimplexContext;
use commonware_cryptography::{
    Hasher, Sha256, ed25519,
    sha256::{self, Digest},
};
use commonware_runtime::BufMut;
use commonware_storage::{mmr::Location, qmdb::sync::Target};
use commonware_utils::range::NonEmptyRange;
use topnet_account::{Address, Hash, PublicKey};
use topnet_ledger::machine::BlockEnv;

const VERSION: u8 = 3;
const HEADER_DOMAIN: &[u8] = b"topnet/header/3";

/// Round, leader and parent, as consensus has them.
pub type Context = SimplexContext<Digest, ed25519::PublicKey>;
/// Where a log of updates ends.
pub type StateTarget = Target<commonware_storage::mmr::Family, Digest>;

/// What consensus certifies of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    chain: Hash,
    height: u64,
    context: Context,
    time_ms: u64,
    body_root: Hash,
    receipts_root: Hash,
    state_root: Hash,
    state_log: StateTarget,
    outbox: Hash,
}

/// What a header is made of; [`Header`]'s methods say what each is.
#[allow(missing_docs)]
pub struct HeaderFields {
    pub chain: Hash,
    pub height: u64,
    pub context: Context,
    pub time_ms: u64,
    pub body_root: Hash,
    pub receipts_root: Hash,
    pub state_root: Hash,
    pub state_log: StateTarget,
    pub outbox: Hash,
}

impl Header {
    /// Puts a header together.
    pub fn new(fields: HeaderFields) -> Self {
        let HeaderFields {
            chain,
            height,
            context,
            time_ms,
            body_root,
            receipts_root,
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
            receipts_root,
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

    /// Commits to what the transactions and the block itself did.
    pub fn receipts_root(&self) -> Hash {
        self.receipts_root
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

    /// Round, leader and parent.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The log of all that was ever written, out of which the state can be made anew.
    pub fn state_log(&self) -> &StateTarget {
        &self.state_log
    }

    /// The block's hash, in the engine's form.
    pub fn digest(&self) -> Digest {
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
        self.receipts_root.0.write(buf);
        self.state_root.0.write(buf);
        self.state_log.root.write(buf);
        self.state_log.range.write(buf);
        self.outbox.0.write(buf);
    }
}

impl EncodeSize for Header {
    fn encode_size(&self) -> usize {
        u8::SIZE
            + 5 * Hash::SIZE
            + 2 * u64::SIZE
            + sha256::Digest::SIZE
            + self.context.encode_size()
            + self.state_log.range.encode_size()
    }
}

impl MaxEncodeSize for Header {
    const MAX_ENCODE_SIZE: usize = u8::SIZE
        + 5 * Hash::SIZE
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
            receipts_root: Hash(<[u8; 32]>::read(buf)?),
            state_root: Hash(<[u8; 32]>::read(buf)?),
            state_log: Target::new(Digest::read(buf)?, NonEmptyRange::<Location>::read(buf)?),
            outbox: Hash(<[u8; 32]>::read(buf)?),
        })
    }
}

/// SHA-256 over a domain's length, the domain and the parts.
pub fn domain_digest(domain: &[u8], parts: &[&[u8]]) -> Digest {
    let length = [u8::try_from(domain.len()).expect("a domain is shorter than 256 bytes")];
    let mut all: Vec<&[u8]> = vec![&length, domain];
    all.extend_from_slice(parts);
    Sha256::hash(&all)
}

/// Our form of a digest.
pub fn hash_of(digest: &Digest) -> Hash {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    Hash(bytes)
}

/// The engine's form of a hash.
pub fn digest_of(hash: &Hash) -> Digest {
    Digest::from(hash.0)
}

/// Our form of a public key.
pub fn public_key_of(key: &ed25519::PublicKey) -> PublicKey {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(key.as_ref());
    PublicKey(bytes)
}

/// The engine's form of a public key; `None` if the bytes are no point of the curve.
pub fn engine_key_of(key: &PublicKey) -> Option<ed25519::PublicKey> {
    ed25519::PublicKey::decode(Copying(&key.0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use commonware_consensus::types::{Epoch, Round, View};
    use commonware_cryptography::{Digest as _, Signer as _};
    use commonware_utils::non_empty_range;

    #[test]
    fn a_header_has_one_encoding_and_every_field_changes_its_hash() {
        let original = Header::new(HeaderFields {
            chain: Hash([1; 32]),
            height: 5,
            context: Context {
                round: Round::new(Epoch::zero(), View::zero()),
                leader: ed25519::PrivateKey::decode(Copying(&[7u8; 32]))
                    .unwrap()
                    .public_key(),
                parent: (View::zero(), Digest::EMPTY),
            },
            time_ms: 1_700_000_000_000,
            body_root: Hash([2; 32]),
            receipts_root: Hash([5; 32]),
            state_root: Hash([3; 32]),
            state_log: Target::new(
                Digest::from([9; 32]),
                non_empty_range!(Location::new(3), Location::new(300)),
            ),
            outbox: Hash([4; 32]),
        });
        let bytes = original.encode();
        assert_eq!(bytes.len(), original.encode_size());
        assert!(bytes.len() <= Header::MAX_ENCODE_SIZE);
        assert_eq!(Header::decode(bytes.clone()).unwrap(), original);
        assert!(Header::decode(bytes.slice(..bytes.len() - 1)).is_err());

        type Change = fn(&mut Header);
        let changes: [(&str, Change); 9] = [
            ("chain", |h| h.chain.0[0] ^= 1),
            ("height", |h| h.height += 1),
            ("context", |h| {
                h.context.round = Round::new(Epoch::zero(), View::new(9))
            }),
            ("time", |h| h.time_ms += 1),
            ("body", |h| h.body_root.0[0] ^= 1),
            ("receipts", |h| h.receipts_root.0[0] ^= 1),
            ("state", |h| h.state_root.0[0] ^= 1),
            ("log", |h| h.state_log.root = Digest::from([8; 32])),
            ("outbox", |h| h.outbox.0[0] ^= 1),
        ];
        for (name, change) in changes {
            let mut header = original.clone();
            change(&mut header);
            assert_ne!(header.hash(), original.hash(), "{name}");
        }
    }
}
