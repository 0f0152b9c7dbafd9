//! Either side of a ring dies at any moment, in another process: what was read is whole and in
//! order, nothing is read that was not written, and the table has what the ring lost.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use support::{FRAME_BYTES, Other, Random, from_frame, is_whole, numbered, part, to_frame};
use topnet_unit::{
    Attachment, BootId, Handover, Header, Mapping, Producer, Slot, UnitRecord, UsageTable,
};

const ROUNDS: u64 = 40;
const SLOTS: u32 = 7;
const STEP_BYTES: u64 = 1_000;
const HEADER: Header = Header {
    boot: BootId([9; 16]),
    slots: SLOTS + 1,
    workers: 1,
    records: 64,
};
/// Generation of the records that say a slot's last totals.
const LAST: u32 = 2;

#[test]
fn other_process() {
    match part() {
        None => {}
        Some((role, socket)) if role == "consumer" => consume(socket),
        Some((role, socket)) if role == "producer" => produce_for_ever(&socket),
        Some((role, _)) => panic!("no part for {role}"),
    }
}

/// Tells every record to the socket before its place in the ring is given back.
fn consume(mut socket: UnixStream) {
    let mut attached = Attachment::receive(&socket).unwrap();
    loop {
        let tell = |record| socket.write_all(&to_frame(&record)).unwrap();
        if attached.rings[0].drain(tell).unwrap() == 0 {
            thread::yield_now();
        }
    }
}

fn produce_for_ever(socket: &UnixStream) {
    let (handover, usage, _credit, mut producers) = Handover::in_memory(HEADER).unwrap();
    handover.send(socket).unwrap();
    let mut worker = Worker::new(&usage, &mut producers[0]);
    loop {
        worker.step();
    }
}

/// Counts and publishes, slot after slot.
struct Worker<'a> {
    usage: &'a UsageTable,
    producer: &'a mut Producer<Mapping>,
    published: u64,
    steps: u64,
}

impl<'a> Worker<'a> {
    fn new(usage: &'a UsageTable, producer: &'a mut Producer<Mapping>) -> Self {
        Self {
            usage,
            producer,
            published: 0,
            steps: 0,
        }
    }

    fn step(&mut self) {
        self.steps += 1;
        let index = 1 + (self.steps % u64::from(SLOTS)) as u32;
        let (_, bytes) = self.usage.add(index, STEP_BYTES, 1);
        if !self.publish(index, 1, bytes) {
            thread::yield_now();
        }
    }

    fn publish(&mut self, index: u32, generation: u32, bytes: u64) -> bool {
        let slot = Slot { index, generation };
        let found_place = self.producer.push(numbered(self.published, slot, bytes));
        self.published += u64::from(found_place);
        found_place
    }

    /// Says every slot's last totals, however long there is no place.
    fn end(&mut self) -> u64 {
        for index in 1..=SLOTS {
            while !self.publish(index, LAST, self.usage.totals(index).bytes) {
                thread::yield_now();
            }
        }
        self.published
    }
}

/// What all consumers of a ring have read, one after the other.
#[derive(Default)]
struct Reading {
    /// Number of the record that must come next at the latest.
    next: u64,
    /// What the newest record of each slot said.
    bytes: [u64; SLOTS as usize + 1],
    last_ones: u32,
}

impl Reading {
    /// Takes a record in. `first` is true for the first that a consumer reads: it may begin
    /// with what the one before had read and not given back.
    fn take(&mut self, record: &UnitRecord, first: bool) {
        assert!(is_whole(record), "{record:?} was never written");
        let number = record.packets;
        if first {
            let repeated = self.next.saturating_sub(u64::from(HEADER.records));
            assert!((repeated..=self.next).contains(&number), "{record:?}");
            self.bytes = Default::default();
        } else {
            assert_eq!(number, self.next, "{record:?}");
        }
        let known = &mut self.bytes[record.slot.index as usize];
        assert!(record.bytes >= *known, "{record:?} {known}");
        *known = record.bytes;
        if record.slot.generation == LAST {
            self.last_ones |= 1 << record.slot.index;
        }
        self.next = number + 1;
    }

