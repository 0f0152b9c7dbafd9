//! What Dapps and clients see over JSON-RPC: the offer, and a session's start and stop.
//!
//! Values are written for people and browsers: keys and ids in hex, WireGuard's keys in base64
//! as its own tools have them, amounts as decimal strings of nTOP.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey, Signature};

use crate::{ChainName, ChainParameters};

/// What a provider offers, and everything that a client must know to take it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Offer {
    /// What the provider calls itself.
    pub name: String,
    /// Where it is.
    pub region: String,
    /// The service, and the chain that its channels are on.
    pub service: ChainName,
    /// Whom a channel must pay.
    pub payee: Address,
    /// Bytes in one unit.
    pub unit_bytes: u64,
    /// What one unit costs.
    pub unit_price: Amount,
    /// How far the payer's count may stay behind the provider's, in millionths.
    pub epsilon_ppm: u32,
    /// The most units that the provider lets a payer pay ahead.
    pub window_units_max: u64,
    /// Channels that close faster are not served.
    pub close_window_blocks_min: u64,
    /// The least that a channel must still have to start a session, in units.
    pub headroom_units_min: u64,
    /// Where WireGuard packets go.
    pub wireguard_endpoint: SocketAddr,
    /// The gateway's WireGuard key.
    pub wireguard_public_key: WireguardPublicKey,
    /// Where payments go.
    pub payment: PaymentEndpoint,
    /// The chains that the provider answers for.
    pub chains: Vec<ChainParameters>,
}

/// Where payments go, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PaymentEndpoint {
    /// UDP address of the QUIC listener.
    pub address: SocketAddr,
    /// The key that the listener proves to hold.
    pub key: PublicKey,
}

/// What a client asks to be done with its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionAction {
    /// Let the WireGuard key have service that the channel pays for.
    Start,
    /// Take it away again.
    Stop,
}

/// A request to start or stop a session, with the consent of the channel's signer key.
///
/// Signed bytes: length of the domain (1 byte) ‖ `topnet/session/1` ‖ action (1: start = 1,
/// stop = 2) ‖ channel (32) ‖ WireGuard public key (32) ‖ nonce (8, little-endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionRequest {
    /// The channel that pays.
    pub channel: ChannelId,
    /// The client's key. Its private half never leaves the client.
    pub wireguard_public_key: WireguardPublicKey,
    /// Higher than in any earlier request of the channel, so that nobody can repeat an old one.
    /// Milliseconds since 1970 do.
    pub nonce: u64,
    /// The signer key's.
    pub signature: Signature,
}

impl SessionRequest {
    const DOMAIN: &[u8] = b"topnet/session/1";

    /// A request that is yet to be signed.
    pub fn unsigned(channel: ChannelId, key: WireguardPublicKey, nonce: u64) -> Self {
        let signature = Signature([0; 64]);
        Self {
            channel,
            wireguard_public_key: key,
            nonce,
            signature,
        }
    }

    /// What the channel's signer key signs to consent to `action`.
    pub fn signed_bytes(&self, action: SessionAction) -> Vec<u8> {
        let action = match action {
            SessionAction::Start => 1,
            SessionAction::Stop => 2,
        };
        [
            [Self::DOMAIN.len() as u8].as_slice(),
            Self::DOMAIN,
            &[action],
            self.channel.as_bytes(),
            &self.wireguard_public_key.0,
            &self.nonce.to_le_bytes(),
        ]
        .concat()
    }

    /// The session that the request is about.
    pub fn session(&self) -> SessionId {
        SessionId(self.wireguard_public_key)
    }
}

/// A session's name: its WireGuard key, which only one session can have. It stays the same
/// whatever slot the channel has.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct SessionId(pub WireguardPublicKey);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SessionId {
    type Err = WireguardKeyError;

    fn from_str(text: &str) -> Result<Self, WireguardKeyError> {
        text.parse().map(Self)
    }
}

