//! What is looked at in a soak, how much of it may be left over, and why.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    growth::{Allowance, Growth, Sample, Work, course, medians},
    report::{Level, Soak},
    vitals,
};

/// A process may keep 2 % more of memory, and 1 MiB: arenas and caches have no exact size.
const MEMORY: Allowance = Allowance {
    per_mille: 20,
    fixed: 1 << 20,
    ..Allowance::NOTHING
};
/// Requests that are under way when it is looked.
const PIECES: Allowance = fixed(4);
/// A directory that has no reason to grow but a line of a log now and then.
const LINES: Allowance = fixed(512 << 10);
/// A level of the product's own counts, which comes and goes with the traffic.
const COUNT: Allowance = Allowance {
    per_mille: 100,
    ..fixed(64)
};
/// What a NAT lends is its own again after its longest timeout of these flows, five minutes without a
/// datagram, and two minutes that a block rests.
const NAT_REST: Duration = Duration::from_secs(420);

/// What metering's database holds in memory before it writes it to a table, and lets go of.
const WRITE_BUFFER_BYTES: u64 = 8 << 20;
/// What its logs reserve on the disk: one that is written, and one that is not needed any more.
const LOGS_BYTES: u64 = 20 << 20;

/// The product's own counts that are levels.
const COUNTS: [(&str, Allowance); 11] = [
    ("sessions", fixed(0)),
    ("payers", fixed(0)),
    ("channels", fixed(0)),
    ("channel_window_units", fixed(8)),
    ("unit_ring_waiting", fixed(16)),
    ("log_segments_waiting", fixed(1)),
    ("nat_clients", fixed(1)),
    ("nat_lent_blocks", fixed(2)),
    ("nat_resting_blocks", fixed(4)),
    ("nat_mappings", COUNT),
    ("nat_flows", COUNT),
];

const fn fixed(fixed: u64) -> Allowance {
    Allowance {
        fixed,
        ..Allowance::NOTHING
    }
}

/// How much more memory a process may have.
fn memory(process: &str) -> Allowance {
    match process {
        // Blocks, their certificates and receipts are found by indices in memory, three of each chain
        // and both ways (some 500 bytes of a block were measured), and no chain forgets a block.
        "settlement" => Allowance {
            per_block: 768,
            ..MEMORY
        },
        // Each unit's records stand in the write buffer until that is full (some 1,200 bytes were
        // measured); older ones of the same channel too.
        "metering" => Allowance {
            per_unit: 2048,
            work_max: Some(WRITE_BUFFER_BYTES),
            ..MEMORY
        },
        _ => MEMORY,
    }
}

/// How much more a directory may take.
fn disk(directory: &str) -> Allowance {
    match directory {
        // The chains themselves: some 830 bytes of a block were measured.
        "data of settlement" => Allowance {
            per_block: 1280,
            ..fixed(2 << 20)
        },
        // A line of the service log for each unit, and the database's own logs.
        "data of metering" => Allowance {
            per_unit: 256,
            ..fixed(LOGS_BYTES)
        },
        // A line of the payer's journal for each unit: some 300 bytes were measured.
        "data of wallet" => Allowance {
            per_unit: 512,
            ..LINES
        },
        _ => LINES,
    }
}

/// What is looked at, and what was seen.
pub(super) struct Levels {
    /// By name.
    processes: Vec<(String, u32)>,
    /// By what they hold.
    directories: Vec<(String, PathBuf)>,
    seen: BTreeMap<(String, &'static str), Vec<Sample>>,
    blocks: Vec<Sample>,
    units: Vec<Sample>,
}

impl Levels {
    pub(super) fn new(processes: Vec<(String, u32)>, directories: Vec<(String, PathBuf)>) -> Self {
        Self {
            processes,
            directories,
            seen: BTreeMap::new(),
            blocks: Vec::new(),
            units: Vec::new(),
        }
    }

    /// Looks at everything, with what the product says of itself.
    pub(super) fn look(&mut self, at: Duration, page: &BTreeMap<String, u64>) -> Result<()> {
        let mut seen = Vec::new();
        for (process, pid) in &self.processes {
            let vitals = vitals::of(*pid).with_context(|| format!("{process} has ended"))?;
            for (what, value) in [
                ("resident_bytes", vitals.resident_bytes),
                ("own_bytes", vitals.own_bytes),
                ("descriptors", vitals.descriptors),
                ("threads", vitals.threads),
            ] {
                seen.push((process.clone(), what, value));
            }
        }
        for (directory, path) in &self.directories {
            ensure!(path.is_dir(), "{directory} is not at {}", path.display());
            seen.push((directory.clone(), "disk_bytes", vitals::disk_bytes(path)));
        }
        // A process that does not answer just then leaves its own out.
        for (what, _) in COUNTS {
            let value = page.get(what).copied();
            seen.extend(value.map(|value| ("metrics".to_owned(), what, value)));
        }
        for (of, what, value) in seen {
            let samples = self.seen.entry((of, what)).or_default();
            samples.push(Sample { at, value });
        }
        for (samples, name) in [
            (&mut self.blocks, "chain_height"),
            (&mut self.units, "channel_accepted_units_total"),
        ] {
            let value = page.get(name).copied();
            samples.extend(value.map(|value| Sample { at, value }));
        }
        Ok(())
    }

