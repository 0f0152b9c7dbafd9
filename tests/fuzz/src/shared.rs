//! Memory that another process writes, and the hand-over that brings it.

use std::{
    collections::VecDeque,
    fs::File,
    io::{IoSlice, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arbitrary::{Arbitrary, Unstructured};
use rustix::{
    cmsg_space,
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use topnet_unit::{Attachment, Consumer, Producer, Slot, UnitRecord};

/// Descriptors that one message can carry here.
const DESCRIPTORS_MAX: usize = 80;
const HEADER_BYTES: usize = 64;

/// What a sender hands over in the place of one descriptor.
#[derive(Arbitrary, Debug)]
struct Memory {
    bytes: u16,
    shrinks: bool,
    starts_with_header: bool,
    is_socket: bool,
}

impl Memory {
    fn make(&self, header: &[u8]) -> OwnedFd {
        if self.is_socket {
            return UnixStream::pair().unwrap().0.into();
        }
        let fd = memfd_create("fuzz", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, u64::from(self.bytes)).unwrap();
        if !self.shrinks {
            fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
        }
        if self.starts_with_header && usize::from(self.bytes) >= header.len() {
            let mut file = File::from(fd.try_clone().unwrap());
            file.write_all(header).unwrap();
        }
        fd
    }
}

/// A hand-over with any header and any descriptors: refused, or everything in it can be used.
pub(crate) fn handover(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let Ok(header) = input.arbitrary::<[u8; HEADER_BYTES]>() else {
        return;
    };
    let length = input.arbitrary::<u8>().unwrap_or(64).min(64);
    let mut memories = Vec::new();
    while memories.len() < DESCRIPTORS_MAX
        && !input.is_empty()
        && let Ok(memory) = input.arbitrary::<Memory>()
    {
        memories.push(memory.make(&header));
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    send(&ours, &header[..usize::from(length)], &memories);
    drop(ours);
    match Attachment::receive(&theirs) {
        Ok(mut attached) => use_all(&mut attached),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn send(socket: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    }
    let message = [IoSlice::new(bytes)];
    let _ = sendmsg(socket, &message, &mut ancillary, SendFlags::NOSIGNAL);
}

/// Looks at both ends of every piece of memory: what is too short ends the process.
fn use_all(attached: &mut Attachment) {
    for index in [0, attached.header.slots - 1] {
        let _ = attached.usage.totals(index);
        let slot = Slot {
            index,
            generation: 1,
        };
        attached.credit.close(slot);
        let _ = attached.credit.balance(slot);
    }
    for ring in &mut attached.rings {
        let _ = ring.drain(|_| ());
        let _ = ring.waiting();
    }
}

/// One step of a ring's life.
#[derive(Arbitrary, Debug)]
enum Step {
    Push,
    Drain,
    /// A consumer died, another takes its place.
    NewConsumer,
    /// Somebody writes what is not his.
    Consumed(Lie),
    Produced(Lie),
    Scribble(u8, u64),
}

#[derive(Arbitrary, Debug)]
enum Lie {
    Any(u64),
    Near(i8),
}

impl Lie {
    fn write(&self, word: &AtomicU64) {
        let lie = match self {
            Self::Any(lie) => *lie,
            Self::Near(by) => word
                .load(Ordering::Relaxed)
                .wrapping_add_signed(i64::from(*by)),
        };
        word.store(lie, Ordering::Relaxed);
    }
}

const PRODUCED_WORD: usize = 8;
const RECORDS_WORD: usize = 16;

/// A ring whose indices and records anybody may write: as long as nobody does, it is a queue;
/// then it loses records and nothing else; and it is a queue again once both ends are honest.
pub(crate) fn ring(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let Ok(size) = input.int_in_range(0..=4_u32) else {
        return;
    };
    let records = 1 << size;
    let heap = |words| -> Arc<[AtomicU64]> { (0..words).map(|_| AtomicU64::new(0)).collect() };
    let ring = heap(RECORDS_WORD + 4 * records as usize);
    let index = heap(8);
    let mut producer = Producer::new(ring.clone(), index.clone(), records);
    let new_consumer = || Consumer::new(ring.clone(), index.clone(), records);
    let mut consumer = new_consumer();
    let (mut expected, mut next, mut honest) = (VecDeque::new(), 0, true);
    while !input.is_empty()
        && let Ok(step) = input.arbitrary::<Step>()
    {
        match step {
            Step::Push => {
                let found_place = producer.push(record(next));
                assert!(!honest || found_place == (expected.len() < records as usize));
                if found_place {
                    expected.push_back(record(next));
                }
                next += 1;
            }
            Step::Drain => {
                let mut seen = Vec::new();
                let drained = consumer.drain(|record| seen.push(record));
                if let Ok(drained) = drained {
                    assert_eq!(drained, seen.len() as u64);
                }
                assert!(seen.len() <= records as usize);
                assert!(!honest || (drained.is_ok() && expected == seen));
                expected.clear();
            }
            Step::NewConsumer => consumer = new_consumer(),
            Step::Consumed(lie) => {
                lie.write(&index[0]);
                honest = false;
            }
            Step::Produced(lie) => {
                lie.write(&ring[PRODUCED_WORD]);
                honest = false;
            }
            Step::Scribble(place, word) => {
                let place = RECORDS_WORD + usize::from(place) % (4 * records as usize);
                ring[place].store(word, Ordering::Relaxed);
                honest = false;
            }
        }
    }
    becomes_a_queue_again(&mut producer, &mut consumer, records, next);
}

fn becomes_a_queue_again(
    producer: &mut Producer<Arc<[AtomicU64]>>,
    consumer: &mut Consumer<Arc<[AtomicU64]>>,
    records: u32,
    mut next: u64,
) {
    // The producer says its true index with the next record or when it finds no place for it,
    // and whoever drains tells it how far it may go: after that nothing is left of the lies.
    for _ in 0..2 {
        let _ = consumer.drain(|_| ());
        let _ = producer.push(record(next));
        next += 1;
    }
    let _ = consumer.drain(|_| ());
    let first = next;
    for _ in 0..records {
        assert!(producer.push(record(next)), "no place in an empty ring");
        next += 1;
    }
    let mut seen = Vec::new();
    let drained = consumer.drain(|record| seen.push(record));
    assert_eq!(drained, Ok(u64::from(records)));
    assert!(seen.into_iter().eq((first..next).map(record)));
}

fn record(number: u64) -> UnitRecord {
    UnitRecord {
        slot: Slot {
            index: number as u32,
            generation: 1,
        },
        bytes: number,
        packets: number,
        time_ns: number,
    }
}
