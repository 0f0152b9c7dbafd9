//! The lane `metering` starts other processes and asks the product for its own words; this says
//! when one of its cases no longer runs.
#![allow(clippy::unwrap_used)]

use topnet_bench::lanes::{Setup, Size, all};
use topnet_lab::interrupt::Interrupt;

#[test]
fn every_case_runs_at_its_smallest() {
    let lanes = all(&Setup {
        interrupt: Interrupt::default(),
        program: env!("CARGO_BIN_EXE_topnet-bench").into(),
        size: Size::Tiny,
    });
    let lane = lanes.iter().find(|lane| lane.name() == "metering").unwrap();
    let mut names = Vec::new();
    for mut case in lane.cases().unwrap() {
        let mut ours = vec![(String::new(), case.ours)];
        ours.append(&mut case.peers);
        for (who, contender) in &mut ours {
            let measured = contender
                .measure()
                .unwrap_or_else(|error| panic!("{} {who}: {error:#}", case.name));
            assert!(measured.samples > 0, "{} {who}: {measured:?}", case.name);
            assert!(
                measured.value.is_finite(),
                "{} {who}: {measured:?}",
                case.name
            );
            // What passes beyond what was paid for is nothing.
            let is_nothing = case.name == "unit/overrun" && who.is_empty();
            assert_eq!(
                measured.value == 0.0,
                is_nothing,
                "{} {who}: {measured:?}",
                case.name
            );
            let latency = measured.latency.is_some();
            let tells = ["ring/cross-process", "metering/credit-latency"];
            assert!(
                latency || !tells.contains(&case.name.as_str()),
                "{} {who}",
                case.name
            );
        }
        names.push(case.name);
    }
    assert_eq!(
        names,
        [
            "ring/cross-process",
            "metering/durable",
            "metering/quic",
            "metering/quic-one-token-per-unit",
            "metering/credit-latency",
            "metering/flood-garbage",
            "metering/flood-strangers",
            "metering/flood-forgers",
            "metering/refuse",
            "metering/connections",
            "unit/cost",
            "unit/overrun",
            "journal/recovery",
        ]
    );
}
