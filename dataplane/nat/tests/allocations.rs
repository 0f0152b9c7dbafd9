//! Nothing is allocated after the start: neither for packets of flows that there are, nor for
//! those that begin, end, are swept or removed.
#![allow(clippy::unwrap_used)]

mod support;

use allocation_counter::measure;
use support::{POOL, SEED, fragments, inner, remote, udp};
use topnet_nat::{Config, Nat44, Subscriber};

#[test]
fn nothing_is_allocated_after_the_start() {
    let mut config = Config::new(POOL.to_vec());
    config.limits.mappings_max = 64;
    config.limits.flows_max = 64;
    config.limits.subscribers_max = 8;
    config.limits.fragments_max = 16;
    let mut nat = Nat44::new(config, SEED).unwrap();
    let mut packets: Vec<_> = (0..2000_u32)
        .map(|nth| {
            let subscriber = nth % 10;
            let from = inner(subscriber, 1 + (nth % 37) as u16);
            let whole = udp(from, remote((nth % 5) as u8, 9), &[0; 40]);
            let [first, _] = fragments(&whole, nth as u16, 16);
            (
                Subscriber(subscriber),
                if nth % 3 == 0 { first } else { whole },
            )
        })
        .collect();
    let mut passed = 0;
    let info = measure(|| {
        nat.look_ahead_out(packets.iter().map(|(from, packet)| (*from, &packet[..])));
        nat.look_ahead_in(packets.iter().map(|(_, packet)| &packet[..]));
        for (nth, (subscriber, packet)) in packets.iter_mut().enumerate() {
            let now_ms = nth as u64 * 2000;
            passed += u32::from(nat.translate_out(now_ms, *subscriber, packet).is_ok());
            nat.sweep(now_ms, 4);
            if nth % 100 == 0 {
                nat.remove(now_ms, Subscriber(nth as u32 % 7));
            }
            while nat.take_event().is_some() {}
        }
    });
    assert!(passed > 500, "{passed}");
    assert_eq!(info.count_total, 0);
}
