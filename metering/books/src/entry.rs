//! What the books give to a journal, and what they want back after a crash.

use topnet_account::ChannelId;

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
}
