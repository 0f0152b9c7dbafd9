//! A NAT under test: packets are written and read by a library that nobody here wrote, and each
//! one that comes out is checked by it.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{
    Icmpv4Header, Icmpv4Slice, Ipv4Slice, PacketBuilder, TcpHeader, TcpHeaderSlice, UdpHeader,
    UdpSlice,
};
use topnet_nat::{Config, MappingStatus, Nat44, Outward, Protocol, Refusal, Subscriber};

pub const POOL: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
pub const SEED: [u8; 32] = *b"the seed of a NAT that is a test";

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// Subscriber `number`'s inner address, and a port.
pub fn inner(number: u32, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + number), port)
}

/// Somebody outside.
pub fn remote(number: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, number), port)
}

pub fn udp(source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (source.ip().octets(), destination.ip().octets());
    let builder = PacketBuilder::ipv4(from, to, 64).udp(source.port(), destination.port());
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

pub fn tcp(source: SocketAddrV4, destination: SocketAddrV4, flags: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (source.ip().octets(), destination.ip().octets());
    let mut header = TcpHeader::new(source.port(), destination.port(), 7_000_000, 8192);
    header.fin = flags & FIN != 0;
    header.syn = flags & SYN != 0;
    header.rst = flags & RST != 0;
    header.ack = flags & ACK != 0;
    let mut bytes = Vec::new();
    PacketBuilder::ipv4(from, to, 64)
        .tcp_header(header)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

/// An echo request: the source's port is its identifier.
pub fn request(source: SocketAddrV4, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(source.ip().octets(), destination.octets(), 64)
        .icmpv4_echo_request(source.port(), 1);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// An echo reply: the destination's port is its identifier.
pub fn reply(source: Ipv4Addr, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(source.octets(), destination.ip().octets(), 64)
        .icmpv4_echo_reply(destination.port(), 1);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// An ICMP message of any type, after whose eight bytes `payload` stands.
pub fn icmp(source: Ipv4Addr, destination: Ipv4Addr, kind: u8, payload: &[u8]) -> Vec<u8> {
    let builder =
        PacketBuilder::ipv4(source.octets(), destination.octets(), 64).icmpv4_raw(kind, 1, [0; 4]);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

/// A packet of the protocol from end to end; of ICMP a request, if it goes out.
pub fn packet(
    protocol: Protocol,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    is_out: bool,
) -> Vec<u8> {
    match (protocol, is_out) {
        (Protocol::Udp, _) => udp(source, destination, b"payload"),
        (Protocol::Tcp, _) => tcp(source, destination, SYN, b""),
        (Protocol::Icmp, true) => request(source, *destination.ip(), b"payload"),
        (Protocol::Icmp, false) => reply(*source.ip(), destination, b"payload"),
    }
}

/// Both ends of a packet that is no fragment. A query's identifier is the port of both.
pub fn ends(bytes: &[u8]) -> (SocketAddrV4, SocketAddrV4) {
    let ip = Ipv4Slice::from_slice(bytes).unwrap();
    let transport = ip.payload().payload;
    let word = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
    let (source, destination) = match bytes[9] {
        1 => (word(4), word(4)),
        _ => (word(0), word(2)),
    };
    let header = ip.header();
    (
        SocketAddrV4::new(header.source_addr(), source),
        SocketAddrV4::new(header.destination_addr(), destination),
    )
}

/// Fails unless the packet's checksums are what they should be; a fragment's header's alone.
pub fn check_sums(bytes: &[u8]) {
    let ip = Ipv4Slice::from_slice(bytes).unwrap();
    let header = ip.header().to_header();
    assert_eq!(header.calc_header_checksum(), header.header_checksum);
    if ip.is_payload_fragmented() {
        return;
    }
    let payload = ip.payload().payload;
    match bytes[9] {
        1 => {
            let slice = Icmpv4Slice::from_slice(payload).unwrap();
            let header: Icmpv4Header = slice.header();
            let computed = header.icmp_type.calc_checksum(slice.payload());
            assert_eq!(computed, header.checksum, "of ICMP");
        }
        6 => {
            let slice = TcpHeaderSlice::from_slice(payload).unwrap();
            let header = slice.to_header();
            let data = &payload[slice.slice().len()..];
            let computed = header
                .calc_checksum_ipv4(&ip.header().to_header(), data)
                .unwrap();
            assert_eq!(computed, header.checksum, "of TCP");
        }
        17 => {
            let slice = UdpSlice::from_slice(payload).unwrap();
            let header: UdpHeader = slice.to_header();
            let computed = header
                .calc_checksum_ipv4(&ip.header().to_header(), slice.payload())
                .unwrap();
            assert!(
                header.checksum == 0 || computed == header.checksum,
                "of UDP"
            );
        }
        other => panic!("protocol {other}"),
    }
}

/// The packet in two fragments, the first with `first_bytes` of payload (a multiple of eight).
pub fn fragments(whole: &[u8], identification: u16, first_bytes: usize) -> [Vec<u8>; 2] {
    let parts = [&whole[20..20 + first_bytes], &whole[20 + first_bytes..]];
    [0, 1].map(|nth: usize| {
        let mut bytes = [&whole[..20], parts[nth]].concat();
        let total = bytes.len() as u16;
        let flags = if nth == 0 { 0x2000 } else { 0 };
        let offset = if nth == 0 { 0 } else { first_bytes as u16 / 8 };
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes[4..6].copy_from_slice(&identification.to_be_bytes());
        bytes[6..8].copy_from_slice(&(flags | offset).to_be_bytes());
        mend_header(&mut bytes);
        bytes
    })
}

/// The whole of two fragments.
pub fn reassembled(fragments: &[Vec<u8>; 2]) -> Vec<u8> {
    let mut bytes = [&fragments[0][..], &fragments[1][20..]].concat();
    let total = bytes.len() as u16;
    bytes[2..4].copy_from_slice(&total.to_be_bytes());
    bytes[6..8].copy_from_slice(&[0, 0]);
    mend_header(&mut bytes);
    bytes
}

/// Computes the IPv4 header's checksum anew.
pub fn mend_header(bytes: &mut [u8]) {
    bytes[10..12].copy_from_slice(&[0, 0]);
    let sum = internet_checksum(&bytes[..usize::from(bytes[0] & 0xf) * 4]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// RFC 1071, the plain way.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A NAT and its time.
pub struct World {
    pub nat: Nat44,
    pub now_ms: u64,
}

impl World {
    pub fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(POOL.to_vec());
        config.limits.mappings_max = 4096;
        config.limits.flows_max = 8192;
        config.limits.subscribers_max = 64;
        change(&mut config);
        Self {
            nat: Nat44::new(config, SEED).unwrap(),
            now_ms: 1_000_000,
        }
    }

    /// Lets time pass and ends what is over.
    pub fn wait(&mut self, seconds: u64) {
        self.now_ms += seconds * 1000;
        self.nat.sweep(self.now_ms, usize::MAX);
    }

    /// Lets time pass and ends nothing.
    pub fn wait_unswept(&mut self, milliseconds: u64) {
        self.now_ms += milliseconds;
    }

    /// Removes a subscriber, with all that it has.
    pub fn remove(&mut self, subscriber: u32) {
        self.nat.remove(self.now_ms, Subscriber(subscriber));
        self.nat.sweep(self.now_ms, usize::MAX);
    }

    /// Translates a packet from a subscriber, and checks what can be checked of any.
    pub fn out(&mut self, subscriber: u32, bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut packet = bytes.to_vec();
        let subscriber = Subscriber(subscriber);
        let result = self.nat.translate_out(self.now_ms, subscriber, &mut packet);
        if result.is_err() {
            assert_eq!(packet, bytes, "a refused packet is unchanged");
        }
        let outward = result?;
        check_sums(&packet);
        let destination = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
        let returns = self.pool().contains(&destination);
        assert_eq!(outward == Outward::Returns, returns);
        Ok(packet)
    }

    /// Translates a packet from outside.
    pub fn back(&mut self, bytes: &[u8]) -> Result<(u32, Vec<u8>), Refusal> {
        let mut packet = bytes.to_vec();
        let result = self.nat.translate_in(self.now_ms, &mut packet);
        if result.is_err() {
            assert_eq!(packet, bytes, "a refused packet is unchanged");
        }
        let subscriber = result?;
        check_sums(&packet);
        Ok((subscriber.0, packet))
    }

    fn pool(&self) -> Vec<Ipv4Addr> {
        POOL.to_vec()
    }

    /// Sends from a subscriber and returns the external end.
    pub fn call(
        &mut self,
        protocol: Protocol,
        subscriber: u32,
        from: SocketAddrV4,
        to: SocketAddrV4,
    ) -> Result<SocketAddrV4, Refusal> {
        let sent = self.out(subscriber, &packet(protocol, from, to, true))?;
        let (external, destination) = ends(&sent);
        assert_eq!(destination.ip(), to.ip());
        if protocol != Protocol::Icmp {
            assert_eq!(destination.port(), to.port());
        }
        Ok(external)
    }

    /// Sends from outside and returns whose it is and the inner end.
    pub fn answer(
        &mut self,
        protocol: Protocol,
        from: SocketAddrV4,
        to: SocketAddrV4,
    ) -> Result<(u32, SocketAddrV4), Refusal> {
        let (subscriber, received) = self.back(&packet(protocol, from, to, false))?;
        let (source, inner) = ends(&received);
        assert_eq!(source.ip(), from.ip());
        if protocol != Protocol::Icmp {
            assert_eq!(source.port(), from.port());
        }
        Ok((subscriber, inner))
    }

    /// A TCP packet from a subscriber.
    pub fn tcp_out(
        &mut self,
        subscriber: u32,
        from: SocketAddrV4,
        to: SocketAddrV4,
        flags: u8,
    ) -> Result<SocketAddrV4, Refusal> {
        let sent = self.out(subscriber, &tcp(from, to, flags, b""))?;
        Ok(ends(&sent).0)
    }

    /// A TCP packet from outside.
    pub fn tcp_back(
        &mut self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        flags: u8,
    ) -> Result<(u32, SocketAddrV4), Refusal> {
        let (subscriber, received) = self.back(&tcp(from, to, flags, b""))?;
        Ok((subscriber, ends(&received).1))
    }

    /// An open connection of subscriber 1; its external end.
    pub fn connect(&mut self, from: SocketAddrV4, to: SocketAddrV4) -> SocketAddrV4 {
        let external = self.tcp_out(1, from, to, SYN).unwrap();
        self.tcp_back(to, external, SYN | ACK).unwrap();
        self.tcp_out(1, from, to, ACK).unwrap();
        external
    }

    pub fn mappings(&self, subscriber: u32) -> Vec<MappingStatus> {
        self.nat.mappings(Subscriber(subscriber)).collect()
    }
}
