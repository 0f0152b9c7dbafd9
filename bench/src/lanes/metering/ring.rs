//! Unit records from one process to another: the product's ring, and the same 32 bytes through a
//! Unix socket.

use std::{
    hint,
    io::{ErrorKind, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use topnet_unit::{Handover, Header, Mapping, Producer, UnitRecord};

use super::{
    VERSION,
    parties::{BOOT, monotonic_ns, slot},
    payee::attach,
    process::{Another, Asked, Role},
};
use crate::{
    lane::{Better, Case, Contender, Latency, Measurement, histogram_ns, process_cpu_s},
    lanes::Setup,
    place::Place,
};

/// As many as a data plane's ring has in the other cases.
const RECORDS: u32 = 1 << 16;
const RECORD_BYTES: usize = 32;
/// The pace at which latency is measured: a hundred times what a saturated 10-Gbit/s gateway
/// publishes, a tenth of what fits.
const PACE_PER_S: f64 = 100_000.0;
/// What the socket's reader takes at once, at most.
const READ_BYTES: usize = 64 * 1024;
/// The reader of the socket may wait so long for the first record.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);

/// What the producing process needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Needs {
    /// How the records go.
    way: Way,
    /// Where the two meet.
    meet: PathBuf,
    /// Records a second; none: as many as fit.
    pace_per_s: Option<f64>,
    /// For how long.
    seconds: f64,
}

/// How the records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    Ring,
    Socket,
}

/// What the producing process says at the end.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Produced {
    records: u64,
    cpu_s: f64,
}

/// The case.
pub fn case(setup: &Setup) -> Case {
    let contender = |way, version: &str| {
        let setup = setup.clone();
        Contender::new(version, move || round(&setup, way))
    };
    Case {
        name: "ring/cross-process".to_owned(),
        metric: "records_per_s".to_owned(),
        unit: "1/s".to_owned(),
        better: Better::Higher,
        mode: format!(
            "one producer in another process, one consumer that never sleeps, {RECORD_BYTES} \
             bytes a record, {} s; latency from boundary to drained at {PACE_PER_S} records a \
             second; the socket takes a write for each record and reads up to {} KiB at once",
            setup.size.ring_seconds(),
            READ_BYTES / 1024
        ),
        ours: contender(Way::Ring, VERSION),
        peers: vec![(
            "Unix stream socket".to_owned(),
            contender(Way::Socket, "Linux"),
        )],
    }
}

fn round(setup: &Setup, way: Way) -> Result<Measurement> {
    let mut unused = histogram_ns()?;
    let flood = transfer(setup, way, None, &mut unused)?;
    let mut latency = histogram_ns()?;
    transfer(setup, way, Some(PACE_PER_S), &mut latency)?;
    let per_s = flood.records as f64 / flood.elapsed_s;
    Ok(Measurement::new(per_s, flood.records, flood.cpu_s)
        .with_latency(Latency::of_ns(&latency))
        .with("time per record", 1e9 / per_s, "ns"))
}

struct Transferred {
    records: u64,
    elapsed_s: f64,
    cpu_s: f64,
}

fn transfer(
    setup: &Setup,
    way: Way,
    pace_per_s: Option<f64>,
    latency: &mut Histogram<u64>,
) -> Result<Transferred> {
    let directory = Place::Memory.directory()?;
    let needs = Needs {
        way,
        meet: directory.path().join("meet"),
        pace_per_s,
        seconds: setup.size.ring_seconds(),
    };
    let mut producer = Another::start(&setup.program, Role::Producer, &needs)?;
    producer.hear::<()>(&setup.interrupt, PATIENCE)?;
    let (cpu_s, began) = (process_cpu_s(), Instant::now());
    let seen = match way {
        Way::Ring => drain(&mut producer, &needs, latency)?,
        Way::Socket => read(&needs, latency)?,
    };
    let elapsed_s = began.elapsed().as_secs_f64();
    let own_cpu_s = process_cpu_s() - cpu_s;
    let produced: Produced = match seen.produced {
        Some(produced) => produced,
        None => producer.hear(&setup.interrupt, PATIENCE)?,
    };
    ensure!(
        seen.records == produced.records && produced.records > 0,
        "{} records went in and {} came out",
        produced.records,
        seen.records
    );
    Ok(Transferred {
        records: seen.records,
        elapsed_s,
        cpu_s: own_cpu_s + produced.cpu_s,
    })
}

