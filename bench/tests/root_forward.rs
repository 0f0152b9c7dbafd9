//! The lane `forward` puts a gateway together by itself; this says when it no longer forwards.
#![allow(clippy::unwrap_used)]

use topnet_bench::lanes::{Setup, Size, all};
use topnet_lab::interrupt::Interrupt;
use topnet_netns::root_tests;

#[test]
fn the_gateway_and_the_kernel_forward_the_flood() {
    if !root_tests() {
        return;
    }
    let lanes = all(&Setup {
        interrupt: Interrupt::default(),
        program: env!("CARGO_BIN_EXE_topnet-bench").into(),
        size: Size::Standard,
    });
    let lane = lanes.iter().find(|lane| lane.name() == "forward").unwrap();
    let mut cases = lane.cases().unwrap();
    let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "forward/64-metered",
            "forward/64-unmetered",
            "forward/1400-metered",
            "forward/1400-unmetered",
            "forward/metering-cost",
        ]
    );
    let metered = &mut cases[0];
    let (_, kernel) = &mut metered.peers[0];
    for contender in [&mut metered.ours, kernel] {
        // An error if nothing arrived.
        let measured = contender.measure().unwrap();
        assert!(measured.samples > 0 && measured.value > 0.0, "{measured:?}");
    }
}
