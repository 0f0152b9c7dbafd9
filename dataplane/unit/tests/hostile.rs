//! A consumer that writes what it likes into all memory that it was given: the producer goes on
//! counting, and publishes again as soon as somebody honest consumes.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    time::{Duration, Instant},
};

use support::{Other, Random, is_whole, numbered, part, receive_raw};
use topnet_unit::{BootId, Handover, Header, Slot};

const HEADER: Header = Header {
    boot: BootId([4; 16]),
    slots: 4,
    workers: 1,
    records: 16,
};
const SLOT: Slot = Slot {
    index: 1,
    generation: 1,
};
/// Where the producer's index stands in a ring, after the header, and where the records begin.
const PRODUCED_BYTE: u64 = 64;
const RECORDS_BYTE: u64 = 128;
const RING_BYTES: u64 = RECORDS_BYTE + HEADER.records as u64 * 32;
const UNDER_FIRE: Duration = Duration::from_millis(500);

#[test]
fn other_process() {
    if let Some((role, socket)) = part() {
        scribble(&socket, role.parse().unwrap());
    }
}

/// Writes garbage into both indices and the records, for ever.
fn scribble(mut socket: &UnixStream, seed: u64) {
    let (_, descriptors) = receive_raw(socket);
    let mut files = descriptors.into_iter().map(File::from).skip(2);
    let (ring, index) = (files.next().unwrap(), files.next().unwrap());
    let mut random = Random(seed);
    socket.write_all(b"!").unwrap();
    loop {
        let near = read_word(&ring, PRODUCED_BYTE)
            .wrapping_add(random.below(40))
            .wrapping_sub(20);
        let lie = match random.below(4) {
            0 => random.next(),
            1 => u64::MAX - random.below(3),
            2 => random.below(3),
            _ => near,
        };
        index.write_all_at(&lie.to_le_bytes(), 0).unwrap();
        let place = match random.below(8) {
            0 => PRODUCED_BYTE,
            _ => RECORDS_BYTE + random.below(RING_BYTES - RECORDS_BYTE - 8),
        };
        ring.write_all_at(&random.next().to_le_bytes(), place)
            .unwrap();
    }
}

fn read_word(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_le_bytes(bytes)
}

#[test]
fn a_hostile_consumer_stops_records_and_nothing_else() {
    for seed in 1..=3_u64 {
        let (handover, usage, _credit, mut producers) = Handover::in_memory(HEADER).unwrap();
        let producer = &mut producers[0];
        let mut other = Other::start(&seed.to_string());
        handover.send(&other.socket).unwrap();
        other.socket.read_exact(&mut [0]).unwrap();

        let (mut number, mut steps) = (0, 0);
        let end = Instant::now() + UNDER_FIRE;
        while Instant::now() < end {
            for _ in 0..1_000 {
                steps += 1;
                let (_, bytes) = usage.add(SLOT.index, 10, 1);
                number += u64::from(producer.push(numbered(number, SLOT, bytes)));
            }
        }
        assert!(other.runs(), "it scribbles until it is killed");
        other.kill();
        assert_eq!(usage.totals(SLOT.index).bytes, 10 * steps);

        // Somebody honest: the hand-over's header is as it was, and so is every record from now
        // on. What was published under fire may be lost, and both indices may be garbage still:
        // the producer says its own with the next record, or when it finds no place for it.
        let mut attached = handover.attach().unwrap();
        for _ in 0..2 {
            let _ = attached.rings[0].drain(|_| ());
            number += u64::from(producer.push(numbered(number, SLOT, 0)));
        }
        let _ = attached.rings[0].drain(|_| ());
        for round in 0..3 {
            let first = number;
            for _ in 0..HEADER.records {
                let bytes = usage.totals(SLOT.index).bytes;
                let found_place = producer.push(numbered(number, SLOT, bytes));
                assert!(found_place, "seed {seed}, round {round}");
                number += 1;
            }
            let mut seen = Vec::new();
            let drained = attached.rings[0].drain(|record| seen.push(record));
            assert_eq!(drained, Ok(u64::from(HEADER.records)));
            assert!(seen.iter().all(is_whole));
            let numbers: Vec<u64> = seen.iter().map(|record| record.packets).collect();
            assert_eq!(numbers, Vec::from_iter(first..number));
        }
    }
}