struct Seen {
    records: u64,
    produced: Option<Produced>,
}

fn drain(producer: &mut Another, needs: &Needs, latency: &mut Histogram<u64>) -> Result<Seen> {
    let mut rings = attach(&needs.meet)?.rings;
    ensure!(rings.len() == 1, "{} rings", rings.len());
    let (mut records, mut produced) = (0, None::<Produced>);
    loop {
        let mut now_ns = 0;
        let drained = rings[0].drain(|record| {
            if needs.pace_per_s.is_some() {
                if now_ns == 0 {
                    now_ns = monotonic_ns();
                }
                latency.saturating_record(now_ns.saturating_sub(record.time_ns));
            }
        })?;
        records += drained;
        if drained > 0 {
            continue;
        }
        if let Some(produced) = produced {
            let produced = Some(produced);
            return Ok(Seen { records, produced });
        }
        produced = producer.try_hear()?;
        hint::spin_loop();
    }
}

fn read(needs: &Needs, latency: &mut Histogram<u64>) -> Result<Seen> {
    let mut socket = UnixStream::connect(&needs.meet)?;
    socket.set_read_timeout(Some(READ_TIMEOUT))?;
    let mut buffer = vec![0; READ_BYTES];
    let (mut filled, mut records) = (0, 0);
    loop {
        let read = match socket.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        filled += read;
        let (whole, rest) = buffer[..filled].as_chunks::<RECORD_BYTES>();
        records += whole.len() as u64;
        let rest = rest.len();
        if needs.pace_per_s.is_some() {
            let now_ns = monotonic_ns();
            for record in whole {
                let mut time = [0; 8];
                time.copy_from_slice(&record[RECORD_BYTES - 8..]);
                latency.saturating_record(now_ns.saturating_sub(u64::from_le_bytes(time)));
            }
        }
        buffer.copy_within(filled - rest..filled, 0);
        filled = rest;
    }
    Ok(Seen {
        records,
        produced: None,
    })
}

/// The role.
pub fn play() -> Result<()> {
    let (needs, asked) = Asked::begin::<Needs>()?;
    let listener = UnixListener::bind(&needs.meet)?;
    let header = Header {
        boot: BOOT,
        slots: 2,
        workers: 1,
        records: RECORDS,
    };
    asked.answer(&())?;
    let (mut stream, _) = listener.accept()?;
    let produced = match needs.way {
        Way::Ring => {
            let (handover, _, _, mut producers) = Handover::in_memory(header)?;
            handover.send(&stream)?;
            produce(&needs, |record| push(&mut producers[0], record))?
        }
        Way::Socket => {
            let produced = produce(&needs, |record| Ok(stream.write_all(&bytes(record))?))?;
            drop(stream);
            produced
        }
    };
    asked.answer(&produced)
}

/// Waits for a place, which no worker does: it would go on, since the next record says more.
fn push(ring: &mut Producer<Mapping>, record: UnitRecord) -> Result<()> {
    while !ring.push(record) {
        hint::spin_loop();
        thread::yield_now();
    }
    Ok(())
}

fn bytes(record: UnitRecord) -> [u8; RECORD_BYTES] {
    let words = [
        u64::from(record.slot.index) | u64::from(record.slot.generation) << 32,
        record.bytes,
        record.packets,
        record.time_ns,
    ];
    let mut bytes = [0; RECORD_BYTES];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn produce(needs: &Needs, mut send: impl FnMut(UnitRecord) -> Result<()>) -> Result<Produced> {
    let mut record = UnitRecord {
        slot: slot(0),
        bytes: 0,
        packets: 0,
        time_ns: 0,
    };
    let time = Duration::from_secs_f64(needs.seconds);
    let (cpu_s, began) = (process_cpu_s(), Instant::now());
    let mut records = 0;
    loop {
        let elapsed = began.elapsed();
        if elapsed >= time {
            break;
        }
        let due = match needs.pace_per_s {
            Some(per_s) => (elapsed.as_secs_f64() * per_s) as u64,
            // A clock read for each would be what is measured.
            None => records + 64,
        };
        while records < due {
            records += 1;
            record.bytes = records;
            record.packets = records;
            if needs.pace_per_s.is_some() {
                record.time_ns = monotonic_ns();
            }
            send(record)?;
        }
        if needs.pace_per_s.is_some() {
            hint::spin_loop();
        }
    }
    Ok(Produced {
        records,
        cpu_s: process_cpu_s() - cpu_s,
    })
}
