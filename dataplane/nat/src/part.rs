//! Which of several NATs, each with a part of the pool, a packet from outside is for.

use crate::icmp::Embedded;
use crate::packet::{Header, Part, Transport};
use crate::{Nat44, Refusal};

/// What tells it. Nothing is believed of the packet but what decides where it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The part that lends this port of the pool.
    Port(u16),
    /// The same; fragments follow that have no port.
    First(u16, FragmentId),
    /// Whosever its first fragment was.
    Later(FragmentId),
}

/// What fragments of one packet have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentId {
    source: u32,
    destination: u32,
    identification: u16,
    protocol: u8,
}

impl FragmentId {
    fn of(header: &Header) -> Self {
        Self {
            source: header.source,
            destination: header.destination,
            identification: header.identification,
            protocol: header.protocol as u8,
        }
    }
}

impl Whose {
    /// Looks at exactly one IPv4 packet to an address of the pool. What is refused here would be
    /// refused by every NAT.
    pub fn of(packet: &[u8]) -> Result<Self, Refusal> {
        let header = Header::parse(packet)?;
        if header.part == Part::Later {
            return Ok(Self::Later(FragmentId::of(&header)));
        }
        let port = match Transport::parse(packet, &header)? {
            Transport::Ports { destination, .. } => destination,
            Transport::Reply(identifier) => identifier,
            Transport::Request(_) => return Err(Refusal::IcmpType),
            Transport::Error => Embedded::parse(packet, &header)?.source_port,
        };
        Ok(match header.part {
            Part::First => Self::First(port, FragmentId::of(&header)),
            Part::Whole | Part::Later => Self::Port(port),
        })
    }
}

impl Nat44 {
    /// The number of the part that lends `port`.
    #[must_use]
    pub fn part_of(&self, port: u16) -> u32 {
        self.config.part_of(port, self.config.part.of)
    }
}
