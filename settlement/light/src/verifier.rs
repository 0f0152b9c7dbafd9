//! The engine's cryptography as ledgers and light clients see it: one Ed25519 (ZIP-215), and
//! one check that a header is final.

use std::{cell::RefCell, collections::HashMap, num::NonZeroUsize, thread};

use commonware_codec::{
    Buf, Copying, Decode, DecodeExt, EncodeSize, Error as CodecError, RangeCfg, Read, ReadExt,
    Write,
};
use commonware_consensus::simplex::{scheme::ed25519::Scheme, types::Finalization};
use commonware_cryptography::{
    BatchEntry, BatchVerifier as _, Verifier as _,
    ed25519::{PublicKey as EngineKey, Signature as EngineSignature},
    sha256::Digest,
};
use commonware_parallel::Sequential;
use commonware_runtime::BufMut;
use commonware_utils::{TryFromIterator as _, ordered::Set};
use topnet_account::{Hash, PublicKey};
use topnet_ledger::machine::{FinalHeader, Key, Signed, Verifier};

use crate::{
    VALIDATORS_MAX, VALUE_BYTES_MAX,
    header::{Header, digest_of, engine_key_of},
    value::{PROOF_HASHES_MAX, ValueProof, is_proved},
};

const CONSENSUS_DOMAIN: &[u8] = b"topnet/consensus/1";
/// From how many signatures on a batch is worth its preparation.
const BATCH_MIN: usize = 4;
/// From how many signatures on a thread of their own is worth its start. The mempool's batches
/// are smaller, and its threads several already.
const PART_MIN: usize = 2_048;
/// Keys that a thread remembers, at most.
const KEYS_MAX: usize = 16_384;

/// A header and the certificate that it is final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The header.
    pub header: Header,
    /// The certificate.
    pub finalization: Finalization<Scheme, Digest>,
}

impl Write for Proof {
    fn write(&self, buf: &mut impl BufMut) {
        self.header.write(buf);
        self.finalization.write(buf);
    }
}

impl EncodeSize for Proof {
    fn encode_size(&self) -> usize {
        self.header.encode_size() + self.finalization.encode_size()
    }
}

impl Read for Proof {
    /// Number of validators.
    type Cfg = usize;

    fn read_cfg(buf: &mut impl Buf, validators: &usize) -> Result<Self, CodecError> {
        Ok(Self {
            header: Header::read(buf)?,
            finalization: Finalization::read_cfg(buf, validators)?,
        })
    }
}

/// A value of a chain's state and the way from it to the state's root.
pub struct StateValue {
    /// The value.
    pub value: Vec<u8>,
    /// From the value up to the root.
    pub proof: ValueProof,
}

impl StateValue {
    /// The value, if it stands under `key` in the state with this root.
    fn in_state(self, root: &Hash, key: &Key) -> Option<Vec<u8>> {
        let Self { value, proof } = self;
        is_proved(key, value.clone(), &proof, &digest_of(root)).then_some(value)
    }
}

impl Write for StateValue {
    fn write(&self, buf: &mut impl BufMut) {
        self.value.write(buf);
        self.proof.write(buf);
    }
}

impl EncodeSize for StateValue {
    fn encode_size(&self) -> usize {
        self.value.encode_size() + self.proof.encode_size()
    }
}

impl Read for StateValue {
    type Cfg = ();

    fn read_cfg(buf: &mut impl Buf, (): &()) -> Result<Self, CodecError> {
        Ok(Self {
            value: Vec::read_cfg(buf, &(RangeCfg::from(0..=VALUE_BYTES_MAX), ()))?,
            proof: ValueProof::read_cfg(buf, &PROOF_HASHES_MAX)?,
        })
    }
}

/// A value of a chain's state, and the proof that the header with the state's root is final.
pub struct StateProof {
    /// The block whose state it is.
    pub block: Proof,
    /// The value, up to the header's state root.
    pub value: StateValue,
}

impl Write for StateProof {
    fn write(&self, buf: &mut impl BufMut) {
        self.block.write(buf);
        self.value.write(buf);
    }
}

impl EncodeSize for StateProof {
    fn encode_size(&self) -> usize {
        self.block.encode_size() + self.value.encode_size()
    }
}

impl Read for StateProof {
    /// Number of validators.
    type Cfg = usize;

    fn read_cfg(buf: &mut impl Buf, validators: &usize) -> Result<Self, CodecError> {
        Ok(Self {
            block: Proof::read_cfg(buf, validators)?,
            value: StateValue::read(buf)?,
        })
    }
}

