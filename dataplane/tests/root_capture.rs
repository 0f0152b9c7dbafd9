//! Inner packets are copied for whoever may see them, and for nobody else.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use support::{CLIENT_INNER, Echo, Gateway, ORIGIN, WireGuard, base64, eventually, ip, unlimited};
use topnet_api::{
    CAPTURE_ALL, CAPTURE_REFUSED, CaptureRecord, PCAP_RECORD_BYTES, SocketName, pcap_header,
};
use topnet_netns::root_tests;

const PAYLOAD_BYTES: usize = 100;
const TRIPS: usize = 20;

fn ask(gateway: &Gateway, request: &str) -> UnixStream {
    let path = SocketName::Captures.below(&gateway.home.runtime_dir());
    let mut socket = UnixStream::connect(path).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    socket
}

/// A capture that is under way.
fn begin(gateway: &Gateway, request: &str) -> UnixStream {
    let mut socket = ask(gateway, request);
    let mut header = [0; 24];
    socket.read_exact(&mut header).unwrap();
    assert_eq!(header, pcap_header());
    // Workers hear of it between two bursts.
    sleep(Duration::from_millis(50));
    socket
}

/// Ends it: its packets, and how many were lost.
fn end(mut socket: UnixStream) -> (Vec<Vec<u8>>, u32) {
    socket.shutdown(Shutdown::Write).unwrap();
    let mut packets = Vec::new();
    loop {
        let mut record = [0; PCAP_RECORD_BYTES];
        socket.read_exact(&mut record).unwrap();
        match CaptureRecord::from_bytes(record).unwrap() {
            CaptureRecord::End { lost } => return (packets, lost),
            CaptureRecord::Packet { bytes, .. } => {
                let mut packet = vec![0; bytes as usize];
                socket.read_exact(&mut packet).unwrap();
                packets.push(packet);
            }
        }
    }
}

fn refusal(gateway: &Gateway, request: &str) -> String {
    let mut words = String::new();
    ask(gateway, request).read_to_string(&mut words).unwrap();
    words.strip_prefix(CAPTURE_REFUSED).unwrap().to_owned()
}

fn copied_both_ways(mut gateway: Gateway, interface: &str) {
    let client = WireGuard::start(&gateway, interface);
    let slot = gateway.admit(&client);
    let metering = gateway.attach();
    metering.credit.grant(slot, unlimited());
    let echo = Echo::new(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(PAYLOAD_BYTES));
    echo.drain();
    let socket = SocketName::Captures.below(&gateway.home.runtime_dir());
    let mode = fs::metadata(socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let peer = format!("peer={}\n", base64(&client.public_key));
    for request in [CAPTURE_ALL, &peer] {
        let capture = begin(&gateway, request);
        // One at a time.
        assert!(refusal(&gateway, CAPTURE_ALL).contains("another capture"));
        for _ in 0..TRIPS {
            assert!(echo.round_trip(PAYLOAD_BYTES));
        }
        let (packets, lost) = end(capture);
        assert_eq!((packets.len(), lost), (2 * TRIPS, 0));
        for pair in packets.chunks(2) {
            for (packet, [from, to]) in pair
                .iter()
                .zip([[CLIENT_INNER, ORIGIN], [ORIGIN, CLIENT_INNER]])
            {
                assert_eq!(packet.len(), 28 + PAYLOAD_BYTES);
                assert_eq!(packet[12..16], from.octets());
                assert_eq!(packet[16..20], to.octets());
                assert_eq!(packet[28..], [0x5a; PAYLOAD_BYTES]);
            }
        }
    }
    // What goes no further is copied too, also where it is too large for the tunnel.
    let too_large = 1_408;
    ip(
        &gateway.topology.client,
        &format!("link set {interface} mtu 1440"),
    );
    let capture = begin(&gateway, CAPTURE_ALL);
    assert!(!echo.round_trip(too_large));
    let (packets, lost) = end(capture);
    assert_eq!(lost, 0);
    assert!(packets.iter().any(|it| it.len() == 28 + too_large));

    let stranger = format!("peer={}\n", base64(&[7; 32]));
    eventually("the last one is over", || {
        refusal(&gateway, &stranger).contains("no peer")
    });
    assert!(refusal(&gateway, "everything\n").contains("request"));
    // One that is gone without a word is over too.
    drop(begin(&gateway, CAPTURE_ALL));
    eventually("there is room for the next", || {
        !refusal(&gateway, &stranger).contains("another")
    });
    assert!(echo.round_trip(PAYLOAD_BYTES));
}

#[test]
fn inner_packets_are_copied_over_frames() {
    if !root_tests() {
        return;
    }
    copied_both_ways(Gateway::start("capx"), "tncapx");
}

#[test]
fn inner_packets_are_copied_over_the_kernel() {
    if !root_tests() {
        return;
    }
    copied_both_ways(Gateway::start_on_kernel("capk"), "tncapk");
}
