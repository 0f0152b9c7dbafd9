//! Says when a case of the lane `settlement` no longer runs.
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
    let lane = lanes
        .iter()
        .find(|lane| lane.name() == "settlement")
        .unwrap();
    let mut names = Vec::new();
    for mut case in lane.cases().unwrap() {
        let mut contenders = vec![(String::new(), case.ours)];
        contenders.append(&mut case.peers);
        for (who, contender) in &mut contenders {
            let measured = contender
                .measure()
                .unwrap_or_else(|error| panic!("{} {who}: {error:#}", case.name));
            assert_eq!(measured.samples, 300, "{} {who}", case.name);
            assert!(measured.value > 0.0 && measured.latency.is_some());
            assert_eq!(
                measured.beside.contains_key("start"),
                case.name == "settlement/state"
            );
        }
        names.push(case.name);
    }
    let expected = ["closes", "claims", "opens", "transfers", "state"];
    assert_eq!(names, expected.map(|name| format!("settlement/{name}")));
}
