//! What metering costs: one worker that meters and does not in turn, a few milliseconds each.

use std::sync::mpsc::Sender;

use rustix::time::{ClockId, clock_gettime};
use topnet_dataplane::accounting::{Accounting, Gate, OpenGate};
use topnet_dataplane::drops::DropReason;
use topnet_dataplane::io::BURST_PACKETS;
use topnet_unit::Slot;

use crate::record::median;

/// Packets of a phase: long against reading a clock, short against what else the machine does.
const PHASE_PACKETS: u64 = 32 * BURST_PACKETS as u64;
/// Phases that are compared with each other, and which of them are metered: what drifts evenly
/// hits both kinds alike.
const METERED: [bool; 4] = [true, false, false, true];

/// Some thousand packets that were all metered, or all were not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Phase {
    /// Phases before it.
    pub number: usize,
    /// Packets that passed.
    pub packets: u64,
    /// CPU time of the worker's thread, without what it took to find nothing.
    pub cpu_ns: u64,
    /// Looks at the rings that found something.
    pub bursts: u64,
}

impl Phase {
    /// True if bursts were full for the most part: what a burst costs is shared out among its packets.
    pub fn is_saturated(&self) -> bool {
        self.bursts * BURST_PACKETS as u64 <= 2 * self.packets
    }
}

/// The product's accounting and none, in turn, told apart by a branch that costs both the same.
/// Switches between bursts, so that each burst is settled by whoever admitted it.
pub struct Alternating {
    metering: Accounting,
    open: OpenGate,
    number: usize,
    metered: bool,
    packets: u64,
    bursts: u64,
    /// Packets when a burst ended last.
    settled_packets: u64,
    /// The thread's CPU time then.
    settled_cpu_ns: u64,
    /// True if what the last burst brought may still be sent.
    sends: bool,
    cpu_ns: u64,
    phases: Sender<Phase>,
}

impl Alternating {
    /// Begins with `metering`, and tells of each phase that is over.
    pub fn new(metering: Accounting, phases: Sender<Phase>) -> Alternating {
        Alternating {
            metering,
            open: OpenGate,
            number: 0,
            metered: METERED[0],
            packets: 0,
            bursts: 0,
            settled_packets: 0,
            settled_cpu_ns: u64::MAX,
            sends: false,
            cpu_ns: 0,
            phases,
        }
    }

    fn next_phase(&mut self) {
        // Nobody listens any more when the round is over.
        let _ = self.phases.send(Phase {
            number: self.number,
            packets: self.packets,
            cpu_ns: self.cpu_ns,
            bursts: self.bursts,
        });
        self.number += 1;
        self.metered = METERED[self.number % METERED.len()];
        (self.packets, self.bursts, self.cpu_ns) = (0, 0, 0);
        (self.settled_packets, self.settled_cpu_ns) = (0, thread_cpu_ns());
    }
}

impl Gate for Alternating {
    fn admit(&mut self, slot: Slot, bytes: usize) -> Result<(), DropReason> {
        match self.metered {
            true => self.metering.admit(slot, bytes),
            false => self.open.admit(slot, bytes),
        }
    }

    fn count(&mut self, slot: Slot, bytes: usize) {
        self.packets += 1;
        match self.metered {
            true => self.metering.count(slot, bytes),
            false => self.open.count(slot, bytes),
        }
    }

    fn settle(&mut self, burst_began_ns: u64) {
        match self.metered {
            true => self.metering.settle(burst_began_ns),
            false => self.open.settle(burst_began_ns),
        }
        // From the end of one burst to the end of the next, sending what the first brought included, also
        // if the next look finds nothing. More of those are nobody's cost: how many there are tells how
        // long the worker waited.
        let cpu_ns = thread_cpu_ns();
        let found = self.packets > self.settled_packets;
        if found || self.sends {
            // The first burst of all began on the thread that made this.
            self.cpu_ns += cpu_ns.saturating_sub(self.settled_cpu_ns);
        }
        self.bursts += u64::from(found);
        self.sends = found;
        (self.settled_packets, self.settled_cpu_ns) = (self.packets, cpu_ns);
        if self.packets >= PHASE_PACKETS {
            self.next_phase();
        }
    }
}

/// What metering adds to a packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeteringCost {
    /// CPU time of the worker with metering less without, in nanoseconds a packet. Below zero if
    /// it is lost in noise.
    pub packet_ns: f64,
    /// The same as a share of the CPU time without metering.
    pub share: f64,
    /// Packets that this was taken from.
    pub packets: u64,
    /// CPU time that they took together, in seconds.
    pub cpu_s: f64,
}

/// Compares the phases of each four in which the worker was saturated; `None` if there are fewer
/// than `fours_min` of them. The cost is the median: an interrupt in one phase is not metering's.
pub fn metering_cost(phases: &[Phase], fours_min: usize) -> Option<MeteringCost> {
    let fours: Vec<&[Phase]> = phases
        .chunk_by(|one, next| one.number / METERED.len() == next.number / METERED.len())
        .filter(|four| four.len() == METERED.len() && four.iter().all(Phase::is_saturated))
        .collect();
    if fours.len() < fours_min {
        return None;
    }
    // Of each four, CPU time of a packet with metering and without.
    let compared: Vec<[f64; 2]> = fours
        .iter()
        .map(|four| {
            let mean = |wanted: bool| {
                let phases = four.iter().zip(METERED);
                let of_kind = phases.filter(|(_, metered)| *metered == wanted);
                let sum: f64 = of_kind
                    .map(|(phase, _)| phase.cpu_ns as f64 / phase.packets as f64)
                    .sum();
                2.0 * sum / METERED.len() as f64
            };
            [mean(true), mean(false)]
        })
        .collect();
    let of_fours = |figure: fn(&[f64; 2]) -> f64| median(compared.iter().map(figure).collect());
    let counted = || fours.iter().copied().flatten();
    Some(MeteringCost {
        packet_ns: of_fours(|[with, without]| with - without)?,
        share: of_fours(|[with, without]| with / without - 1.0)?,
        packets: counted().map(|phase| phase.packets).sum(),
        cpu_s: counted().map(|phase| phase.cpu_ns as f64 / 1e9).sum(),
    })
}

fn thread_cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_saturated_fours_are_compared() {
        // CPU time that grows evenly, and 3 ns more for a metered packet.
        let phase = |number: usize| Phase {
            number,
            packets: 640,
            cpu_ns: 1000 + 7 * number as u64 + if METERED[number % 4] { 1920 } else { 0 },
            bursts: 10,
        };
        let mut phases: Vec<Phase> = (2..16).map(phase).collect();
        let found = metering_cost(&phases, 3).unwrap();
        assert!((found.packet_ns - 3.0).abs() < 1e-9, "{found:?}");
        // The four in the middle are the phases 8 to 11.
        let without = 1000.0 + 7.0 * 9.5;
        assert!((found.share - 1920.0 / without).abs() < 1e-9, "{found:?}");
        assert_eq!(found.packets, 12 * 640);
        assert!((found.cpu_s - 24_318.0 / 1e9).abs() < 1e-12, "{found:?}");
        assert_eq!(metering_cost(&phases, 4), None);

        phases[5].bursts = 21;
        assert_eq!(metering_cost(&phases, 3), None);
        assert_eq!(
            metering_cost(&phases, 2).map(|cost| cost.packets),
            Some(8 * 640)
        );
    }
}
