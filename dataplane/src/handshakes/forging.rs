//! What anybody can do who knows the gateway's public key, for tests.

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use boringtun::x25519::PublicKey;

/// Makes the first MAC of a changed handshake message fit again.
pub(crate) fn refit_first_mac(gateway: &PublicKey, message: &mut [u8]) {
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(gateway.as_bytes());
    let mut mac = Blake2sMac::<U16>::new_from_slice(&key.finalize()).unwrap();
    let at = message.len() - 32;
    Update::update(&mut mac, &message[..at]);
    message[at..at + 16].copy_from_slice(&mac.finalize_fixed());
}
