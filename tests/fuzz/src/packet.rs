//! The data plane's headers, against `etherparse`.

use std::net::IpAddr;

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, UdpHeaderSlice, checksum::Sum16BitWords};
use topnet_dataplane::icmp::{self, Problem};
use topnet_dataplane::packet::{
    Ethernet, IPV4_BYTES, IPV6_BYTES, Ip, Ipv4, Ipv6, UDP_BYTES, Udp, Version, decrement_hops,
};

use crate::headers::UDP;

/// A frame from a client or from the uplink, and the same bytes as a packet out of a tunnel.
pub(crate) fn packet(frame: &[u8]) {
    if let Ok(ethernet) = Ethernet::parse(frame) {
        let packet = &frame[14..];
        let alone = match ethernet.version {
            Version::V4 => Ipv4::parse(packet).map(Ip::from),
            Version::V6 => Ipv6::parse(packet).map(Ip::from),
        };
        assert_eq!(ethernet.packet(frame), alone);
        ipv4(packet);
        ipv6(packet);
    }
    ipv4(frame);
    ipv6(frame);
    answer(frame);
}

/// What is said of a packet that goes no further is a packet, and is not answered itself.
fn answer(packet: &[u8]) {
    let Ok(ip) = Ip::parse(packet) else {
        return;
    };
    let source = match ip.source {
        IpAddr::V4(_) => IpAddr::from([203, 0, 113, 1]),
        IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
    };
    let about = &packet[..ip.total_bytes];
    for problem in [Problem::HopsExceeded, Problem::TooLarge { mtu: 1420 }] {
        let mut out = [0; icmp::BYTES_MAX];
        let Some(bytes) = icmp::write(&mut out, about, source, problem) else {
            continue;
        };
        let answer = Ip::parse(&out[..bytes]).unwrap();
        assert_eq!((answer.source, answer.destination), (source, ip.source));
        assert_eq!(answer.total_bytes, bytes);
        let again = icmp::write(&mut [0; icmp::BYTES_MAX], &out[..bytes], source, problem);
        assert_eq!(again, None);
    }
}

fn ipv4(packet: &[u8]) {
    let ours = Ipv4::parse(packet);
    assert_eq!(ours.is_ok(), is_sound(packet), "{packet:02x?}");
    let Ok(ip) = ours else {
        return;
    };
    assert!((IPV4_BYTES..=ip.total_bytes).contains(&ip.header_bytes));
    assert!(ip.total_bytes <= packet.len(), "billed beyond what arrived");
    let theirs = Ipv4HeaderSlice::from_slice(packet).unwrap();
    assert_eq!(ip.source, theirs.source_addr());
    assert_eq!(ip.destination, theirs.destination_addr());
    assert_eq!(ip.ttl, theirs.ttl());
    assert_eq!(ip.fragment, theirs.is_fragmenting_payload());
    let datagram = &packet[ip.header_bytes..ip.total_bytes];
    let expected = ip.protocol == UDP && !ip.fragment && is_datagram(datagram);
    assert_eq!(udp(packet, &ip.into()), expected);
    if ip.ttl > 1 {
        let mut forwarded = packet.to_vec();
        decrement_hops(&mut forwarded);
        let ttl = ip.ttl - 1;
        assert_eq!(Ipv4::parse(&forwarded), Ok(Ipv4 { ttl, ..ip }));
    }
}

fn ipv6(packet: &[u8]) {
    let ours = Ipv6::parse(packet);
    let theirs = Ipv6HeaderSlice::from_slice(packet).ok();
    let theirs = theirs.filter(|h| IPV6_BYTES + usize::from(h.payload_length()) <= packet.len());
    assert_eq!(ours.is_ok(), theirs.is_some(), "{packet:02x?}");
    let (Ok(ip), Some(theirs)) = (ours, theirs) else {
        return;
    };
    assert!(ip.total_bytes <= packet.len(), "billed beyond what arrived");
    assert_eq!(ip.source, theirs.source_addr());
    assert_eq!(ip.destination, theirs.destination_addr());
    assert_eq!(ip.hop_limit, theirs.hop_limit());
    assert_eq!(ip.next_header, theirs.next_header().0);
    let either = Ip::parse(packet);
    assert_eq!(either.map(|ip| ip.source), Ok(IpAddr::from(ip.source)));
    let datagram = &packet[IPV6_BYTES..ip.total_bytes];
    let expected = ip.next_header == UDP && is_datagram(datagram);
    assert_eq!(udp(packet, &ip.into()), expected);
    if ip.hop_limit > 1 {
        let mut forwarded = packet.to_vec();
        decrement_hops(&mut forwarded);
        let hop_limit = ip.hop_limit - 1;
        assert_eq!(Ipv6::parse(&forwarded), Ok(Ipv6 { hop_limit, ..ip }));
    }
}

/// Whether there is a datagram, which lies within its packet then.
fn udp(packet: &[u8], ip: &Ip) -> bool {
    let Ok(udp) = Udp::parse(packet, ip) else {
        return false;
    };
    assert!(udp.payload.start == ip.header_bytes + UDP_BYTES);
    assert!(udp.payload.end <= ip.total_bytes && udp.payload.start <= udp.payload.end);
    true
}

/// Whether a datagram is as long as it says, or longer.
fn is_datagram(bytes: &[u8]) -> bool {
    let header = UdpHeaderSlice::from_slice(bytes);
    header.is_ok_and(|header| (UDP_BYTES..=bytes.len()).contains(&usize::from(header.length())))
}

/// What `etherparse` takes for an IPv4 header that is whole, with lengths that fit.
fn is_sound(packet: &[u8]) -> bool {
    let Ok(header) = Ipv4HeaderSlice::from_slice(packet) else {
        return false;
    };
    let total = usize::from(header.total_len());
    total >= header.slice().len()
        && total <= packet.len()
        // Not by way of its header's fields: they lack the reserved bit.
        && Sum16BitWords::new().add_slice(header.slice()).ones_complement() == 0
}
