//! A model of the data plane: the product's own accounting over the product's own tables and
//! ring, in a process of its own, with numbers in the place of packets.
//!
//! A step is what a worker does for a packet, only that it may be a whole unit long: so many
//! packets as make a million units a second pass no machine.

use std::{
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use topnet_dataplane::accounting::{Accounting, Gate as _};
use topnet_unit::{CreditTable, Handover, Header, UNIT_BYTES, UsageTable};

use super::{
    parties::{BOOT, WINDOW, monotonic_ns, slot},
    process::Asked,
};
use crate::lane::{Latency, histogram_ns, process_cpu_s};

/// Places in the ring.
const RECORDS: u32 = 1 << 16;
/// Steps that are published together.
const BURST_STEPS: usize = 64;
/// Boundaries that are remembered for a slot.
const PASSED_MAX: u64 = 2 * WINDOW;
/// How long the model sleeps when there is little to do: a worker's poll.
const PAUSE: Duration = Duration::from_micros(20);
/// The same when it uses all the credit there is and finds none.
const PAUSE_DRY: Duration = Duration::from_micros(200);

const _: () = assert!(PASSED_MAX.is_power_of_two());

/// What the model needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Needs {
    /// Channels, each with a slot.
    pub channels: u32,
    /// Where the tables are handed over.
    pub tables: PathBuf,
    /// Whose waiting for credit counts.
    pub timed: Timed,
}

/// Which boundaries' waiting for credit is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Timed {
    /// All: each is paid for as soon as it is known.
    Every,
    /// Where a token pays for many at once, the one that it answers.
    Answered,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Question {
    /// Use all credit until every slot has so many units behind it.
    WarmUp {
        /// Units of each slot.
        units: u64,
        /// Not longer than this.
        seconds_max: f64,
    },
    /// Forward what is offered.
    Run {
        /// How much.
        offered: Offered,
        /// For how long.
        seconds: f64,
    },
}

/// How much there is to forward.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Offered {
    /// More than can be paid.
    Saturation,
    /// So many steps a second, the slots in turn. What finds no credit is dropped.
    Steps {
        /// How many.
        per_s: f64,
        /// How long each is.
        bytes: usize,
    },
}

/// How it went.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Units' worth of bytes that passed.
    pub units: u64,
    /// Bytes that passed, of all slots since the start.
    pub bytes_ever: u64,
    /// Steps that found no credit; at saturation that is no news, and not counted.
    pub stalled: u64,
    /// How long it took.
    pub elapsed_s: f64,
    /// From a boundary to the credit that pays for it.
    pub latency: Option<Latency>,
    /// CPU time of the model.
    pub cpu_s: f64,
    /// When the last step passed, on the clock that all processes share.
    pub last_passed_ns: u64,
}

/// The role.
pub fn play() -> Result<()> {
    let (needs, mut asked) = Asked::begin::<Needs>()?;
    let header = Header {
        boot: BOOT,
        slots: needs.channels + 1,
        workers: 1,
        records: RECORDS,
    };
    let (handover, usage, credit, mut producers) = Handover::in_memory(header)?;
    let listener = UnixListener::bind(&needs.tables)?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if let Err(error) = handover.send(&stream) {
                eprintln!("error: {error}");
            }
        }
    });
    ensure!(!producers.is_empty(), "a data plane without a worker");
    let (usage, credit) = (Arc::new(usage), Arc::new(credit));
    let mut model = Model {
        accounting: Accounting::new(
            Arc::clone(&usage),
            Arc::clone(&credit),
            producers.remove(0),
            Arc::new(AtomicU64::new(0)),
        ),
        usage,
        credit,
        lanes: (0..needs.channels).map(|_| Slotted::new()).collect(),
        timed: needs.timed,
        burst: Vec::with_capacity(BURST_STEPS),
        waiting: Vec::new(),
        latency: histogram_ns()?,
        last_passed_ns: 0,
    };
    asked.answer(&())?;
    while let Some(question) = asked.next()? {
        asked.answer(&model.answer(question)?)?;
    }
    Ok(())
}

/// What the model remembers of a slot.
struct Slotted {
    /// Units that passed.
    passed: u64,
    /// Units that credit reaches to.
    credited: u64,
    /// When each of the last units had passed.
    passed_ns: [u64; PASSED_MAX as usize],
    /// It is on the list of those that wait for credit.
    waits: bool,
}

impl Slotted {
    fn new() -> Slotted {
        Slotted {
            passed: 0,
            credited: 0,
            passed_ns: [0; PASSED_MAX as usize],
            waits: false,
        }
    }
}

struct Model {
    accounting: Accounting,
    usage: Arc<UsageTable>,
    credit: Arc<CreditTable>,
    lanes: Vec<Slotted>,
    timed: Timed,
    /// Slots that passed a unit in this burst.
    burst: Vec<u32>,
    waiting: Vec<u32>,
    latency: Histogram<u64>,
    last_passed_ns: u64,
}

