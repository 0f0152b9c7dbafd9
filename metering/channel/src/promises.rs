//! The promises that a payee holds for one channel.
//!
//! What every token touches stands at the front, and the payee's own part of it before that
//! (see [`Payee`](crate::Payee)).

use topnet_account::ChannelId;
use topnet_unit::UnitCount;

use crate::{Preimage, Promise, RefusalCode, Salt, SignedVoucher, Token, walk_back};

/// Vouchers kept for one channel, at most: the newest and those that owed has not passed.
pub const PROMISES_PER_CHANNEL_MAX: usize = 16;

/// The newest voucher as far as tokens are concerned. Before the first voucher it has no
/// tokens and a sequence number that none has, so that every token is refused.
#[derive(Clone, Debug)]
struct Newest {
    channel: ChannelId,
    preimage: Preimage,
    salt: Salt,
    seq: u32,
    tokens: u16,
    index: u16,
}

/// All promises of a channel; each begins at or before the last unit that the one before pays.
#[repr(C)]
#[derive(Clone, Debug)]
pub(crate) struct Promises {
    newest: Newest,
    voucher: Option<SignedVoucher>,
    /// Oldest first.
    superseded: Vec<Promise>,
}

impl Promises {
    /// What a token touches.
    pub(crate) const HOT_BYTES: usize = size_of::<Newest>();

    pub(crate) fn none(channel: ChannelId) -> Self {
        let (preimage, salt) = ([0; 32], [0; 16]);
        let newest = Newest {
            channel,
            preimage,
            salt,
            seq: 0,
            tokens: 0,
            index: 0,
        };
        Self {
            newest,
            voucher: None,
            superseded: Vec::new(),
        }
    }

    /// The newest voucher with the furthest token seen of its chain.
    pub(crate) fn newest(&self) -> Option<Promise> {
        let Newest {
            index, preimage, ..
        } = self.newest;
        self.voucher.map(|voucher| Promise {
            voucher,
            index,
            preimage,
        })
    }

    /// All, oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = Promise> {
        self.superseded.iter().copied().chain(self.newest())
    }

    /// Takes a token of the newest voucher: true if it pays something new, false if it was seen
    /// before. `ahead_max` bounds the hashes that a token may cost.
    pub(crate) fn take(&mut self, token: &Token, ahead_max: u64) -> Result<bool, RefusalCode> {
        let newest = &mut self.newest;
        if token.channel != newest.channel {
            return Err(RefusalCode::UnknownChannel);
        }
        if token.seq != newest.seq || newest.seq == 0 {
            return Err(RefusalCode::StaleVoucher);
        }
        if token.index > newest.tokens {
            return Err(RefusalCode::BeyondChain);
        }
        if token.index <= newest.index {
            return Ok(false);
        }
        if u64::from(token.index - newest.index) > ahead_max {
            return Err(RefusalCode::TooFarAhead);
        }
        if walk_back(token.preimage, &newest.salt, token.index, newest.index) != newest.preimage {
            return Err(RefusalCode::WrongPreimage);
        }
        newest.index = token.index;
        newest.preimage = token.preimage;
        Ok(true)
    }

    /// True if `w[index]` is on the newest voucher's chain, at or after the furthest token seen.
    pub(crate) fn is_on_chain(&self, preimage: Preimage, index: u16) -> bool {
        let newest = &self.newest;
        index >= newest.index
            && walk_back(preimage, &newest.salt, index, newest.index) == newest.preimage
    }

    /// Another voucher becomes the newest. `retired` is the one before with its last token; where
    /// it is `None` the one before is kept as it is, unless it is the same voucher. Refused if
    /// too many wait for owed to pass them: the payer is thousands of units ahead of its use.
    pub(crate) fn push(
        &mut self,
        retired: Option<Promise>,
        next: Promise,
    ) -> Result<(), RefusalCode> {
        let same = self.voucher == Some(next.voucher);
        if let Some(before) = retired.or(self.newest()).filter(|_| !same) {
            if self.superseded.len() + 1 == PROMISES_PER_CHANNEL_MAX {
                return Err(RefusalCode::TooFarAhead);
            }
            self.superseded.push(before);
        }
        let voucher = &next.voucher.voucher;
        self.newest = Newest {
            channel: self.newest.channel,
            preimage: next.preimage,
            salt: voucher.salt(),
            seq: voucher.seq,
            tokens: voucher.tokens,
            index: next.index,
        };
        self.voucher = Some(next.voucher);
        Ok(())
    }

    /// Forgets vouchers whose successor begins at or before what is owed: no claim can need them.
    pub(crate) fn forget_before(&mut self, owed: UnitCount) {
        let begins = |promise: &Promise| promise.voucher.voucher.cumulative_units;
        if self.newest().is_some_and(|newest| begins(&newest) <= owed) {
            self.superseded.clear();
        } else if let Some(passed) = self.superseded.iter().rposition(|p| begins(p) <= owed) {
            self.superseded.drain(..passed);
        }
    }
}
