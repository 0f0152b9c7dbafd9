//! What a tap sees: inner packets as peers send them and are sent them.

use super::*;
use crate::capture::Tap;
use std::time::Duration;

#[test]
fn a_tap_sees_both_ways_and_what_is_refused_once_it_is_open() {
    let mut bench = Bench::connected();
    let key = bench.session().plan.public_key;
    let tap = Arc::new(Tap::new(Some(key), 1_420));
    assert!(bench.plane.change_tap(Some(Arc::clone(&tap))).is_none());
    let up = udp(INNER, ORIGIN, 64, 100);
    let refused = udp(INNER, [10, 99, 0, 1], 64, 20);
    bench.up(&up).expect("it passes");
    assert_eq!(bench.up(&refused), None);
    // A source that is not the peer's is not its packet.
    assert_eq!(bench.up(&udp([10, 78, 0, 7], ORIGIN, 64, 20)), None);
    bench.down(&udp(ORIGIN, INNER, 64, 50)).expect("it passes");
    let (_, answer) = bench.up(&udp(INNER, ORIGIN, 1, 8)).expect("an answer");
    let answer = bench.client_opens(&answer[OUTER_BYTES..]);
    bench.plane.change_tap(None).expect("it was there");
    bench.up(&up).expect("it passes");
    let mut seen = Vec::new();
    tap.drain(&mut seen, Duration::ZERO);
    let mut packets = Vec::new();
    while !seen.is_empty() {
        let bytes = u32::from_le_bytes(seen[8..12].try_into().unwrap()) as usize;
        packets.push(seen[16..16 + bytes].to_vec());
        seen.drain(..16 + bytes);
    }
    // Down it has lost its hop, as the peer gets it.
    assert_eq!(packets[..2], [up, refused]);
    let [_, _, down, _, told] = &packets[..] else {
        panic!("{packets:?}");
    };
    assert_eq!((down.len(), down[8]), (28 + 50, 63));
    assert_eq!(*told, answer, "also what the gateway says itself");
}