/// A session that may have service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionGrant {
    /// Its name.
    pub session: SessionId,
    /// The channel that pays.
    pub channel: ChannelId,
    /// How to configure WireGuard.
    pub wireguard: WireguardConfig,
    /// Where to pay, from the first unit on.
    pub payment: PaymentEndpoint,
    /// False while the data plane has yet to learn of it; it will.
    pub installed: bool,
}

/// A session that has no service any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionStopped {
    /// Its name.
    pub session: SessionId,
    /// False if there was none.
    pub stopped: bool,
}

/// A WireGuard client's configuration, but for its private key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WireguardConfig {
    /// The gateway's key.
    pub server_public_key: WireguardPublicKey,
    /// The gateway's address and UDP port.
    pub endpoint: SocketAddr,
    /// The one IPv4 address that the client may use in the tunnel.
    pub address: Ipv4Addr,
    /// The one IPv6 address, where the provider has IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// Networks that are reached through the tunnel, in CIDR notation.
    pub allowed_ips: Vec<String>,
    /// Resolvers.
    pub dns: Vec<Ipv4Addr>,
    /// Largest IP packet in the tunnel.
    pub mtu: u16,
    /// Seconds after which an idle client shows itself to the NATs before it.
    pub persistent_keepalive_s: u16,
}

impl WireguardConfig {
    /// The file that `wg-quick` reads. Without a private key there is a line to put it in.
    pub fn to_wg_quick(&self, private_key: Option<&str>) -> String {
        let list = |items: Vec<String>| items.join(", ");
        let mut text = "[Interface]\n".to_owned();
        text += &match private_key {
            Some(key) => format!("PrivateKey = {}\n", key.trim()),
            None => "# PrivateKey = (yours)\n".to_owned(),
        };
        let six = self.address6.map(|address| format!(", {address}/128"));
        let six = six.unwrap_or_default();
        text += &format!("Address = {}/32{six}\nMTU = {}\n", self.address, self.mtu);
        if !self.dns.is_empty() {
            let dns = self.dns.iter().map(ToString::to_string).collect();
            text += &format!("DNS = {}\n", list(dns));
        }
        text + &self.peer_section()
    }

    /// The file that `wg setconf` reads: the address, MTU and routes are set beside it.
    pub fn to_wg(&self, private_key: Option<&str>) -> String {
        let interface = private_key
            .map(|key| format!("[Interface]\nPrivateKey = {}\n", key.trim()))
            .unwrap_or_default();
        interface + &self.peer_section()
    }

    fn peer_section(&self) -> String {
        format!(
            "\n[Peer]\nPublicKey = {}\nEndpoint = {}\nAllowedIPs = {}\nPersistentKeepalive = {}\n",
            self.server_public_key,
            self.endpoint,
            self.allowed_ips.join(", "),
            self.persistent_keepalive_s,
        )
    }
}

/// A Curve25519 public key; text form base64, as `wg` shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(example = WireguardPublicKey::example())]
pub struct WireguardPublicKey(
    // 32 bytes leave two bits of the last character unused, which are zero.
    #[schemars(
        with = "String",
        regex(pattern = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$")
    )]
    pub [u8; 32],
);

/// Text that is not a WireGuard key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a WireGuard key: expected 44 characters of base64, as `wg pubkey` prints")]
pub struct WireguardKeyError(String);

impl WireguardPublicKey {
    /// What a schema shows.
    fn example() -> Self {
        Self([0; 32])
    }
}

impl HexBytes {
    /// What a schema shows.
    fn example() -> Self {
        Self(vec![0, 0xab])
    }
}

impl fmt::Display for WireguardPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for WireguardPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for WireguardPublicKey {
    type Err = WireguardKeyError;

    fn from_str(text: &str) -> Result<Self, WireguardKeyError> {
        let error = || WireguardKeyError(text.chars().take(64).collect());
        let bytes = BASE64_STANDARD.decode(text).map_err(|_| error())?;
        bytes.try_into().map(Self).map_err(|_| error())
    }
}