/// What consensus votes are signed under: a vote counts on one chain only.
pub fn namespace(chain: &Hash) -> Vec<u8> {
    [CONSENSUS_DOMAIN, chain.as_ref()].concat()
}

/// A validator set as the engine orders it; `None` if it is empty, too large, names a key
/// twice, or has bytes that are no key.
pub fn committee(validators: &[PublicKey]) -> Option<Set<EngineKey>> {
    if validators.is_empty() || validators.len() > VALIDATORS_MAX {
        return None;
    }
    let keys: Option<Vec<EngineKey>> = validators.iter().map(engine_key_of).collect();
    Set::try_from_iter(keys?).ok()
}

/// The engine's cryptography. It has no state.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineVerifier;

/// One signature in the engine's terms.
struct Entry<'a> {
    key: EngineKey,
    namespace: &'a [u8],
    message: &'a [u8],
    signature: EngineSignature,
}

impl<'a> Entry<'a> {
    /// Splits the signed bytes into namespace and message as the engine joins them. Its length
    /// prefix is a varint, so a namespace has at most 127 bytes here.
    fn of(signed: &Signed<'a>) -> Option<Self> {
        let (length, rest) = signed.bytes.split_first()?;
        if *length > 127 {
            return None;
        }
        let (namespace, message) = rest.split_at_checked(usize::from(*length))?;
        Some(Self {
            key: decoded_key(signed.key)?,
            namespace,
            message,
            signature: EngineSignature::decode(Copying(&signed.signature.0)).ok()?,
        })
    }

    fn holds(&self) -> bool {
        self.key
            .verify(self.namespace, self.message, &self.signature)
    }
}

/// A key as it was decoded before on this thread. Payees close thousands of channels with one
/// key, and decoding it costs a fifth of its signature's check.
fn decoded_key(key: &PublicKey) -> Option<EngineKey> {
    thread_local! {
        static KEYS: RefCell<HashMap<PublicKey, EngineKey>> = RefCell::default();
    }
    KEYS.with_borrow_mut(|keys| {
        if let Some(known) = keys.get(key) {
            return Some(known.clone());
        }
        if keys.len() == KEYS_MAX {
            keys.clear();
        }
        let decoded = engine_key_of(key)?;
        keys.insert(*key, decoded.clone());
        Some(decoded)
    })
}

