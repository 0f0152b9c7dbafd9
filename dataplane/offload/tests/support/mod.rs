//! Packets as `etherparse` writes them, which knows nothing of the code under test.
#![allow(dead_code, reason = "each test file is a crate and uses its part")]

use std::ops::Range;

use etherparse::{
    IpNumber, Ipv4Header, Ipv4Options, Ipv6Header, SlicedPacket, TcpHeader, TransportSlice,
    UdpHeader,
};
use proptest::prelude::*;
use topnet_offload::{Gso, Joiner, Offloaded, VnetHeader, take};

/// What all packets of a flow have in common.
#[derive(Clone, Debug)]
pub struct Flow {
    pub v6: bool,
    pub tcp: bool,
    /// The last byte of the source address and half of the source port.
    pub number: u8,
    pub traffic_class: u8,
    pub hop_limit: u8,
    pub dont_fragment: bool,
    pub ip_options_words: usize,
    pub tcp_options_words: usize,
}

/// What differs between them.
#[derive(Clone, Debug)]
pub struct Numbers {
    pub identification: u16,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub window: u16,
    pub fin: bool,
    pub psh: bool,
    pub cwr: bool,
}

pub fn flow() -> impl Strategy<Value = Flow> {
    (
        any::<(bool, bool, u8, u8, bool)>(),
        1u8..,
        prop_oneof![3 => Just(0usize), 1 => 1..=10usize],
        prop_oneof![Just(0usize), Just(3), 1..=10usize],
    )
        .prop_map(|(any, hop_limit, ip_options_words, tcp_options_words)| {
            let (v6, tcp, number, traffic_class, dont_fragment) = any;
            Flow {
                v6,
                tcp,
                number,
                traffic_class,
                hop_limit,
                dont_fragment,
                ip_options_words,
                tcp_options_words,
            }
        })
}

pub fn numbers() -> impl Strategy<Value = Numbers> {
    any::<(u16, u32, u32, u16, bool, bool, bool)>().prop_map(|any| {
        let (identification, sequence, acknowledgment, window, fin, psh, cwr) = any;
        Numbers {
            identification,
            sequence,
            acknowledgment,
            window,
            fin,
            psh,
            cwr,
        }
    })
}

impl Flow {
    /// A whole packet, all checksums right.
    pub fn packet(&self, numbers: &Numbers, payload: &[u8]) -> Vec<u8> {
        let v4 = self.v4(numbers);
        let v6 = self.v6_header(numbers);
        let transport = if self.tcp {
            let mut tcp = self.tcp_header(numbers);
            tcp.checksum = if self.v6 {
                tcp.calc_checksum_ipv6(&v6, payload).unwrap()
            } else {
                tcp.calc_checksum_ipv4(&v4, payload).unwrap()
            };
            tcp.to_bytes().to_vec()
        } else {
            let (from, to) = self.ports();
            let udp = if self.v6 {
                UdpHeader::with_ipv6_checksum(from, to, &v6, payload).unwrap()
            } else {
                UdpHeader::with_ipv4_checksum(from, to, &v4, payload).unwrap()
            };
            udp.to_bytes().to_vec()
        };
        let mut packet = self.ip(numbers, transport.len() + payload.len());
        packet.extend(transport);
        packet.extend(payload);
        packet
    }

