//! The lane `vpn` starts gateways as an operator would; this says when one no longer forwards.
#![allow(clippy::unwrap_used)]

use topnet_bench::lanes::{Setup, Size, all};
use topnet_lab::interrupt::Interrupt;
use topnet_netns::root_tests;

#[test]
fn our_gateway_forwards_both_ways_and_shakes_hands() {
    if !root_tests() {
        return;
    }
    let lanes = all(&Setup {
        interrupt: Interrupt::default(),
        program: env!("CARGO_BIN_EXE_topnet-bench").into(),
        size: Size::Tiny,
    });
    let lane = lanes.iter().find(|lane| lane.name() == "vpn").unwrap();
    let mut cases = lane.cases().unwrap();
    for name in [
        "vpn/udp-overload-seal-offload",
        "vpn/udp-open-wire",
        "vpn/tcp1-down-wire",
        "vpn/latency-idle",
        "vpn/handshakes",
        "vpn/udp-open-64peers-wire",
        "vpn/nat-flows",
        "vpn/handshake-storm",
    ] {
        let case = cases.iter_mut().find(|case| case.name == name).unwrap();
        let measured = case.ours.measure().unwrap();
        assert!(measured.samples > 0 && measured.value > 0.0, "{measured:?}");
    }
}