    fn is_complete(&self) -> bool {
        self.last_ones.count_ones() == SLOTS
    }
}

#[test]
fn a_consumer_may_die_anywhere_and_the_next_one_reads_on() {
    let (handover, usage, _credit, mut producers) = Handover::in_memory(HEADER).unwrap();
    let stop = AtomicBool::new(false);
    let mut random = Random(11);
    let mut reading = Reading::default();
    let published = thread::scope(|scope| {
        let producing = scope.spawn(|| {
            let mut worker = Worker::new(&usage, &mut producers[0]);
            while !stop.load(Ordering::Relaxed) {
                worker.step();
            }
            worker.end()
        });
        for _ in 0..ROUNDS {
            let enough = random.below(3_000);
            one_consumer(&handover, &mut reading, |reading, taken| {
                taken >= enough && reading.next > 0
            });
        }
        stop.store(true, Ordering::Relaxed);
        one_consumer(&handover, &mut reading, |reading, _| reading.is_complete());
        producing.join().unwrap()
    });
    assert_eq!(reading.next, published, "every record was read");
    let attached = handover.attach().unwrap();
    for index in 1..=SLOTS {
        let told = reading.bytes[index as usize];
        assert_eq!(usage.totals(index).bytes, told, "slot {index}");
        assert_eq!(attached.usage.totals(index).bytes, told, "slot {index}");
    }
}

/// Lets another process consume until `enough` says so, kills it, and takes in what it told.
fn one_consumer(
    handover: &Handover,
    reading: &mut Reading,
    enough: impl Fn(&Reading, u64) -> bool,
) {
    let mut other = Other::start("consumer");
    handover.send(&other.socket).unwrap();
    let (mut taken, mut killed, mut frame) = (0, false, [0; FRAME_BYTES]);
    while read_frame(&mut other.socket, &mut frame) {
        reading.take(&from_frame(&frame), taken == 0);
        taken += 1;
        if !killed && enough(reading, taken) {
            // What it told before it died is still in the socket.
            other.kill();
            killed = true;
        }
    }
    assert!(killed, "it died by itself");
}

/// False at the end, also if a frame was torn there.
fn read_frame(socket: &mut UnixStream, frame: &mut [u8; FRAME_BYTES]) -> bool {
    socket.read_exact(frame).is_ok()
}

#[test]
fn what_a_dead_producer_published_is_read_to_the_end_and_its_table_has_the_rest() {
    let mut random = Random(12);
    for round in 0..ROUNDS {
        let mut other = Other::start("producer");
        let mut attached = Attachment::receive(&other.socket).unwrap();
        let mut reading = Reading::default();
        let enough = random.below(5_000);
        while reading.next < enough {
            drain(&mut attached, &mut reading);
            assert!(other.runs(), "it died by itself");
        }
        thread::sleep(Duration::from_micros(random.below(200)));
        other.kill();
        drain(&mut attached, &mut reading);
        assert_eq!(attached.rings[0].drain(|_| ()), Ok(0), "round {round}");
        for index in 1..=SLOTS {
            let totals = attached.usage.totals(index);
            let told = reading.bytes[index as usize];
            assert!(totals.bytes >= told, "round {round}: {totals:?} {told}");
            assert_eq!(totals.bytes % STEP_BYTES, 0, "{totals:?}");
            // Killed between two additions, at most.
            let packets = totals.bytes / STEP_BYTES;
            assert!((packets..=packets + 1).contains(&totals.packets));
        }
    }
}

fn drain(attached: &mut Attachment, reading: &mut Reading) {
    let read = attached.rings[0].drain(|record| reading.take(&record, false));
    if read.unwrap() == 0 {
        thread::yield_now();
    }
}
