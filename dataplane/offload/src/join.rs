//! Towards the device: joins packets of a flow into super-packets, without copying a payload.
//!
//! A *group* is what becomes one write. A group is *open* while packets of its flow may still
//! join it; a flow has at most one open group, and whatever comes of that flow and cannot join
//! closes it, so that nothing written with an earlier group was sent later. Packets are named
//! by their place in one arena, and each ends before the next begins: that is how no packet
//! can ever be joined to itself.

use std::ops::Range;

use topnet_checksum::Sum;

use crate::headers::{IPV4_CHECKSUM, TCP_CHECKSUM, TCP_FLAGS, UDP_CHECKSUM, put_u16};
use crate::{Gso, VnetHeader};

mod candidate;

use candidate::{Arrival, Candidate, Transport};

/// Most parts of one super-packet. With the header it is far below what `writev` takes (1,024).
pub const PARTS_MAX: usize = 128;
/// Most datagrams of one super-packet over UDP: what every kernel with USO splits.
pub const UDP_PARTS_MAX: usize = 64;

/// Most bytes of one super-packet: IPv4's total length, and kept for IPv6 too.
const SUPER_BYTES_MAX: usize = u16::MAX as usize;

/// How much a [`Joiner`] holds, all of it allocated at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinLimits {
    /// Packets between two drains.
    pub packets_max: usize,
    /// Flows that can have an open group at a time. Looking for a flow is a scan of these.
    pub flows_max: usize,
    /// Whether datagrams are joined: the device must have accepted `TUN_F_USO4` and `TUN_F_USO6`.
    pub join_udp: bool,
}

/// Why a packet was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// There is room for no packet more.
    #[error("the joiner holds all the packets it has room for: drain it, then add this one")]
    Full,
    /// No byte, bytes outside the arena, or bytes before the end of the last packet.
    #[error("a packet must lie in the arena, after the packet added before it: drop it")]
    NoPlace,
}

/// Collects the packets of one burst and writes them as super-packets.
#[derive(Debug)]
pub struct Joiner {
    limits: JoinLimits,
    packets: Vec<Packet>,
    groups: Vec<Group>,
    open: Vec<OpenGroup>,
    /// Whose place the next new flow takes when all are taken.
    victim: usize,
    /// Where the last packet ended.
    end: usize,
    /// Scratch for one group.
    parts: Vec<Range<usize>>,
}

#[derive(Clone, Copy, Debug)]
struct Packet {
    start: usize,
    end: usize,
    /// The group's next packet.
    next: u32,
}

#[derive(Clone, Debug)]
struct Group {
    first: u32,
    last: u32,
    packets: usize,
    total_bytes: usize,
    /// Of the last packet.
    pushed: bool,
    /// Of the first packet; `None` if nothing can join it.
    candidate: Option<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct OpenGroup {
    tag: u32,
    group: u32,
    /// Whether the first packet's checksums are known to be right. Not looked at before there
    /// is something to join.
    verified: bool,
}

/// What became of a packet whose flow has an open group.
enum Joined {
    /// It is in the group, which stays open.
    Yes,
    /// It is in the group, and nothing can follow.
    AsLast,
    /// It is not.
    No,
}

impl Joiner {
    /// An empty joiner.
    #[must_use]
    pub fn new(limits: JoinLimits) -> Self {
        // Packets and groups are named by 32 bits.
        let packets_max = limits.packets_max.min(u32::MAX as usize);
        Self {
            limits: JoinLimits {
                packets_max,
                ..limits
            },
            packets: Vec::with_capacity(packets_max),
            groups: Vec::with_capacity(packets_max),
            open: Vec::with_capacity(limits.flows_max),
            victim: 0,
            end: 0,
            parts: Vec::with_capacity(PARTS_MAX),
        }
    }