impl Model {
    fn answer(&mut self, question: Question) -> Result<Answer> {
        // Credit that came while nobody looked says nothing.
        let now_ns = monotonic_ns();
        (0..self.lanes.len() as u32).for_each(|number| self.look(number, now_ns));
        self.latency.reset();
        let (cpu_s, began) = (process_cpu_s(), Instant::now());
        let bytes_before = self.bytes();
        let stalled = match question {
            Question::WarmUp { units, seconds_max } => {
                let seconds = Duration::from_secs_f64(seconds_max);
                self.saturate(seconds, |model| {
                    model.lanes.iter().all(|lane| lane.passed >= units)
                });
                let cold = self.lanes.iter().filter(|lane| lane.passed < units).count();
                ensure!(
                    cold == 0,
                    "{cold} of {} channels got no credit for {units} units in {seconds_max} s",
                    self.lanes.len()
                );
                0
            }
            Question::Run { offered, seconds } => {
                let seconds = Duration::from_secs_f64(seconds);
                match offered {
                    Offered::Saturation => {
                        self.saturate(seconds, |_| false);
                        0
                    }
                    Offered::Steps { per_s, bytes } => self.pace(seconds, per_s, bytes),
                }
            }
        };
        let bytes_ever = self.bytes();
        Ok(Answer {
            units: (bytes_ever - bytes_before) / UNIT_BYTES,
            bytes_ever,
            stalled,
            elapsed_s: began.elapsed().as_secs_f64(),
            latency: Latency::of_ns(&self.latency),
            cpu_s: process_cpu_s() - cpu_s,
            last_passed_ns: self.last_passed_ns,
        })
    }

    fn bytes(&self) -> u64 {
        let slots = 0..self.lanes.len() as u32;
        slots
            .map(|number| self.usage.totals(slot(number).index).bytes)
            .sum()
    }

    /// Every slot uses what it has, a unit at a time.
    fn saturate(&mut self, limit: Duration, done: impl Fn(&Model) -> bool) {
        let slots = self.lanes.len() as u32;
        let began = Instant::now();
        while began.elapsed() < limit && !done(self) {
            let mut moved = 0;
            for first in (0..slots).step_by(BURST_STEPS) {
                let now_ns = monotonic_ns();
                for number in first..slots.min(first + BURST_STEPS as u32) {
                    self.look(number, now_ns);
                    moved += u32::from(self.step(number, UNIT_BYTES as usize));
                }
                self.settle();
            }
            if moved < slots.div_ceil(8) {
                thread::sleep(PAUSE_DRY);
            }
        }
    }

    /// So many steps a second, the slots in turn. Gives how many found no credit.
    fn pace(&mut self, time: Duration, per_s: f64, bytes: usize) -> u64 {
        let slots = self.lanes.len() as u64;
        let (began, mut next, mut stalled) = (Instant::now(), 0, 0);
        while began.elapsed() < time {
            let due = (began.elapsed().as_secs_f64() * per_s) as u64;
            while next < due {
                for _ in 0..(due - next).min(BURST_STEPS as u64) {
                    // Below the number of slots, which is a u32.
                    stalled += u64::from(!self.step((next % slots) as u32, bytes));
                    next += 1;
                }
                self.settle();
            }
            self.look_at_waiting();
            thread::sleep(PAUSE);
        }
        stalled
    }

    /// What a worker does for a packet.
    fn step(&mut self, number: u32, bytes: usize) -> bool {
        let slot = slot(number);
        if self.accounting.admit(slot, bytes).is_err() {
            return false;
        }
        self.accounting.count(slot, bytes);
        self.burst.push(number);
        true
    }

    /// What a worker does after a burst; and the boundaries that the burst passed are noted.
    fn settle(&mut self) {
        let now_ns = monotonic_ns();
        self.accounting.settle(now_ns);
        if !self.burst.is_empty() {
            self.last_passed_ns = now_ns;
        }
        for number in self.burst.drain(..) {
            let units = self.usage.totals(slot(number).index).bytes / UNIT_BYTES;
            let lane = &mut self.lanes[number as usize];
            for unit in lane.passed + 1..=units {
                lane.passed_ns[(unit % PASSED_MAX) as usize] = now_ns;
            }
            lane.passed = lane.passed.max(units);
            if !std::mem::replace(&mut lane.waits, true) {
                self.waiting.push(number);
            }
        }
    }

    /// Sees whether credit has come for what passed.
    fn look(&mut self, number: u32, now_ns: u64) {
        let limit = self.credit.balance(slot(number)).limit_bytes / UNIT_BYTES;
        let lane = &mut self.lanes[number as usize];
        if limit <= lane.credited {
            return;
        }
        // A full window ahead of the unit that the newest token answers.
        let answered = limit.saturating_sub(WINDOW);
        let first = match self.timed {
            Timed::Every => lane.credited.saturating_sub(WINDOW) + 1,
            Timed::Answered => answered,
        };
        lane.credited = limit;
        // Before that the window is still growing.
        let first = first
            .max(WINDOW)
            .max(lane.passed.saturating_sub(PASSED_MAX - 1));
        for unit in first..=answered.min(lane.passed) {
            let passed_ns = lane.passed_ns[(unit % PASSED_MAX) as usize];
            self.latency
                .saturating_record(now_ns.saturating_sub(passed_ns));
        }
    }

    fn look_at_waiting(&mut self) {
        let now_ns = monotonic_ns();
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|&number| {
            self.look(number, now_ns);
            let lane = &mut self.lanes[number as usize];
            lane.waits = lane.credited < lane.passed + WINDOW;
            lane.waits
        });
        self.waiting = waiting;
    }
}
