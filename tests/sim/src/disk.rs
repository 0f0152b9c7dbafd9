//! Disks: what was written may be lost until it was synced.

use std::collections::BTreeMap;

use topnet_account::ChannelId;
use topnet_books::{Entry, LogHead, NewLine, Stored};
use topnet_log::Line;

use crate::random::Random;

/// Metering's journal: one record a channel, batches whole or not at all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    synced: BTreeMap<ChannelId, Stored>,
    /// The service log.
    lines: BTreeMap<ChannelId, Vec<Line>>,
    written: Vec<Entry>,
}

impl Journal {
    pub(crate) fn write(&mut self, entries: Vec<Entry>) {
        self.written = entries;
    }

    /// What was written stays; gives the channels that it was about.
    pub(crate) fn sync(&mut self) -> Result<Vec<ChannelId>, String> {
        let mut channels = Vec::new();
        for entry in std::mem::take(&mut self.written) {
            let Entry {
                channel,
                facts,
                record,
                line,
                forget,
            } = entry;
            if forget {
                return Err("a channel is forgotten that nobody closed".to_owned());
            }
            channels.push(channel);
            let stored = match (self.synced.remove(&channel), facts) {
                (Some(stored), facts) => Stored {
                    facts: facts.unwrap_or(stored.facts),
                    record: record.or(stored.record),
                    ..stored
                },
                (None, Some(facts)) => Stored {
                    channel,
                    facts,
                    record,
                    log: None,
                },
                (None, None) => return Err("a record was journalled without its facts".to_owned()),
            };
            let log = match line {
                Some(new) => Some(self.log(stored.log, new)?),
                None => stored.log,
            };
            self.synced.insert(channel, Stored { log, ..stored });
        }
        Ok(channels)
    }

    /// Adds a line, which must follow from the last.
    fn log(&mut self, before: Option<LogHead>, new: NewLine) -> Result<LogHead, String> {
        let mut head = before.unwrap_or_default();
        let line = new.line;
        let follows = line.units_before == head.units
            && head.tree.append(&line) == new.peak
            && head.tree.size() == new.lines;
        if !follows {
            return Err(format!("a line of the log does not follow: {new:?}"));
        }
        head.units = line.units;
        self.lines.entry(line.channel).or_default().push(line);
        Ok(head)
    }

    /// A channel's part of the service log.
    pub(crate) fn lines(&self, channel: ChannelId) -> &[Line] {
        self.lines.get(&channel).map_or(&[], Vec::as_slice)
    }

    /// The machine's power fails: of what was not synced all or nothing is there.
    pub(crate) fn crash(&mut self, random: &mut Random) -> Result<Vec<ChannelId>, String> {
        if random.once_in(2) {
            self.written.clear();
        }
        self.sync()
    }

    pub(crate) fn stored(&self) -> Vec<Stored> {
        self.synced.values().cloned().collect()
    }

    pub(crate) fn of(&self, channel: ChannelId) -> Option<&Stored> {
        self.synced.get(&channel)
    }
}

/// A wallet's journal: only the newest record matters.
#[derive(Clone, Debug, Default)]
pub(crate) struct WalletDisk {
    synced: Option<Vec<u8>>,
    written: Option<Vec<u8>>,
    /// A copy that its owner made once.
    backup: Option<Vec<u8>>,
}

impl WalletDisk {
    pub(crate) fn write(&mut self, record: &[u8]) {
        self.written = Some(record.to_vec());
    }

    pub(crate) fn sync(&mut self) {
        self.synced = self.written.take().or(self.synced.take());
    }

    pub(crate) fn crash(&mut self, random: &mut Random) {
        if random.once_in(2) {
            self.written = None;
        }
        self.sync();
    }

    pub(crate) fn back_up(&mut self) {
        self.backup = self.synced.clone();
    }

    /// The backup takes the place of what is there.
    pub(crate) fn restore(&mut self) {
        self.synced = self.backup.clone();
        self.written = None;
    }

    pub(crate) fn lose(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn record(&self) -> Option<&[u8]> {
        self.synced.as_deref()
    }
}