    /// Whether nothing was added since the last drain.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Adds the packet at `packet` of `arena`, which is the same until it is drained. Packets
    /// come in the order of their arrival and of their place. Whatever their bytes are, they
    /// will be written.
    pub fn add(&mut self, arena: &[u8], packet: Range<usize>) -> Result<(), AddError> {
        if self.packets.len() == self.limits.packets_max {
            return Err(AddError::Full);
        }
        let bytes = arena.get(packet.clone()).unwrap_or_default();
        if bytes.is_empty() || packet.start < self.end {
            return Err(AddError::NoPlace);
        }
        let index = self.packets.len() as u32;
        self.end = packet.end;
        self.packets.push(Packet {
            start: packet.start,
            end: packet.end,
            next: index,
        });
        match Arrival::of(bytes, self.limits.join_udp) {
            Arrival::Joinable(candidate) => self.place(arena, index, candidate),
            Arrival::Barred { tag, flow } => {
                if let Some(at) = self.find(arena, tag, flow) {
                    self.open.swap_remove(at);
                }
                self.start(index, None);
            }
            Arrival::Portless { addresses } => {
                let Self {
                    open,
                    groups,
                    packets,
                    ..
                } = self;
                open.retain(|open| {
                    let first = packets[groups[open.group as usize].first as usize];
                    !candidate::between(&arena[first.start..first.end], addresses)
                });
                self.start(index, None);
            }
            Arrival::Apart => self.start(index, None),
            Arrival::Unreadable => {
                self.open.clear();
                self.start(index, None);
            }
        }
        Ok(())
    }

    /// Hands every group to `write`, in the order of their first packets, and is empty then.
    ///
    /// The parts are to be written one after the other, after the header: the first is a packet,
    /// and all others are payload alone. A packet that was joined to nothing is as it was added;
    /// of a super-packet, the headers in the arena were rewritten.
    ///
    /// # Panics
    /// If `arena` is shorter than the packets that were added lie in it.
    pub fn drain(
        &mut self,
        arena: &mut [u8],
        mut write: impl FnMut(&VnetHeader, &[Range<usize>], &[u8]),
    ) {
        assert!(
            self.end <= arena.len(),
            "packets up to byte {} were added, and the arena to drain has {}",
            self.end,
            arena.len()
        );
        for group in &self.groups {
            let mut packet = self.packets[group.first as usize];
            let first = packet.start..packet.end;
            self.parts.clear();
            self.parts.push(first.clone());
            let header = match &group.candidate {
                Some(candidate) if group.packets > 1 => {
                    for _ in 1..group.packets {
                        packet = self.packets[packet.next as usize];
                        self.parts
                            .push(packet.start + candidate.header_bytes()..packet.end);
                    }
                    unite(candidate, group, &mut arena[first])
                }
                _ => VnetHeader::PLAIN,
            };
            write(&header, &self.parts, arena);
        }
        self.packets.clear();
        self.groups.clear();
        self.open.clear();
        self.victim = 0;
        self.end = 0;
    }

    /// Where among the open groups a flow's is.
    fn find(&self, arena: &[u8], tag: u32, flow: &[u8]) -> Option<usize> {
        self.open.iter().rposition(|open| {
            open.tag == tag && {
                let first = self.packets[self.groups[open.group as usize].first as usize];
                candidate::is_of_flow(&arena[first.start..first.end], flow)
            }
        })
    }

    fn place(&mut self, arena: &[u8], index: u32, candidate: Candidate) {
        let Packet { start, end, .. } = self.packets[index as usize];
        let bytes = &arena[start..end];
        let found = self.find(arena, candidate.tag, candidate.flow(bytes));
        let Some(at) = found else {
            let ends = candidate.pushed;
            let open = self.start_open(index, candidate);
            if !ends {
                self.open(open);
            }
            return;
        };
        match self.join(arena, at, index, &candidate) {
            Joined::Yes => {
                // The flow that was busy last is the first that is looked at.
                let last = self.open.len() - 1;
                self.open.swap(at, last);
            }
            Joined::AsLast => {
                self.open.swap_remove(at);
            }
            Joined::No if candidate.pushed => {
                self.open.swap_remove(at);
                self.start(index, Some(candidate));
            }
            Joined::No => {
                self.open[at] = self.start_open(index, candidate);
            }
        }
    }

