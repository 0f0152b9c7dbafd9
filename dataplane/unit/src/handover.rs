//! Hands the tables and rings of a data plane to metering, as file descriptors.
//!
//! The data plane sends one message on a connected Unix stream socket: a [`Header`] and, with
//! it, the descriptors: usage (read-only), credit, then for each worker its ring (read-only)
//! and the consumer's index. The header also stands at the start of every ring's memory. A
//! reader of another version is refused with both versions named.

use std::{
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::atomic::Ordering,
};

use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

use crate::{
    Access, BootId, Consumer, CreditTable, Mapping, Producer, SharedMemoryError, UsageTable, memfd,
    ring::{CONSUMER_BYTES, ring_bytes},
    shared_memory::{check_memfd, check_table},
};

/// Version of the tables and the rings, as they are laid out in memory. Metering takes no other.
pub const TABLES_VERSION: u32 = 2;
/// Workers of one data plane, at most.
pub const WORKERS_MAX: u32 = 32;
/// Slots of one data plane, at most.
pub const SLOTS_MAX: u32 = 1 << 20;
/// Records in a ring, at most.
pub const RECORDS_MAX: u32 = 1 << 20;

const MAGIC: [u8; 8] = *b"topnetSM";
const HEADER_BYTES: usize = 64;
const DESCRIPTORS_MAX: usize = 2 + 2 * WORKERS_MAX as usize;

/// What the memory that follows is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The run of the data plane that the tables belong to.
    pub boot: BootId,
    /// Slots in the tables, the unused slot 0 included.
    pub slots: u32,
    /// Workers, each with a ring.
    pub workers: u32,
    /// Places in each ring, a power of two.
    pub records: u32,
}

/// Tables that could not be handed over or taken.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The socket failed or ended.
    #[error("the data plane's tables did not arrive: {0}; try again when it is back")]
    Socket(#[from] io::Error),
    /// What arrived is not a header of ours.
    #[error("what arrived is not a topnet data plane's hand-over; check the socket's path")]
    NotOurs,
    /// The two processes were built from different layouts.
    #[error(
        "the data plane speaks table layout {theirs}, this process {ours}; \
         run both from one release"
    )]
    Version {
        /// As the header says.
        theirs: u32,
        /// As this build knows.
        ours: u32,
    },
    /// Sizes outside the bounds, or a wrong number of descriptors.
    #[error("the data plane's hand-over makes no sense: {0}")]
    Shape(&'static str),
    /// The memory could not be made or mapped.
    #[error(transparent)]
    Memory(#[from] SharedMemoryError),
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&TABLES_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.slots.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.workers.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.records.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.boot.0);
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HandoverError> {
        let number = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(word)
        };
        if bytes[..8] != MAGIC {
            return Err(HandoverError::NotOurs);
        }
        if number(8) != TABLES_VERSION {
            return Err(HandoverError::Version {
                theirs: number(8),
                ours: TABLES_VERSION,
            });
        }
        let mut boot = [0; 16];
        boot.copy_from_slice(&bytes[24..40]);
        let header = Self {
            boot: BootId(boot),
            slots: number(12),
            workers: number(16),
            records: number(20),
        };
        header.check().map(|()| header)
    }

    fn check(&self) -> Result<(), HandoverError> {
        if !(2..=SLOTS_MAX).contains(&self.slots) {
            return Err(HandoverError::Shape("the number of slots is out of range"));
        }
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            return Err(HandoverError::Shape(
                "the number of workers is out of range",
            ));
        }
        if !self.records.is_power_of_two() || self.records > RECORDS_MAX {
            return Err(HandoverError::Shape(
                "a ring's size is not a power of two in range",
            ));
        }
        Ok(())
    }
}

/// One worker's ring, as it is handed over.
#[derive(Debug)]
pub struct RingHandover {
    ring: OwnedFd,
    consumer: OwnedFd,
}

/// The data plane's side: everything that metering is given.
#[derive(Debug)]
pub struct Handover {
    header: Header,
    usage: OwnedFd,
    credit: OwnedFd,
    rings: Vec<RingHandover>,
}