impl Serialize for WireguardPublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WireguardPublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Transaction bytes in JSON: 0x and hex.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(example = HexBytes::example())]
pub struct HexBytes(
    #[schemars(with = "String", regex(pattern = "^0x([0-9a-f]{2})*$"))] pub Vec<u8>,
);

impl fmt::Display for HexBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for HexBytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || "expected 0x and an even number of hex digits".to_owned();
        let digits = text.strip_prefix("0x").ok_or_else(malformed)?.as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some((digit(*high)? << 4 | digit(*low)?) as u8),
            _ => None,
        };
        digits
            .chunks(2)
            .map(byte)
            .collect::<Option<_>>()
            .map(Self)
            .ok_or_else(malformed)
    }
}

impl Serialize for HexBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HexBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// A chain and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChainReport {
    /// What it is.
    #[serde(flatten)]
    pub parameters: ChainParameters,
    /// Its newest final block.
    pub height: u64,
    /// The block's hash.
    pub tip: Hash,
    /// The block's time, milliseconds since 1970.
    pub time_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";

    #[test]
    fn wireguard_keys_are_base64_of_32_bytes() {
        let key: WireguardPublicKey = KEY.parse().unwrap();
        assert_eq!(key.to_string(), KEY);
        for text in [
            "",
            "AQID",
            &KEY[..43],
            "!QIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=",
        ] {
            assert!(text.parse::<WireguardPublicKey>().is_err(), "{text}");
        }
    }

    /// Clients in other languages sign these bytes.
    #[test]
    fn golden_signed_bytes_of_a_session_request() {
        let request = SessionRequest::unsigned(ChannelId([9; 32]), KEY.parse().unwrap(), 0x0102);
        let start = request.signed_bytes(SessionAction::Start);
        assert_eq!(
            HexBytes(start.clone()).to_string(),
            "0x10746f706e65742f73657373696f6e2f3101\
             0909090909090909090909090909090909090909090909090909090909090909\
             0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20\
             0201000000000000"
        );
        let stop = request.signed_bytes(SessionAction::Stop);
        assert_ne!(start, stop);
    }

    #[test]
    fn config_is_what_wireguards_tools_read() {
        let config = WireguardConfig {
            server_public_key: KEY.parse().unwrap(),
            endpoint: "203.0.113.1:51820".parse().unwrap(),
            address: Ipv4Addr::new(10, 78, 0, 2),
            address6: None,
            allowed_ips: vec!["0.0.0.0/0".to_owned()],
            dns: vec![Ipv4Addr::new(10, 78, 0, 1)],
            mtu: 1_420,
            persistent_keepalive_s: 25,
        };
        let peer = format!(
            "\n[Peer]\nPublicKey = {KEY}\nEndpoint = 203.0.113.1:51820\nAllowedIPs = 0.0.0.0/0\n\
             PersistentKeepalive = 25\n"
        );
        let quick = "[Interface]\nPrivateKey = secret\nAddress = 10.78.0.2/32\nMTU = 1420\n\
                     DNS = 10.78.0.1\n";
        assert_eq!(
            config.to_wg_quick(Some("secret\n")),
            format!("{quick}{peer}")
        );
        assert_eq!(config.to_wg(None), peer);
        let six = WireguardConfig {
            address6: Some("fd78::2".parse().unwrap()),
            ..config
        };
        let text = six.to_wg_quick(None);
        assert!(
            text.contains("Address = 10.78.0.2/32, fd78::2/128\n"),
            "{text}"
        );
    }

    #[test]
    fn bytes_are_written_in_hex() {
        let bytes = HexBytes(vec![0, 0xab]);
        assert_eq!(bytes.to_string(), "0x00ab");
        assert_eq!("0x00ab".parse(), Ok(bytes));
        for text in ["", "00", "0x0", "0x0g"] {
            assert!(text.parse::<HexBytes>().is_err(), "{text}");
        }
    }
}