    fn join(&mut self, arena: &[u8], at: usize, index: u32, candidate: &Candidate) -> Joined {
        let open = &mut self.open[at];
        let group = &mut self.groups[open.group as usize];
        let Some(leader) = &group.candidate else {
            return Joined::No;
        };
        let first = self.packets[group.first as usize];
        let joining = self.packets[index as usize];
        let first_bytes = &arena[first.start..first.end];
        let bytes = &arena[joining.start..joining.end];
        let parts_max = match leader.transport {
            Transport::Tcp => PARTS_MAX,
            Transport::Udp => UDP_PARTS_MAX,
        };
        let payload_bytes = candidate.payload_bytes;
        let total_bytes = group.total_bytes + payload_bytes;
        let fits = payload_bytes <= leader.payload_bytes
            && total_bytes <= SUPER_BYTES_MAX
            && group.packets < parts_max
            && leader.is_continued(group.packets, candidate)
            && leader.same_headers(first_bytes, bytes);
        if !fits {
            return Joined::No;
        }
        open.verified = open.verified || leader.verifies(first_bytes);
        if !open.verified || !candidate.verifies(bytes) {
            return Joined::No;
        }
        let ends = candidate.pushed
            || payload_bytes < leader.payload_bytes
            || group.packets + 1 == parts_max;
        self.packets[group.last as usize].next = index;
        group.last = index;
        group.packets += 1;
        group.total_bytes = total_bytes;
        group.pushed = candidate.pushed;
        if ends { Joined::AsLast } else { Joined::Yes }
    }

    fn start(&mut self, index: u32, candidate: Option<Candidate>) {
        let Packet { start, end, .. } = self.packets[index as usize];
        self.groups.push(Group {
            first: index,
            last: index,
            packets: 1,
            total_bytes: end - start,
            pushed: false,
            candidate,
        });
    }

    fn start_open(&mut self, index: u32, candidate: Candidate) -> OpenGroup {
        let open = OpenGroup {
            tag: candidate.tag,
            group: self.groups.len() as u32,
            verified: false,
        };
        self.start(index, Some(candidate));
        open
    }

    /// Takes a place for a new flow; if there is none, from a flow that goes on unjoined.
    fn open(&mut self, open: OpenGroup) {
        if self.open.len() < self.limits.flows_max {
            self.open.push(open);
        } else if let Some(place) = self.open.get_mut(self.victim) {
            *place = open;
            self.victim = (self.victim + 1) % self.limits.flows_max;
        }
    }
}

/// Makes the headers of a group's first packet those of the whole group.
fn unite(leader: &Candidate, group: &Group, first: &mut [u8]) -> VnetHeader {
    let header_bytes = leader.header_bytes();
    let transport_start = leader.transport_start();
    // All lengths were kept below `SUPER_BYTES_MAX`.
    let transport_bytes = (group.total_bytes - transport_start) as u16;
    let (ip, transport) = first[..header_bytes].split_at_mut(transport_start);
    if leader.v6 {
        put_u16(ip, 4, transport_bytes);
    } else {
        put_u16(ip, 2, group.total_bytes as u16);
        put_u16(ip, IPV4_CHECKSUM, 0);
        let checksum = Sum::of(ip).complement();
        ip[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].copy_from_slice(&checksum);
    }
    let checksum_offset = match leader.transport {
        Transport::Tcp => {
            if group.pushed {
                transport[TCP_FLAGS] |= crate::headers::PSH;
            }
            TCP_CHECKSUM
        }
        Transport::Udp => {
            put_u16(transport, 4, transport_bytes);
            UDP_CHECKSUM
        }
    };
    let unfinished = leader.pseudo_header(ip, transport_bytes).folded();
    transport[checksum_offset..checksum_offset + 2].copy_from_slice(&unfinished);
    VnetHeader {
        needs_checksum: true,
        data_valid: false,
        gso: match (leader.transport, leader.v6) {
            (Transport::Tcp, false) => Gso::TcpV4 { ecn: false },
            (Transport::Tcp, true) => Gso::TcpV6 { ecn: false },
            (Transport::Udp, _) => Gso::UdpL4,
        },
        header_bytes: header_bytes as u16,
        segment_bytes: leader.payload_bytes as u16,
        checksum_start: transport_start as u16,
        checksum_offset: checksum_offset as u16,
    }
}
