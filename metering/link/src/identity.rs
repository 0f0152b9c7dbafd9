//! Ed25519 keys as TLS identities: raw public keys (RFC 7250), no certificates.

use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key},
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
        UnixTime,
    },
    server::{
        AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use topnet_account::PublicKey;
use topnet_channel::SecretKey;
use zeroize::Zeroize;

/// The protocol and its version; ends that speak another one do not connect.
const ALPN: &[u8] = b"topnet-pay/1";
/// `SubjectPublicKeyInfo` of an Ed25519 key, before the key's own 32 bytes (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0,
];
/// PKCS #8 of an Ed25519 key, before the seed's 32 bytes (RFC 8410).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// TLS for the end that listens: any key may come, but it must be proved.
pub(crate) fn server(secret: &SecretKey) -> Result<QuicServerConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let identity = AlwaysResolvesServerRawPublicKeys::new(certified(secret, &provider)?);
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyKey(provider)))
        .with_cert_resolver(Arc::new(identity));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(no_initial_cipher)
}

/// TLS for the end that connects: only `pin`'s key is spoken to.
pub(crate) fn client(secret: &SecretKey, pin: Arc<Pin>) -> Result<QuicClientConfig, Error> {
    let provider = Arc::clone(&pin.provider);
    let identity = AlwaysResolvesClientRawPublicKeys::new(certified(secret, &provider)?);
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(pin)
        .with_client_cert_resolver(Arc::new(identity));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(no_initial_cipher)
}

/// The key that the other end of `connection` has proved to hold.
pub(crate) fn peer(connection: &quinn::Connection) -> Option<PublicKey> {
    let identity = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    let [key] = identity.as_slice() else {
        return None;
    };
    from_spki(key)
}

fn certified(secret: &SecretKey, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
    let mut pkcs8 = [PKCS8_PREFIX.as_slice(), secret.seed()].concat();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_slice()));
    let signer = provider.key_provider.load_private_key(der.clone_key());
    drop(der);
    pkcs8.zeroize();
    let spki = [SPKI_PREFIX.as_slice(), secret.public_key().as_bytes()].concat();
    Ok(Arc::new(CertifiedKey::new(
        vec![CertificateDer::from(spki)],
        signer?,
    )))
}

fn from_spki(spki: &[u8]) -> Option<PublicKey> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    Some(PublicKey(key.try_into().ok()?))
}

fn no_initial_cipher(error: impl std::fmt::Display) -> Error {
    Error::General(error.to_string())
}

fn not_a_key() -> Error {
    Error::InvalidCertificate(CertificateError::BadEncoding)
}

fn check_signature(
    provider: &CryptoProvider,
    message: &[u8],
    key: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = SubjectPublicKeyInfoDer::from(key.as_ref());
    let algorithms = &provider.signature_verification_algorithms;
    verify_tls13_signature_with_raw_key(message, &spki, signature, algorithms)
}

fn refuse_tls12() -> Error {
    Error::General("QUIC has no TLS 1.2".into())
}

/// Takes whatever Ed25519 key comes; what it may do is decided above.
#[derive(Debug)]
struct AnyKey(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match from_spki(key) {
            Some(_) if others.is_empty() => Ok(ClientCertVerified::assertion()),
            _ => Err(not_a_key()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(refuse_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(&self.0, message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Takes one key only, and remembers which one came instead.
#[derive(Debug)]
pub(crate) struct Pin {
    expected: PublicKey,
    found_instead: OnceLock<PublicKey>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug, thiserror::Error)]
#[error("the key is not the expected one")]
struct AnotherKey;

impl Pin {
    pub(crate) fn new(expected: PublicKey) -> Self {
        let provider = Arc::new(ring::default_provider());
        Self {
            expected,
            found_instead: OnceLock::new(),
            provider,
        }
    }

    /// The key that was refused, if one was.
    pub(crate) fn found_instead(&self) -> Option<PublicKey> {
        self.found_instead.get().copied()
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = from_spki(key)
            .filter(|_| others.is_empty())
            .ok_or_else(not_a_key)?;
        if found == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        let _ = self.found_instead.set(found);
        Err(Error::InvalidCertificate(CertificateError::Other(
            OtherError(Arc::new(AnotherKey)),
        )))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(refuse_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(&self.provider, message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
