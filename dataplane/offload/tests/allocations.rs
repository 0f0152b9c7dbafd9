//! Splitting and joining allocate nothing.
#![allow(clippy::unwrap_used)]

mod support;

use allocation_counter::measure;
use support::{Flow, Numbers, arena};
use topnet_offload::{JoinLimits, Joiner, Offloaded, take};

#[test]
fn a_burst_allocates_nothing() {
    let flow = |number| Flow {
        v6: false,
        tcp: true,
        number,
        traffic_class: 0,
        hop_limit: 64,
        dont_fragment: true,
        ip_options_words: 0,
        tcp_options_words: 3,
    };
    let mut handed = flow(0).unfinished(&Numbers::default(), &[3; 50_000], 300);
    let mut out = vec![0; 1500];
    let split = measure(|| {
        let Ok(Offloaded::Super(mut segments)) = take(&handed.header, &mut handed.packet) else {
            panic!("not a super-packet");
        };
        while segments.next_into(&mut out).unwrap().is_some() {}
    });
    assert_eq!(split.count_total, 0);

    // More packets, flows and parts of a group than are usual, and as many as it is made for.
    let mut numbers = Numbers::default();
    let packets: Vec<_> = (0..500)
        .map(|at| {
            let packet = flow(if at < 200 { 0 } else { at as u8 }).packet(&numbers, &[5; 100]);
            numbers.sequence += 100;
            packet
        })
        .collect();
    let (mut bytes, places) = arena(&packets);
    let mut joiner = Joiner::new(JoinLimits {
        packets_max: 500,
        flows_max: 16,
        join_udp: true,
    });
    let mut parts_max = 0;
    let join = measure(|| {
        for place in &places {
            joiner.add(&bytes, place.clone()).unwrap();
        }
        joiner.drain(&mut bytes, |_, parts, _| {
            parts_max = parts_max.max(parts.len())
        });
    });
    assert_eq!(join.count_total, 0);
    assert_eq!(parts_max, topnet_offload::PARTS_MAX);
}
