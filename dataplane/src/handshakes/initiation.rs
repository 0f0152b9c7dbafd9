//! Opening a handshake initiation: who sent it, and when (WireGuard paper, section 5.4.2).
//!
//! boringtun tells who an initiation is from, but that is only its sender's word until the
//! timestamp is opened, with a key that takes the sender's private key or ours. Anybody who knows
//! a peer's public key could name it, and a peer's own initiation can be sent again by whoever has
//! seen it. So both is looked at here, as boringtun does it once more where the handshake is made.

use blake2::{Blake2s256, Digest};
use boringtun::x25519::PublicKey;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::INITIATION_BYTES;
use crate::session::Identity;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const HASH_BYTES: usize = 32;
const HASH_BLOCK_BYTES: usize = 64;
const TAG_BYTES: usize = 16;
const TIMESTAMP_BYTES: usize = 12;
const EPHEMERAL_AT: usize = 8;
const STATIC_AT: usize = EPHEMERAL_AT + 32;
const TIMESTAMP_AT: usize = STATIC_AT + 32 + TAG_BYTES;
const MACS_AT: usize = TIMESTAMP_AT + TIMESTAMP_BYTES + TAG_BYTES;
const _: () = assert!(MACS_AT + 32 == INITIATION_BYTES);

/// When a peer began a handshake (TAI64N, whose bytes are in the order of time).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Timestamp([u8; TIMESTAMP_BYTES]);

/// The private key of one side with the public key of the other: what both know.
pub(super) type Shared = [u8; 32];

/// What an initiation says before it is known that its sender may say so.
pub(super) struct Claim {
    /// The key that its sender says is its own.
    pub(super) peer: [u8; 32],
    chain: [u8; HASH_BYTES],
    hash: [u8; HASH_BYTES],
    sealed_timestamp: [u8; TIMESTAMP_BYTES + TAG_BYTES],
}

/// What both sides know of each other, if `peer` is who it says. A Curve25519 operation.
pub(super) fn shared(identity: &Identity, peer: [u8; 32]) -> Shared {
    let peer = PublicKey::from(peer);
    identity.private.diffie_hellman(&peer).to_bytes()
}

impl Claim {
    /// Opens the sender's key; `None` if that does not decrypt. A Curve25519 operation.
    pub(super) fn open(identity: &Identity, message: &[u8; INITIATION_BYTES]) -> Option<Self> {
        let ephemeral: [u8; 32] = message[EPHEMERAL_AT..STATIC_AT].try_into().ok()?;
        let sealed_static = &message[STATIC_AT..TIMESTAMP_AT];
        let sealed_timestamp = message[TIMESTAMP_AT..MACS_AT].try_into().ok()?;

        let mut chain = hash(&[CONSTRUCTION]);
        let mut transcript = hash(&[&hash(&[&chain, IDENTIFIER]), identity.public.as_bytes()]);
        transcript = hash(&[&transcript, &ephemeral]);
        chain = hmac(&hmac(&chain, &[&ephemeral]), &[&[1]]);
        let key;
        (chain, key) = derive(&chain, &shared(identity, ephemeral));
        let peer = open(&key, &transcript, sealed_static)?;
        transcript = hash(&[&transcript, sealed_static]);
        Some(Self {
            peer,
            chain,
            hash: transcript,
            sealed_timestamp,
        })
    }

    /// Opens the timestamp; `None` if its sender is not who it says.
    pub(super) fn timestamp(&self, shared: &Shared) -> Option<Timestamp> {
        let (_, key) = derive(&self.chain, shared);
        open(&key, &self.hash, &self.sealed_timestamp).map(Timestamp)
    }
}

fn hash(parts: &[&[u8]]) -> [u8; HASH_BYTES] {
    let mut hash = Blake2s256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// HMAC (RFC 2104) of BLAKE2s; keys are no longer than a block.
fn hmac(key: &[u8; HASH_BYTES], parts: &[&[u8]]) -> [u8; HASH_BYTES] {
    let pad = |with: u8| {
        let mut block = [with; HASH_BLOCK_BYTES];
        for (byte, key) in block.iter_mut().zip(key) {
            *byte ^= key;
        }
        block
    };
    let mut inner = Blake2s256::new();
    inner.update(pad(0x36));
    for part in parts {
        inner.update(part);
    }
    hash(&[&pad(0x5c), inner.finalize().as_slice()])
}

/// The next chaining key, and the key of what is sealed next.
fn derive(chain: &[u8; HASH_BYTES], input: &[u8]) -> ([u8; HASH_BYTES], [u8; HASH_BYTES]) {
    let secret = hmac(chain, &[input]);
    let next = hmac(&secret, &[&[1]]);
    (next, hmac(&secret, &[&next, &[2]]))
}

/// Opens what is sealed with a key of its own, which is why there is no nonce.
fn open<const BYTES: usize>(
    key: &[u8; HASH_BYTES],
    transcript: &[u8; HASH_BYTES],
    sealed: &[u8],
) -> Option<[u8; BYTES]> {
    const SEALED_BYTES_MAX: usize = 32 + TAG_BYTES;
    let mut buffer = [0; SEALED_BYTES_MAX];
    let buffer = buffer.get_mut(..sealed.len())?;
    buffer.copy_from_slice(sealed);
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).ok()?);
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let opened = key.open_in_place(nonce, Aad::from(transcript), buffer);
    (*opened.ok()?).try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use boringtun::noise::{Tunn, TunnResult};
    use boringtun::x25519::StaticSecret;

    fn initiation(client: &mut Tunn) -> [u8; INITIATION_BYTES] {
        let mut buffer = [0; 2048];
        match client.format_handshake_initiation(&mut buffer, true) {
            TunnResult::WriteToNetwork(message) => (*message).try_into().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_boringtun_seals_is_opened_and_nothing_else() {
        let identity = Identity::new([9; 32]);
        let private = StaticSecret::from([5; 32]);
        let public = PublicKey::from(&private).to_bytes();
        let mut client = Tunn::new(private, identity.public, None, None, 1, None);
        let message = initiation(&mut client);
        let shared = shared(&identity, public);
        let opened = |message: &[u8; INITIATION_BYTES]| {
            let claim = Claim::open(&identity, message)?;
            Some((claim.peer, claim.timestamp(&shared)?))
        };
        let (peer, first) = opened(&message).unwrap();
        assert_eq!(peer, public);
        std::thread::sleep(std::time::Duration::from_millis(1));
        let (_, second) = opened(&initiation(&mut client)).unwrap();
        assert!(second > first);
        for at in EPHEMERAL_AT..MACS_AT {
            let mut changed = message;
            changed[at] ^= 1;
            assert_eq!(opened(&changed), None, "byte {at}");
        }
        let other = Identity::new([8; 32]);
        assert!(Claim::open(&other, &message).is_none());
    }

    /// Somebody who knows two public keys and has neither private one.
    #[test]
    fn whoever_only_names_a_peer_is_found_out() {
        let identity = Identity::new([9; 32]);
        let peer = PublicKey::from(&StaticSecret::from([5; 32])).to_bytes();
        let forger = StaticSecret::from([6; 32]);
        let mut tunnel = Tunn::new(forger, identity.public, None, None, 1, None);
        let claim = Claim::open(&identity, &initiation(&mut tunnel)).unwrap();
        assert_eq!(claim.timestamp(&shared(&identity, peer)), None);
    }
}
