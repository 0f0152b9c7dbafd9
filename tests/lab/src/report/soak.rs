//! What a long run kept: levels that are to be as they were, and what was done meanwhile.

use serde::Serialize;

use crate::{flows::Opened, growth::Growth};

/// A long run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Soak {
    /// How long there was traffic.
    pub seconds: u64,
    /// What was done.
    pub done: Done,
    /// Looks at every level.
    pub samples: usize,
    /// Units paid between the middles of the second quarter and the last one.
    pub units: u64,
    /// Blocks of all chains, between the same.
    pub blocks: u64,
    /// What was looked at.
    pub levels: Vec<Level>,
}

/// What was done in a long run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Done {
    /// Files of the paying client that came through.
    pub paid_files: u64,
    /// Files of the operator's own peers that came through.
    pub own_files: u64,
    /// Their bytes, together.
    pub file_bytes: u64,
    /// Flows of the paying client beside.
    pub flows: Opened,
    /// Handshakes after a peer's first.
    pub rekeys: u64,
    /// Reloads that the data plane says it has done.
    pub reloads: u64,
    /// Peers that came, worked and were removed.
    pub guests: u64,
    /// Times that the client got another address.
    pub moves: u64,
}

/// Something that there is more or less of.
#[derive(Clone, Debug, Serialize)]
pub struct Level {
    /// Whose it is: a process, or a directory.
    pub of: String,
    /// What it is.
    pub what: &'static str,
    /// In the second quarter and the last one.
    #[serde(flatten)]
    pub growth: Growth,
    /// False if the run was too short for it to come to rest: it is shown and not judged.
    pub judged: bool,
    /// Medians of the run's eighths.
    pub course: Vec<u64>,
}

impl Level {
    /// False if it grew by more than it may.
    pub const fn holds(&self) -> bool {
        !self.judged || self.growth.holds()
    }

    fn is_bytes(&self) -> bool {
        self.what.ends_with("bytes")
    }

    fn line(&self, soak: &Soak) -> String {
        let scale = if self.is_bytes() { 1024 } else { 1 };
        let Growth {
            before,
            after,
            allowed,
        } = self.growth;
        let grown = self.growth.grown() / i128::from(scale);
        let per_unit = match self.is_bytes() && soak.units > 0 {
            true => format!(
                ", {} bytes/unit",
                self.growth.grown() / i128::from(soak.units)
            ),
            false => String::new(),
        };
        let judged = match (self.judged, self.growth.holds()) {
            (false, _) => "not judged",
            (true, true) => "",
            (true, false) => "GREW",
        };
        let unit = if self.is_bytes() { " KiB" } else { "" };
        format!(
            "  {:<20} {:<17} {:>9} → {:>9}{unit}, {grown:+} of {:+} at most{per_unit} {judged}",
            self.of,
            self.what.trim_end_matches("_bytes"),
            before / scale,
            after / scale,
            allowed / scale,
        )
        .trim_end()
        .to_owned()
    }
}

impl Soak {
    /// What grew by more than it may, in words.
    pub fn mismatches(&self) -> Vec<String> {
        let grew = self.levels.iter().filter(|level| !level.holds());
        grew.map(|level| {
            let (of, what) = (&level.of, level.what);
            let (grown, allowed) = (level.growth.grown(), level.growth.allowed);
            format!("{what} of {of} grew by no more than {allowed} (by {grown})")
        })
        .collect()
    }

    /// The rows of the table.
    pub fn rows(&self) -> String {
        let Done {
            paid_files,
            own_files,
            file_bytes,
            flows,
            rekeys,
            reloads,
            guests,
            moves,
        } = self.done;
        let mut text = format!(
            "  soak: {} s, {paid_files} paid and {own_files} free downloads ({} MiB), {} connections and {} \
             datagrams by ports of their own, {rekeys} rekeys, {reloads} reloads, {guests} peers came \
             and went, {moves} moves\n  \
             the second quarter's medians and the last one's of {} samples, {} units and {} blocks apart:\n",
            self.seconds,
            file_bytes >> 20,
            flows.connections,
            flows.datagrams,
            self.samples,
            self.units,
            self.blocks
        );
        for level in &self.levels {
            text.push_str(&level.line(self));
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(after: u64, judged: bool) -> Level {
        Level {
            of: "metering".to_owned(),
            what: "resident_bytes",
            growth: Growth {
                before: 40 << 20,
                after,
                allowed: 2 << 20,
            },
            judged,
            course: Vec::new(),
        }
    }

    #[test]
    fn what_grew_is_named_and_what_is_not_judged_is_shown() {
        let soak = Soak {
            units: 1000,
            levels: vec![
                level(42 << 20, true),
                level(43 << 20, true),
                level(44 << 20, false),
            ],
            ..Soak::default()
        };
        assert_eq!(
            soak.mismatches(),
            ["resident_bytes of metering grew by no more than 2097152 (by 3145728)"]
        );
        let rows = soak.rows();
        let lines: Vec<_> = rows.lines().skip(2).collect();
        assert!(
            lines[0].contains("40960 →     43008 KiB, +2048 of +2048 at most, 2097 bytes/unit")
        );
        assert!(lines[1].ends_with("GREW"), "{rows}");
        assert!(lines[2].ends_with("not judged"), "{rows}");
    }
}