    /// Each process's own memory now, in MiB, in words.
    pub(super) fn memory_now(&self) -> String {
        let seen = self.seen.iter();
        let own = seen.filter(|((_, what), _)| *what == "own_bytes");
        let words = own.filter_map(|((process, _), samples)| {
            Some(format!("{process} {}", samples.last()?.value >> 20))
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// Judges everything.
    pub(super) fn judge(self, ran: Duration) -> Result<Soak> {
        let apart = |samples: &[Sample], what: &str| {
            let (before, after) = medians(samples).with_context(|| format!("counting {what}"))?;
            Ok::<_, anyhow::Error>(after.saturating_sub(before))
        };
        let work = Work {
            blocks: apart(&self.blocks, "blocks")?,
            units: apart(&self.units, "units")?,
        };
        for (what, _) in COUNTS {
            let is_seen = self.seen.contains_key(&("metrics".to_owned(), what));
            ensure!(is_seen, "the product does not tell of {what} any more");
        }
        let mut levels = Vec::new();
        for ((of, what), samples) in &self.seen {
            let allowance = allowance(of, what);
            let growth = Growth::judge(samples, allowance, work)
                .with_context(|| format!("looking at {what} of {of}"))?;
            levels.push(Level {
                of: of.clone(),
                what,
                growth,
                judged: !what.starts_with("nat_") || ran / 4 >= NAT_REST,
                course: course(samples),
            });
        }
        Ok(Soak {
            seconds: ran.as_secs(),
            samples: self.blocks.len(),
            units: work.units,
            blocks: work.blocks,
            levels,
            ..Soak::default()
        })
    }
}

fn allowance(of: &str, what: &str) -> Allowance {
    match what {
        "resident_bytes" | "own_bytes" => memory(of),
        "descriptors" | "threads" => PIECES,
        "disk_bytes" => disk(of),
        count => {
            let found = COUNTS.into_iter().find(|(name, _)| *name == count);
            found.map_or(Allowance::NOTHING, |(_, allowance)| allowance)
        }
    }
}

/// The numbers of an OpenMetrics page by their names without the product's, those of all labels
/// together.
pub(super) fn numbers_of(page: &str) -> BTreeMap<String, u64> {
    let mut numbers = BTreeMap::new();
    for line in page.lines() {
        let Some((name, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let name = name.split('{').next().unwrap_or_default();
        let (Some(name), Ok(value)) = (name.strip_prefix("topnet_"), value.parse::<u64>()) else {
            continue;
        };
        *numbers.entry(name.to_owned()).or_default() += value;
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_summed_over_labels_and_other_lines_left_out() {
        let page = "# HELP topnet_sessions Sessions.\n# TYPE topnet_sessions gauge\n\
                    topnet_sessions 1\ntopnet_chain_height{chain=\"main\"} 40\n\
                    topnet_chain_height{chain=\"vpn\"} 50\n\
                    topnet_unit_journalled_seconds{quantile=\"0.5\"} 0.5\nother 3\n# EOF\n";
        let numbers = numbers_of(page);
        assert_eq!(numbers.get("sessions"), Some(&1));
        assert_eq!(numbers.get("chain_height"), Some(&90));
        assert_eq!(numbers.len(), 2);
    }

    /// What the product tells, with so much work done.
    fn page(work: u64) -> BTreeMap<String, u64> {
        let levels = COUNTS.map(|(name, _)| (name.to_owned(), 1));
        let work =
            ["chain_height", "channel_accepted_units_total"].map(|name| (name.to_owned(), work));
        levels.into_iter().chain(work).collect()
    }

    /// Looks at this very process, which leaks a descriptor at each look but holds its directory.
    #[test]
    fn a_process_that_leaks_descriptors_is_found() {
        let own = ("own".to_owned(), std::process::id());
        let mut levels = Levels::new(vec![own], Vec::new());
        let mut leaked = Vec::new();
        for number in 0..100 {
            leaked.push(std::fs::File::open("/dev/null"));
            let mut page = page(number);
            page.insert("nat_flows".to_owned(), 100 * number);
            let at = Duration::from_secs(number * 5);
            levels.look(at, &page).unwrap();
        }
        let soak = levels.judge(Duration::from_secs(500)).unwrap();
        assert_eq!((soak.blocks, soak.units), (50, 50));
        let held = |what: &str| {
            let mut found = soak.levels.iter().filter(|level| level.what == what);
            found.next().unwrap().holds()
        };
        assert!(!held("descriptors"));
        assert!(held("payers"));
        assert!(
            held("nat_flows"),
            "it is judged only where all had time to end"
        );
    }

    #[test]
    fn a_number_that_is_told_no_more_is_an_error_with_its_name() {
        let mut levels = Levels::new(Vec::new(), Vec::new());
        for number in 0..100 {
            let mut page = page(number);
            page.remove("nat_flows");
            levels.look(Duration::from_secs(number * 5), &page).unwrap();
        }
        let error = levels.judge(Duration::from_secs(500)).unwrap_err();
        assert!(error.to_string().contains("nat_flows"), "{error}");
    }

    #[test]
    fn a_process_that_is_gone_is_an_error_with_its_name() {
        let gone = ("metering".to_owned(), u32::MAX);
        let mut levels = Levels::new(vec![gone], Vec::new());
        let error = levels.look(Duration::ZERO, &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("metering has ended"));
    }
}