/// A hand-over of anonymous memory, and the data plane's own ends of it.
pub type InMemory = (Handover, UsageTable, CreditTable, Vec<Producer<Mapping>>);

impl Handover {
    /// Makes the rings for tables that exist, and the producing end of each worker's. `usage`
    /// is best a descriptor that cannot be mapped for writing.
    pub fn new(
        header: Header,
        usage: OwnedFd,
        credit: OwnedFd,
    ) -> Result<(Self, Vec<Producer<Mapping>>), HandoverError> {
        header.check()?;
        let (mut rings, mut producers) = (Vec::new(), Vec::new());
        for _ in 0..header.workers {
            let ring = memfd("topnet-ring", ring_bytes(header.records))?;
            let consumer = memfd("topnet-ring-consumer", CONSUMER_BYTES)?;
            let produced = Mapping::new(&ring, ring_bytes(header.records), Access::ReadWrite)?;
            let words = header.to_bytes();
            for (word, bytes) in produced.words().iter().zip(words.chunks_exact(8)) {
                word.store(
                    u64::from_le_bytes(bytes.try_into().unwrap_or_default()),
                    Ordering::Relaxed,
                );
            }
            let consumed = Mapping::new(&consumer, CONSUMER_BYTES, Access::Read)?;
            producers.push(Producer::new(produced, consumed, header.records));
            rings.push(RingHandover { ring, consumer });
        }
        Ok((
            Self {
                header,
                usage,
                credit,
                rings,
            },
            producers,
        ))
    }

    /// Tables of anonymous memory where no XDP program shares them, with both writing ends.
    pub fn in_memory(header: Header) -> Result<InMemory, HandoverError> {
        header.check()?;
        let usage = memfd("topnet-usage", crate::table_bytes(header.slots))?;
        let credit = memfd("topnet-credit", crate::table_bytes(header.slots))?;
        let usage_table = UsageTable::map(&usage, header.slots, Access::ReadWrite)?;
        let credit_table = CreditTable::map(&credit, header.slots, Access::Read)?;
        let (handover, producers) = Self::new(header, usage, credit)?;
        Ok((handover, usage_table, credit_table, producers))
    }

    /// What the memory is.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Gives everything to somebody in this process.
    pub fn attach(&self) -> Result<Attachment, HandoverError> {
        let (ours, theirs) = UnixStream::pair()?;
        self.send(&ours)?;
        Attachment::receive(&theirs)
    }

    /// Gives everything to whoever is connected.
    pub fn send(&self, socket: &UnixStream) -> Result<(), HandoverError> {
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![self.usage.as_fd(), self.credit.as_fd()];
        for ring in &self.rings {
            descriptors.extend([ring.ring.as_fd(), ring.consumer.as_fd()]);
        }
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(HandoverError::Shape("too many workers for one message"));
        }
        let bytes = self.header.to_bytes();
        let sent = sendmsg(
            socket,
            &[io::IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .map_err(io::Error::from)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(HandoverError::NotOurs)
        }
    }
}

/// Metering's side of one data plane's run: all that it sees of it.
#[derive(Debug)]
pub struct Attachment {
    /// What the memory is.
    pub header: Header,
    /// What was forwarded; read-only.
    pub usage: UsageTable,
    /// How much may be; metering's to write.
    pub credit: CreditTable,
    /// One a worker.
    pub rings: Vec<Consumer<Mapping>>,
}

