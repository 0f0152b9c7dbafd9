//! What the tests of this crate share: another process that is this test binary again, records
//! that prove themselves, and raw hand-overs.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
};

use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use topnet_unit::{Slot, UnitRecord};

/// Names the part that a process started by [`Other::start`] plays.
const ROLE_VARIABLE: &str = "TOPNET_UNIT_TEST_ROLE";
/// More descriptors than any hand-over has, so that too many can be sent as well.
const DESCRIPTORS_MAX: usize = 80;

/// Another process, connected by a socket and killed with this value.
pub struct Other {
    child: Child,
    /// Our end of its socket.
    pub socket: UnixStream,
}

impl Other {
    /// Starts this test binary again. It runs its test `other_process`, which finds its part
    /// and its socket with [`part`].
    pub fn start(role: &str) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "other_process", "--nocapture"])
            .env(ROLE_VARIABLE, role)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            socket: ours,
        }
    }

    /// Kills it with a signal that it cannot see coming, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// True as long as it has not ended by itself.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The part of this process and its socket, if it was started by [`Other::start`].
pub fn part() -> Option<(String, UnixStream)> {
    let role = std::env::var(ROLE_VARIABLE).ok()?;
    // It must not go on for ever if the test that it belongs to is killed.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let socket = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    Some((role, UnixStream::from(socket)))
}

/// SplitMix64: small, seeded, good enough to choose moments.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The `number`th record of a ring, saying `bytes` of `slot`. Its last word is a checksum of the
/// others, so one that is torn or was never written does not pass for one.
pub fn numbered(number: u64, slot: Slot, bytes: u64) -> UnitRecord {
    let mut record = UnitRecord {
        slot,
        bytes,
        packets: number,
        time_ns: 0,
    };
    record.time_ns = checksum(&record);
    record
}

/// True if the record is as [`numbered`] made it.
pub fn is_whole(record: &UnitRecord) -> bool {
    record.time_ns == checksum(record)
}

fn checksum(record: &UnitRecord) -> u64 {
    let slot = u64::from(record.slot.index) << 32 | u64::from(record.slot.generation);
    mix(mix(mix(slot) ^ record.bytes) ^ record.packets) | 1
}

/// Length of a record in [`to_frame`].
pub const FRAME_BYTES: usize = 32;

pub fn to_frame(record: &UnitRecord) -> [u8; FRAME_BYTES] {
    let slot = u64::from(record.slot.index) << 32 | u64::from(record.slot.generation);
    let words = [slot, record.bytes, record.packets, record.time_ns];
    let mut frame = [0; FRAME_BYTES];
    for (place, word) in frame.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    frame
}

pub fn from_frame(frame: &[u8; FRAME_BYTES]) -> UnitRecord {
    let word = |nth: usize| u64::from_le_bytes(frame[8 * nth..8 * nth + 8].try_into().unwrap());
    UnitRecord {
        slot: Slot {
            index: (word(0) >> 32) as u32,
            generation: word(0) as u32,
        },
        bytes: word(1),
        packets: word(2),
        time_ns: word(3),
    }
}

/// Sends a message with descriptors, whatever they are.
pub fn send_raw(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let message = [IoSlice::new(bytes)];
    let sent = sendmsg(socket, &message, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, bytes.len());
}

/// Receives a message with descriptors, as it is.
pub fn receive_raw(socket: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut bytes = vec![0; 256];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [std::io::IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    bytes.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    (bytes, descriptors)
}
