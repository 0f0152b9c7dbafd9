//! A WireGuard client in this process: it shakes hands, and seals packets before they are needed,
//! so that a measurement pays for the gateway's cryptography alone.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use topnet_lab::interrupt::Interrupt;
use topnet_lab::topology::{CLIENT, PROVIDER};
use topnet_netns::Namespace;

use super::WIREGUARD_PORT;
use super::gateway::{Gateway, Peer};

/// Longer than any WireGuard message here.
pub const MESSAGE_BYTES_MAX: usize = 2048;
/// What WireGuard adds to a packet.
pub const SEAL_BYTES: usize = 32;
/// How long an answer to an initiation may take before another is sent.
const ANSWER_WAIT: Duration = Duration::from_millis(300);
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);

/// One client, by its number.
pub struct Client {
    number: u8,
    tunnel: Tunn,
    socket: UdpSocket,
}

impl Client {
    /// The key of a client.
    pub fn secret(number: u8) -> StaticSecret {
        StaticSecret::from([number; 32])
    }

    /// Its address in the tunnel.
    pub fn inner(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, number)
    }

    /// As the gateway knows it.
    pub fn peer(number: u8) -> Peer {
        Peer {
            public_key: PublicKey::from(&Client::secret(number)).to_bytes(),
            inner: Client::inner(number),
        }
    }

    /// A client that has not shaken hands. Numbers are above 1, which is the gateway's address.
    pub fn create(namespace: &Namespace, number: u8) -> Result<Client> {
        let socket = namespace.enter(|| {
            let socket = UdpSocket::bind((CLIENT, 0))?;
            socket.connect(SocketAddrV4::new(PROVIDER, WIREGUARD_PORT))?;
            std::io::Result::Ok(socket)
        })?;
        let socket = socket.context("the client has no socket")?;
        socket.set_read_timeout(Some(ANSWER_WAIT))?;
        let secret = Client::secret(number);
        // By itself a client takes ten answers a second and asks for cookies then.
        let limiter = Arc::new(RateLimiter::new(&PublicKey::from(&secret), u64::MAX));
        let gateway = Gateway::public_key();
        let tunnel = Tunn::new(secret, gateway, None, None, number.into(), Some(limiter));
        Ok(Client {
            number,
            tunnel,
            socket,
        })
    }

    /// A client that has.
    pub fn connect(namespace: &Namespace, number: u8, interrupt: &Interrupt) -> Result<Client> {
        let mut client = Client::create(namespace, number)?;
        let deadline = Instant::now() + HANDSHAKE_WAIT;
        while !client.shake_hands()? {
            interrupt.check()?;
            ensure!(
                Instant::now() < deadline,
                "the gateway does not answer client {number}'s handshake within {} s",
                HANDSHAKE_WAIT.as_secs()
            );
        }
        Ok(client)
    }

    /// One initiation and its answer; false if there was none, or one that asks for a cookie to
    /// come with the next.
    pub fn shake_hands(&mut self) -> Result<bool> {
        let [mut near, mut far] = [[0; MESSAGE_BYTES_MAX]; 2];
        let initiation = self.tunnel.format_handshake_initiation(&mut near, true);
        let TunnResult::WriteToNetwork(initiation) = initiation else {
            bail!("the client makes no initiation: {initiation:?}");
        };
        self.socket.send(initiation)?;
        let Some(answer) = self.receive(&mut far)? else {
            return Ok(false);
        };
        let answer = &far[..answer];
        match self.tunnel.decapsulate(None, answer, &mut near) {
            // The first packet with the new keys, without which the gateway would not use them.
            TunnResult::WriteToNetwork(keepalive) => {
                self.socket.send(keepalive)?;
                Ok(true)
            }
            TunnResult::Done => Ok(false),
            other => bail!("the gateway's answer is no handshake: {other:?}"),
        }
    }

    /// Tells the gateway that somebody listens, or it would shake hands anew after a while.
    pub fn keep_alive(&mut self) -> Result<()> {
        let mut message = [0; MESSAGE_BYTES_MAX];
        let bytes = self.seal(&[], &mut message)?;
        self.socket.send(&message[..bytes])?;
        Ok(())
    }

    /// Seals an inner packet, which takes the next counter, and returns the message's length.
    pub fn seal(&mut self, packet: &[u8], message: &mut [u8]) -> Result<usize> {
        match self.tunnel.encapsulate(packet, message) {
            TunnResult::WriteToNetwork(sealed) => Ok(sealed.len()),
            other => bail!("client {} cannot seal: {other:?}", self.number),
        }
    }

    /// Opens a message; `None` if there is no packet in it.
    pub fn open<'a>(&mut self, message: &[u8], packet: &'a mut [u8]) -> Option<&'a [u8]> {
        match self.tunnel.decapsulate(None, message, packet) {
            TunnResult::WriteToTunnelV4(packet, _) => Some(packet),
            _ => None,
        }
    }

    /// The next message's length; `None` if none comes for a while.
    pub fn receive(&self, message: &mut [u8]) -> Result<Option<usize>> {
        match self.socket.recv(message) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if is_timeout(&error) => Ok(None),
            Err(error) => Err(error).context("the client cannot receive"),
        }
    }

    /// Its socket, connected to the gateway.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }
}