    /// As a kernel with offloads hands it over: the checksum holds the pseudo-header's sum.
    pub fn unfinished(&self, numbers: &Numbers, payload: &[u8], segment: u16) -> Handed {
        let mut packet = self.packet(numbers, payload);
        let start = self.ip(numbers, 0).len();
        let offset = if self.tcp { 16 } else { 6 };
        let sum = self.pseudo_header_sum(packet.len() - start);
        packet[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
        let gso = match (segment, self.tcp, self.v6) {
            (0, ..) => Gso::None,
            (_, false, _) => Gso::UdpL4,
            (_, true, false) => Gso::TcpV4 { ecn: numbers.cwr },
            (_, true, true) => Gso::TcpV6 { ecn: numbers.cwr },
        };
        let header = VnetHeader {
            needs_checksum: true,
            data_valid: false,
            gso,
            header_bytes: packet.len() as u16,
            segment_bytes: segment,
            checksum_start: start as u16,
            checksum_offset: offset as u16,
        };
        Handed { header, packet }
    }

    /// A payload for which the transport's checksum is zero.
    pub fn payload_to_zero(&self, numbers: &Numbers, payload_bytes: usize) -> Vec<u8> {
        let mut payload = vec![0; payload_bytes];
        let packet = self.packet(numbers, &payload);
        let at = self.ip(numbers, 0).len() + if self.tcp { 16 } else { 6 };
        payload[..2].copy_from_slice(&packet[at..at + 2]);
        payload
    }

    pub fn header_bytes(&self) -> usize {
        let ip = if self.v6 {
            40
        } else {
            20 + self.ip_options_words * 4
        };
        ip + if self.tcp {
            20 + self.tcp_options_words * 4
        } else {
            8
        }
    }

    fn ip(&self, numbers: &Numbers, transport_bytes: usize) -> Vec<u8> {
        if self.v6 {
            let mut ip = self.v6_header(numbers);
            ip.set_payload_length(transport_bytes).unwrap();
            ip.to_bytes().to_vec()
        } else {
            let mut ip = self.v4(numbers);
            ip.set_payload_len(transport_bytes).unwrap();
            ip.header_checksum = ip.calc_header_checksum();
            ip.to_bytes().to_vec()
        }
    }

    fn v4(&self, numbers: &Numbers) -> Ipv4Header {
        let mut ip = Ipv4Header::new(
            0,
            self.hop_limit,
            self.protocol(),
            [10, 78, 0, self.number],
            [10, 77, 2, 2],
        )
        .unwrap();
        ip.dscp = (self.traffic_class >> 2).try_into().unwrap();
        ip.ecn = (self.traffic_class & 3).try_into().unwrap();
        ip.identification = numbers.identification;
        ip.dont_fragment = self.dont_fragment;
        // No-operation options.
        let options = [1u8; 40];
        ip.options = Ipv4Options::try_from(&options[..self.ip_options_words * 4]).unwrap();
        ip
    }

    fn v6_header(&self, _: &Numbers) -> Ipv6Header {
        let mut address = [0xfd; 16];
        address[15] = self.number;
        Ipv6Header {
            traffic_class: self.traffic_class,
            flow_label: (u32::from(self.number) * 1000).try_into().unwrap(),
            payload_length: 0,
            next_header: self.protocol(),
            hop_limit: self.hop_limit,
            source: address,
            destination: [0xfc; 16],
        }
    }

    fn tcp_header(&self, numbers: &Numbers) -> TcpHeader {
        let (from, to) = self.ports();
        let mut tcp = TcpHeader::new(from, to, numbers.sequence, numbers.window);
        tcp.ack = true;
        tcp.acknowledgment_number = numbers.acknowledgment;
        tcp.fin = numbers.fin;
        tcp.psh = numbers.psh;
        tcp.cwr = numbers.cwr;
        let options = [1u8; 40];
        tcp.set_options_raw(&options[..self.tcp_options_words * 4])
            .unwrap();
        tcp
    }

    fn ports(&self) -> (u16, u16) {
        (40_000 + u16::from(self.number % 2), 443)
    }

    fn protocol(&self) -> IpNumber {
        if self.tcp {
            IpNumber::TCP
        } else {
            IpNumber::UDP
        }
    }

    fn pseudo_header_sum(&self, transport_bytes: usize) -> u16 {
        let numbers = Numbers::default();
        let mut bytes = if self.v6 {
            let ip = self.v6_header(&numbers);
            [ip.source, ip.destination].concat()
        } else {
            let ip = self.v4(&numbers);
            [ip.source, ip.destination].concat()
        };
        bytes.extend((transport_bytes as u16).to_be_bytes());
        bytes.extend([0, self.protocol().0]);
        let mut sum = bytes
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
            .sum::<u32>();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            identification: 7,
            sequence: 1,
            acknowledgment: 2,
            window: 500,
            fin: false,
            psh: false,
            cwr: false,
        }
    }
}

/// What a device hands over, or is handed.
#[derive(Clone, Debug)]
pub struct Handed {
    pub header: VnetHeader,
    pub packet: Vec<u8>,
}

impl Handed {
    /// The complete packets in it.
    pub fn packets(&self) -> Vec<Vec<u8>> {
        let mut bytes = self.packet.clone();
        match take(&self.header, &mut bytes).unwrap() {
            Offloaded::Whole(packet) => vec![packet.to_vec()],
            Offloaded::Super(mut segments) => {
                let mut packets = Vec::new();
                let mut out = vec![0; segments.packet_bytes_max()];
                while let Some(bytes) = segments.next_into(&mut out).unwrap() {
                    packets.push(out[..bytes].to_vec());
                }
                packets
            }
        }
    }
}

/// Packets one after the other in one arena, with some room between.
pub fn arena(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut bytes = Vec::new();
    let mut places = Vec::new();
    for packet in packets {
        bytes.extend([0xee; 3]);
        places.push(bytes.len()..bytes.len() + packet.len());
        bytes.extend(packet);
    }
    (bytes, places)
}

/// What a joiner writes of these packets.
pub fn joined(joiner: &mut Joiner, packets: &[Vec<u8>]) -> Vec<Handed> {
    let (mut bytes, places) = arena(packets);
    for place in places {
        joiner.add(&bytes, place).unwrap();
    }
    let mut handed = Vec::new();
    joiner.drain(&mut bytes, |header, parts, arena| {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &arena[part.clone()]).collect();
        handed.push(Handed {
            header: *header,
            packet: parts.concat(),
        });
    });
    assert!(joiner.is_empty());
    handed
}

/// Whether `etherparse` finds the packet whole and all its checksums right.
pub fn is_sound(packet: &[u8]) -> bool {
    let Ok(sliced) = SlicedPacket::from_ip(packet) else {
        return false;
    };
    let transport = sliced.transport.unwrap();
    match sliced.net.unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            header.header_checksum == header.calc_header_checksum()
                && match transport {
                    TransportSlice::Tcp(tcp) => {
                        tcp.calc_checksum_ipv4(header.source, header.destination)
                            == Ok(tcp.checksum())
                    }
                    TransportSlice::Udp(udp) => {
                        udp.to_header().calc_checksum_ipv4_raw(
                            header.source,
                            header.destination,
                            udp.payload(),
                        ) == Ok(udp.checksum())
                    }
                    _ => false,
                }
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            match transport {
                TransportSlice::Tcp(tcp) => {
                    tcp.calc_checksum_ipv6(header.source, header.destination) == Ok(tcp.checksum())
                }
                TransportSlice::Udp(udp) => {
                    udp.to_header().calc_checksum_ipv6_raw(
                        header.source,
                        header.destination,
                        udp.payload(),
                    ) == Ok(udp.checksum())
                }
                _ => false,
            }
        }
        _ => false,
    }
}
