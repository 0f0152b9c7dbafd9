//! Every hand-over that is not ours, or that would let its sender take memory away from under
//! its reader, is refused with an error that says what is wrong.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use support::{receive_raw, send_raw};
use topnet_unit::{
    Attachment, BootId, Handover, HandoverError, Header, RECORDS_MAX, SLOTS_MAX, SharedMemoryError,
    TABLES_VERSION, WORKERS_MAX, memfd, table_bytes,
};

const HEADER: Header = Header {
    boot: BootId([0xb0; 16]),
    slots: 5,
    workers: 2,
    records: 8,
};
/// Header, the producer's index in a line of its own, and records of 32 bytes.
const RING_BYTES: usize = 128 + 8 * 32;
const CONSUMER_BYTES: usize = 64;

/// A header as it is sent, written down here once more: another release must still read it, or
/// name the version.
fn header_bytes(header: Header) -> Vec<u8> {
    let mut bytes = b"topnetSM".to_vec();
    for number in [TABLES_VERSION, header.slots, header.workers, header.records] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(header.boot.0);
    bytes.resize(64, 0);
    bytes
}

/// What is sent, to be spoiled in one place.
struct Parts {
    header: Vec<u8>,
    /// Usage, credit, then ring and consumer of each worker.
    descriptors: Vec<OwnedFd>,
}

const USAGE: usize = 0;
const CREDIT: usize = 1;
const RING: usize = 4;
const CONSUMER: usize = 5;

fn good() -> Parts {
    let mut descriptors = vec![table(), table()];
    for _ in 0..HEADER.workers {
        descriptors.push(ring(HEADER, RING_BYTES));
        descriptors.push(memfd("consumer", CONSUMER_BYTES).unwrap());
    }
    Parts {
        header: header_bytes(HEADER),
        descriptors,
    }
}

fn table() -> OwnedFd {
    memfd("table", table_bytes(HEADER.slots)).unwrap()
}

fn ring(header: Header, bytes: usize) -> OwnedFd {
    let ring = memfd("ring", bytes).unwrap();
    write(&ring, &header_bytes(header));
    ring
}

fn write(memory: &OwnedFd, bytes: &[u8]) {
    File::from(memory.try_clone().unwrap())
        .write_all(bytes)
        .unwrap();
}

/// Memory with these seals instead of all that ours has.
fn sealed(bytes: usize, seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, bytes as u64).unwrap();
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn read_only(memory: &OwnedFd) -> OwnedFd {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))
        .unwrap()
        .into()
}

fn receive(parts: &Parts) -> Result<Attachment, HandoverError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let descriptors: Vec<BorrowedFd<'_>> = parts.descriptors.iter().map(AsFd::as_fd).collect();
    send_raw(&ours, &parts.header, &descriptors);
    drop(ours);
    Attachment::receive(&theirs)
}

fn refused(spoil: impl FnOnce(&mut Parts)) -> HandoverError {
    let mut parts = good();
    spoil(&mut parts);
    receive(&parts).expect_err("what was spoiled is refused")
}

#[test]
fn golden_header() {
    let (handover, ..) = Handover::in_memory(HEADER).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    handover.send(&ours).unwrap();
    let (bytes, descriptors) = receive_raw(&theirs);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        format!(
            "746f706e6574534d02000000050000000200000008000000{}{}",
            "b0".repeat(16),
            "00".repeat(24)
        )
    );
    assert_eq!(bytes, header_bytes(HEADER));
    assert_eq!(descriptors.len(), 6);
}

#[test]
fn what_is_whole_is_taken_and_more_memory_than_needed_does_no_harm() {
    let attached = receive(&good()).unwrap();
    assert_eq!(attached.header, HEADER);
    assert_eq!(attached.rings.len(), 2);
    let mut larger = good();
    larger.descriptors[USAGE] = memfd("table", 2 * table_bytes(HEADER.slots)).unwrap();
    larger.descriptors[RING] = ring(HEADER, 2 * RING_BYTES);
    larger.descriptors[CONSUMER] = memfd("consumer", 4096).unwrap();
    // Usage is only looked at.
    larger.descriptors[USAGE] = read_only(&larger.descriptors[USAGE]);
    let attached = receive(&larger).unwrap();
    assert_eq!(attached.usage.totals(HEADER.slots - 1).bytes, 0);
}