/// Nothing came in time, or nobody listens there yet.
fn is_timeout(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused
    )
}

/// An IPv4 packet of `bytes` with a UDP datagram from a client to `destination`, whose payload
/// begins with `begin`. Both checksums are right, as those of anybody's real traffic are: whoever
/// joins datagrams must check them.
pub fn inner_packet(
    source: SocketAddrV4,
    destination: SocketAddrV4,
    bytes: usize,
    begin: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0; bytes];
    let total = (bytes as u16).to_be_bytes();
    let udp_bytes = (bytes as u16 - 20).to_be_bytes();
    packet[..2].copy_from_slice(&[0x45, 0]);
    packet[2..4].copy_from_slice(&total);
    // Not to be fragmented, as Linux sends datagrams unless told otherwise.
    packet[6] = 0x40;
    packet[8..10].copy_from_slice(&[64, 17]);
    packet[12..16].copy_from_slice(&source.ip().octets());
    packet[16..20].copy_from_slice(&destination.ip().octets());
    let of_header = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&of_header.to_be_bytes());
    packet[20..22].copy_from_slice(&source.port().to_be_bytes());
    packet[22..24].copy_from_slice(&destination.port().to_be_bytes());
    packet[24..26].copy_from_slice(&udp_bytes);
    packet[28..28 + begin.len()].copy_from_slice(begin);
    // The pseudo-header (RFC 768) is the addresses, the protocol and the length again.
    let mut summed = packet[12..].to_vec();
    summed.extend([0, 17]);
    summed.extend(udp_bytes);
    // Zero would say that there is none.
    let of_datagram = match checksum(&summed) {
        0 => 0xffff,
        sum => sum,
    };
    packet[26..28].copy_from_slice(&of_datagram.to_be_bytes());
    packet
}

/// RFC 1071, of an even number of bytes, in which the checksum itself is still zero.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use topnet_dataplane::packet::{Ipv4, Udp};

    #[test]
    fn inner_packets_are_what_the_product_parses() {
        let source = SocketAddrV4::new(Client::inner(2), 5);
        let destination = SocketAddrV4::new(Ipv4Addr::new(10, 77, 2, 2), 9);
        let packet = inner_packet(source, destination, 1400, b"begin");
        let ip = Ipv4::parse(&packet).unwrap();
        assert_eq!(
            (ip.source, ip.destination),
            (*source.ip(), *destination.ip())
        );
        assert_eq!(ip.total_bytes, 1400);
        let udp = Udp::parse(&packet, &ip.into()).unwrap();
        assert_eq!((udp.source_port, udp.destination_port), (5, 9));
        assert!(packet[udp.payload].starts_with(b"begin"));
        // A header with its checksum sums up to nothing.
        assert_eq!(checksum(&packet[..20]), 0);
        let pseudo_header = [&[0, 17], &packet[24..26]].concat();
        assert_eq!(checksum(&[&packet[12..], &pseudo_header].concat()), 0);
    }
}