impl Attachment {
    /// Takes what the data plane sends on `socket`. Give the socket a read timeout: this waits.
    pub fn receive(socket: &UnixStream) -> Result<Self, HandoverError> {
        let mut bytes = [0; HEADER_BYTES];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            socket,
            &mut [io::IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .map_err(io::Error::from)?;
        if received.bytes == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if received.bytes != HEADER_BYTES {
            return Err(HandoverError::NotOurs);
        }
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        Self::from_parts(Header::from_bytes(&bytes)?, descriptors)
    }

    fn from_parts(header: Header, descriptors: Vec<OwnedFd>) -> Result<Self, HandoverError> {
        if descriptors.len() != 2 + 2 * header.workers as usize {
            return Err(HandoverError::Shape(
                "the number of descriptors is not the header's",
            ));
        }
        let mut descriptors = descriptors.into_iter();
        let mut next = || {
            descriptors
                .next()
                .ok_or(HandoverError::Shape("a descriptor is missing"))
        };
        let (usage, credit) = (next()?, next()?);
        for table in [&usage, &credit] {
            check_table(table.as_fd(), crate::table_bytes(header.slots))?;
        }
        let usage = UsageTable::map(usage, header.slots, Access::Read)?;
        let credit = CreditTable::map(credit, header.slots, Access::ReadWrite)?;
        let mut rings = Vec::new();
        for _ in 0..header.workers {
            let (ring, consumer) = (next()?, next()?);
            check_memfd(ring.as_fd(), ring_bytes(header.records))?;
            check_memfd(consumer.as_fd(), CONSUMER_BYTES)?;
            let ring = Mapping::new(&ring, ring_bytes(header.records), Access::Read)?;
            let consumer = Mapping::new(&consumer, CONSUMER_BYTES, Access::ReadWrite)?;
            let words = ring.words()[..HEADER_BYTES / 8].iter();
            let mut copy = [0; HEADER_BYTES];
            for (bytes, word) in copy.chunks_exact_mut(8).zip(words) {
                bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
            }
            if Header::from_bytes(&copy)? != header {
                return Err(HandoverError::Shape("a ring belongs to another run"));
            }
            rings.push(Consumer::new(ring, consumer, header.records));
        }
        Ok(Self {
            header,
            usage,
            credit,
            rings,
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{CreditGrant, Slot, UnitRecord};

    const HEADER: Header = Header {
        boot: BootId([3; 16]),
        slots: 16,
        workers: 2,
        records: 8,
    };

    #[test]
    fn what_one_process_writes_the_other_reads() {
        let (handover, usage, credit, mut producers) = Handover::in_memory(HEADER).unwrap();
        let mut attached = handover.attach().unwrap();
        assert_eq!(attached.header, HEADER);

        let slot = Slot {
            index: 5,
            generation: 1,
        };
        usage.add(5, 700, 1);
        assert_eq!(attached.usage.totals(5).bytes, 700);
        attached.credit.grant(
            slot,
            CreditGrant {
                limit_bytes: 9,
                record_at_bytes: 9,
            },
        );
        assert_eq!(credit.balance(slot).limit_bytes, 9);
        let record = UnitRecord {
            slot,
            bytes: 700,
            packets: 1,
            time_ns: 2,
        };
        assert!(producers[1].push(record));
        let mut seen = Vec::new();
        assert_eq!(attached.rings[0].drain(|_| ()), Ok(0));
        assert_eq!(attached.rings[1].drain(|record| seen.push(record)), Ok(1));
        assert_eq!(seen, [record]);
    }

    #[test]
    fn another_layout_is_refused_with_both_versions_named() {
        let mut bytes = HEADER.to_bytes();
        bytes[8..12].copy_from_slice(&77_u32.to_le_bytes());
        let error = Header::from_bytes(&bytes).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("77") && text.contains(&TABLES_VERSION.to_string()),
            "{text}"
        );
    }

    #[test]
    fn garbage_and_missing_descriptors_are_refused() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[1; HEADER_BYTES]).unwrap();
        assert!(matches!(
            Attachment::receive(&theirs),
            Err(HandoverError::NotOurs)
        ));
        ours.write_all(&HEADER.to_bytes()).unwrap();
        assert!(matches!(
            Attachment::receive(&theirs),
            Err(HandoverError::Shape(_))
        ));
        drop(ours);
        assert!(matches!(
            Attachment::receive(&theirs),
            Err(HandoverError::Socket(_))
        ));
    }
}