#[test]
fn another_layout_is_refused_with_both_versions_named() {
    for theirs in [0, TABLES_VERSION + 1, u32::MAX] {
        let error = refused(|parts| parts.header[8..12].copy_from_slice(&theirs.to_le_bytes()));
        assert!(matches!(error, HandoverError::Version { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&theirs.to_string()), "{text}");
        assert!(text.contains(&TABLES_VERSION.to_string()), "{text}");
    }
}

#[test]
fn a_header_that_is_not_ours_or_makes_no_sense_is_refused() {
    for length in [1, 8, 12, 63] {
        let error = refused(|parts| parts.header.truncate(length));
        assert!(
            matches!(error, HandoverError::NotOurs),
            "{length}: {error:?}"
        );
    }
    for place in 0..8 {
        let error = refused(|parts| parts.header[place] ^= 1);
        assert!(
            matches!(error, HandoverError::NotOurs),
            "{place}: {error:?}"
        );
    }
    let cases = [
        ("slots", Header { slots: 0, ..HEADER }),
        ("slots", Header { slots: 1, ..HEADER }),
        (
            "slots",
            Header {
                slots: SLOTS_MAX + 1,
                ..HEADER
            },
        ),
        (
            "slots",
            Header {
                slots: u32::MAX,
                ..HEADER
            },
        ),
        (
            "workers",
            Header {
                workers: 0,
                ..HEADER
            },
        ),
        (
            "workers",
            Header {
                workers: WORKERS_MAX + 1,
                ..HEADER
            },
        ),
        (
            "workers",
            Header {
                workers: u32::MAX,
                ..HEADER
            },
        ),
        (
            "ring",
            Header {
                records: 0,
                ..HEADER
            },
        ),
        (
            "ring",
            Header {
                records: 12,
                ..HEADER
            },
        ),
        (
            "ring",
            Header {
                records: 2 * RECORDS_MAX,
                ..HEADER
            },
        ),
        (
            "ring",
            Header {
                records: u32::MAX,
                ..HEADER
            },
        ),
        (
            "descriptors",
            Header {
                workers: 1,
                ..HEADER
            },
        ),
        (
            "descriptors",
            Header {
                workers: 3,
                ..HEADER
            },
        ),
        (
            "descriptors",
            Header {
                workers: WORKERS_MAX,
                ..HEADER
            },
        ),
    ];
    for (word, header) in cases {
        let error = refused(|parts| parts.header = header_bytes(header));
        assert!(
            matches!(error, HandoverError::Shape(_)),
            "{header:?}: {error:?}"
        );
        assert!(error.to_string().contains(word), "{header:?}: {error}");
    }
}

#[test]
fn too_few_and_too_many_descriptors_are_refused() {
    for length in 0..6 {
        let error = refused(|parts| parts.descriptors.truncate(length));
        assert!(
            matches!(error, HandoverError::Shape(_)),
            "{length}: {error:?}"
        );
    }
    for more in [1, 2, 70] {
        let error = refused(|parts| parts.descriptors.extend((0..more).map(|_| table())));
        assert!(
            matches!(error, HandoverError::Shape(_)),
            "{more}: {error:?}"
        );
    }
}

#[test]
fn memory_that_is_short_or_could_become_so_is_refused() {
    let table_length = table_bytes(HEADER.slots);
    let pieces = [
        ("usage", USAGE, table_length),
        ("credit", CREDIT, table_length),
        ("ring", RING, RING_BYTES),
        ("consumer", CONSUMER, CONSUMER_BYTES),
    ];
    for (name, place, length) in pieces {
        for bytes in [0, 8, length - 1] {
            let error = refused(|parts| parts.descriptors[place] = memfd(name, bytes).unwrap());
            let HandoverError::Memory(SharedMemoryError::Short { expected, actual }) = error else {
                panic!("{name} of {bytes} bytes: {error:?}");
            };
            assert_eq!((expected, actual), (length, bytes as u64), "{name}");
        }
        // Whoever can shrink it kills its reader.
        for seals in [
            SealFlags::empty(),
            SealFlags::GROW,
            SealFlags::GROW | SealFlags::SEAL,
        ] {
            let error = refused(|parts| parts.descriptors[place] = sealed(length, seals));
            assert!(
                matches!(error, HandoverError::Memory(SharedMemoryError::NotSealed)),
                "{name} {seals:?}: {error:?}"
            );
        }
    }
}

#[test]
fn what_is_no_memory_is_refused() {
    let file = || OwnedFd::from(File::open("/proc/self/exe").unwrap());
    let pipe = || OwnedFd::from(std::io::pipe().unwrap().0);
    for place in [USAGE, CREDIT, RING, CONSUMER] {
        for descriptor in [file(), pipe(), UnixStream::pair().unwrap().0.into()] {
            let error = refused(|parts| parts.descriptors[place] = descriptor);
            assert!(
                matches!(error, HandoverError::Memory(_)),
                "{place}: {error:?}"
            );
        }
    }
    // Credit and the consumer's index are written.
    for place in [CREDIT, CONSUMER] {
        let error = refused(|parts| {
            parts.descriptors[place] = read_only(&parts.descriptors[place]);
        });
        assert!(error.to_string().contains("map"), "{place}: {error}");
    }
}

#[test]
fn a_ring_of_another_run_or_layout_is_refused() {
    let other_run = Header {
        boot: BootId([0xb1; 16]),
        ..HEADER
    };
    let error = refused(|parts| parts.descriptors[RING] = ring(other_run, RING_BYTES));
    assert!(error.to_string().contains("another run"), "{error}");
    let error = refused(|parts| parts.descriptors[RING] = memfd("ring", RING_BYTES).unwrap());
    assert!(matches!(error, HandoverError::NotOurs), "{error:?}");
    let error = refused(|parts| {
        let ring = memfd("ring", RING_BYTES).unwrap();
        let mut newer = header_bytes(HEADER);
        newer[8] += 1;
        write(&ring, &newer);
        parts.descriptors[RING] = ring;
    });
    assert!(matches!(error, HandoverError::Version { .. }), "{error:?}");
}
