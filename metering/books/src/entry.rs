//! What the books give to a journal, and what they want back after a crash.

use topnet_account::ChannelId;
use topnet_log::{Frontier, Line, Peak};
use topnet_unit::UnitCount;

use crate::facts::Facts;

/// A channel as the journal holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The channel.
    pub channel: ChannelId,
    /// What is known of it.
    pub facts: Facts,
    /// The payee's record.
    pub record: Option<Vec<u8>>,
    /// Where its part of the service log stands; `None` before the first line.
    pub log: Option<LogHead>,
}

/// Where a channel's part of the service log stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogHead {
    /// Units that have a line.
    pub units: UnitCount,
    /// The tree over the lines.
    pub tree: Frontier,
}

/// A line of the service log, and what it changes in the channel's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewLine {
    /// The line.
    pub line: Line,
    /// Lines of the channel by now.
    pub lines: u64,
    /// The peak that is new.
    pub peak: Peak,
}

/// What one channel's part of a batch says anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The channel.
    pub channel: ChannelId,
    /// What is known of it, where that changed.
    pub facts: Option<Facts>,
    /// The payee's record, where that changed.
    pub record: Option<Vec<u8>>,
    /// Units that were begun.
    pub line: Option<NewLine>,
    /// Everything about the channel is to go.
    pub forget: bool,
}

impl Entry {
    pub(crate) fn forget(channel: ChannelId) -> Self {
        Self {
            channel,
            facts: None,
            record: None,
            line: None,
            forget: true,
        }
    }
}