fn all_hold(signed: &[Signed<'_>]) -> bool {
    let Some(entries) = signed.iter().map(Entry::of).collect::<Option<Vec<_>>>() else {
        return false;
    };
    if entries.len() < BATCH_MIN {
        return entries.iter().all(Entry::holds);
    }
    EngineKey::verify_batch(
        &mut rand::rng(),
        &entries,
        |_, entry| BatchEntry {
            namespace: entry.namespace,
            message: entry.message,
            public_key: &entry.key,
            signature: &entry.signature,
        },
        &Sequential,
    )
}

impl Verifier for EngineVerifier {
    fn signatures_hold(&self, signed: &[Signed<'_>]) -> bool {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let part = signed.len().div_ceil(threads).max(PART_MIN);
        thread::scope(|scope| {
            let mut parts = signed.chunks(part);
            let own = parts.next().unwrap_or_default();
            let others: Vec<_> = parts.map(|part| scope.spawn(|| all_hold(part))).collect();
            let holds = all_hold(own);
            // A part that ended with a panic was not checked.
            others
                .into_iter()
                .fold(holds, |holds, other| other.join().unwrap_or(false) && holds)
        })
    }

    fn final_header(
        &self,
        chain: &Hash,
        validators: &[PublicKey],
        proof: &[u8],
    ) -> Option<FinalHeader> {
        let header = self.prove(chain, validators, proof)?;
        Some(FinalHeader {
            height: header.height(),
            outbox: header.outbox(),
            state_root: header.state_root(),
        })
    }

    fn state_value(&self, root: &Hash, key: &Key, proof: &[u8]) -> Option<Vec<u8>> {
        StateValue::decode(Copying(proof)).ok()?.in_state(root, key)
    }
}

impl EngineVerifier {
    /// The whole header that `proof` shows to be final; see [`Verifier::final_header`].
    pub fn prove(&self, chain: &Hash, validators: &[PublicKey], proof: &[u8]) -> Option<Header> {
        let committee = committee(validators)?;
        let proof = Proof::decode_cfg(Copying(proof), &committee.len()).ok()?;
        header_of(chain, committee, proof)
    }

    /// The value that `proof` shows to stand under `key` in a chain's state, and the final header
    /// of the block whose state it is.
    pub fn prove_value(
        &self,
        chain: &Hash,
        validators: &[PublicKey],
        key: &Key,
        proof: &[u8],
    ) -> Option<(Header, Vec<u8>)> {
        let committee = committee(validators)?;
        let proof = StateProof::decode_cfg(Copying(proof), &committee.len()).ok()?;
        let StateProof { block, value } = proof;
        let header = header_of(chain, committee, block)?;
        let value = value.in_state(&header.state_root(), key)?;
        Some((header, value))
    }
}

/// The header, if it is the chain's and its certificate holds.
fn header_of(chain: &Hash, committee: Set<EngineKey>, proof: Proof) -> Option<Header> {
    let holds = proof.header.chain() == *chain
        && proof.finalization.proposal.payload == proof.header.digest()
        && proof.finalization.verify(
            &mut rand::rng(),
            &Scheme::verifier(&namespace(chain), committee),
            &Sequential,
        );
    holds.then_some(proof.header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use topnet_account::Signature;
    use topnet_channel::SecretKey;

    fn signed_bytes(domain: &[u8], message: &[u8]) -> Vec<u8> {
        [&[domain.len() as u8], domain, message].concat()
    }

    #[test]
    fn what_the_other_processes_sign_holds_alone_and_in_a_batch() {
        for count in [1, BATCH_MIN - 1, BATCH_MIN, 40] {
            let keys: Vec<SecretKey> = (0..count)
                .map(|i| SecretKey::from_seed([i as u8; 32]).unwrap())
                .collect();
            let bytes: Vec<Vec<u8>> = (0..count)
                .map(|i| signed_bytes(b"topnet/test/1", &[i as u8; 100]))
                .collect();
            let publics: Vec<PublicKey> = keys.iter().map(SecretKey::public_key).collect();
            let mut signatures: Vec<Signature> = keys
                .iter()
                .zip(&bytes)
                .map(|(key, bytes)| key.sign(bytes))
                .collect();
            let holds = |signatures: &[Signature]| {
                let signed: Vec<Signed<'_>> = (0..count)
                    .map(|i| Signed {
                        key: &publics[i],
                        bytes: &bytes[i],
                        signature: &signatures[i],
                    })
                    .collect();
                EngineVerifier.signatures_hold(&signed)
            };
            assert!(holds(&signatures), "{count}");
            signatures[count - 1].0[3] ^= 1;
            assert!(!holds(&signatures), "{count}, one forged");
        }
        assert!(EngineVerifier.signatures_hold(&[]));
    }

    /// A large batch is checked in parts, none of which may be left out.
    #[test]
    fn one_forgery_anywhere_in_a_large_batch_is_found() {
        let key = SecretKey::from_seed([1; 32]).unwrap();
        let public = key.public_key();
        let bytes = signed_bytes(b"topnet/test/1", &[7; 100]);
        let (good, mut bad) = (key.sign(&bytes), key.sign(&bytes));
        bad.0[40] ^= 1;
        let with = |place: Option<usize>| {
            let signature = |i| if Some(i) == place { &bad } else { &good };
            let signed: Vec<Signed<'_>> = (0..2 * PART_MIN + 1)
                .map(|i| Signed {
                    key: &public,
                    bytes: &bytes,
                    signature: signature(i),
                })
                .collect();
            EngineVerifier.signatures_hold(&signed)
        };
        assert!(with(None));
        for place in [0, PART_MIN - 1, PART_MIN, 2 * PART_MIN] {
            assert!(!with(Some(place)), "{place}");
        }
    }

    #[test]
    fn bytes_without_a_whole_domain_do_not_hold() {
        let key = SecretKey::from_seed([1; 32]).unwrap();
        let public = key.public_key();
        for bytes in [vec![], vec![5, 1, 2], [&[200][..], &[7; 300]].concat()] {
            let signature = key.sign(&bytes);
            let signed = Signed {
                key: &public,
                bytes: &bytes,
                signature: &signature,
            };
            assert!(!EngineVerifier.signatures_hold(&[signed]), "{bytes:?}");
        }
    }

    #[test]
    fn a_committee_names_each_key_once() {
        let key = SecretKey::from_seed([1; 32]).unwrap().public_key();
        let other = SecretKey::from_seed([2; 32]).unwrap().public_key();
        assert!(committee(&[key, other]).is_some());
        assert!(committee(&[]).is_none());
        assert!(committee(&[key, key]).is_none());
        assert!(committee(&vec![key; VALIDATORS_MAX + 1]).is_none());
    }
}
