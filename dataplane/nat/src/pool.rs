//! The pool: addresses, their blocks, and which ports of a block are lent.
//!
//! A block is **free**, **lent** (it has an owner) or **resting** (its owner was removed with
//! ports in use; strangers' packets may still be on their way). A lent block without a port in
//! use is *idle*; it goes back when it has been idle for the rest, and then straight to free.
//!
//! Half of an address's blocks are for subscribers that have none yet: the others may be lent as
//! further ones too, so that no few subscribers take all of an address.
//!
//! | event | free | lent | resting |
//! |---|---|---|---|
//! | lend | lent | – | refused |
//! | idle for the rest | – | free | – |
//! | owner removed | – | resting | – |
//! | rest over | – | – | free |

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use crate::Config;
use crate::chains::NONE;
use crate::config::{BLOCK_PORTS_STEP, PORT_MIN};
use crate::hash::Random;
use crate::packet::Protocol;

/// Every second port: those that are even, as a block begins with an even one.
const EVEN_PORTS: u64 = 0x5555_5555_5555_5555;

struct Address {
    external: u32,
    /// Blocks that can be lent.
    free: Vec<u32>,
    /// Blocks that are lent to subscribers beyond their first.
    further: u32,
    /// Its place among the open addresses; `NONE` if it has no free block.
    open_at: u32,
}

#[derive(Clone)]
struct Block {
    /// The subscriber's place; `NONE` if nobody's.
    owner: u32,
    /// Ports lent, all protocols together.
    ports_used: u32,
    idle_since_ms: u64,
    /// In the queue of idle blocks; at most once.
    watched: bool,
}

/// All addresses and blocks. Blocks are numbered through all addresses.
pub(crate) struct Pool {
    addresses: Vec<Address>,
    /// Numbers of addresses by external address, sorted.
    sorted: Vec<(u32, u32)>,
    /// Addresses with a free block.
    open: Vec<u32>,
    blocks: Vec<Block>,
    /// One bit a port, per block and protocol.
    used: Vec<u64>,
    /// Blocks that have been idle, and when to look at them.
    idle: VecDeque<(u32, u64)>,
    /// Blocks and when their rest is over, oldest first.
    resting: VecDeque<(u32, u64)>,
    block_ports: u16,
    blocks_per_address: u32,
    /// Those of them that are lent here.
    own_per_address: u32,
    rest_ms: u64,
    blocks_lent: u32,
}

impl Pool {
    pub(crate) fn new(config: &Config) -> Self {
        let blocks_per_address = config.blocks_per_address();
        let blocks = config.pool.len() * blocks_per_address as usize;
        let words =
            blocks * Protocol::ALL.len() * usize::from(config.block_ports / BLOCK_PORTS_STEP);
        let own: Vec<u32> = (0..blocks_per_address)
            .filter(|block| config.part.has(*block))
            .collect();
        let address = |(number, external): (usize, &Ipv4Addr)| {
            let first = number as u32 * blocks_per_address;
            Address {
                external: (*external).into(),
                free: own.iter().map(|block| first + block).collect(),
                further: 0,
                open_at: number as u32,
            }
        };
        let addresses: Vec<_> = config.pool.iter().enumerate().map(address).collect();
        let numbers = 0..addresses.len() as u32;
        let mut sorted: Vec<_> = addresses
            .iter()
            .zip(numbers.clone())
            .map(|(address, number)| (address.external, number))
            .collect();
        sorted.sort_unstable();
        let block = Block {
            owner: NONE,
            ports_used: 0,
            idle_since_ms: 0,
            watched: false,
        };
        Self {
            addresses,
            sorted,
            open: numbers.collect(),
            blocks: vec![block; blocks],
            used: vec![0; words],
            idle: VecDeque::with_capacity(blocks),
            resting: VecDeque::with_capacity(blocks),
            block_ports: config.block_ports,
            blocks_per_address,
            own_per_address: own.len() as u32,
            rest_ms: config.timeouts.block_rest_ms,
            blocks_lent: 0,
        }
    }

    pub(crate) fn blocks(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Blocks that are lent here, now or later.
    pub(crate) fn own_blocks(&self) -> u32 {
        self.addresses.len() as u32 * self.own_per_address
    }

    pub(crate) fn blocks_lent(&self) -> u32 {
        self.blocks_lent
    }

    pub(crate) fn blocks_resting(&self) -> u32 {
        self.resting.len() as u32
    }

    pub(crate) fn block_ports(&self) -> u16 {
        self.block_ports
    }

    /// The number of an external address; `None` if it is not of the pool.
    pub(crate) fn address_number(&self, external: u32) -> Option<u32> {
        let at = self
            .sorted
            .binary_search_by_key(&external, |(address, _)| *address);
        at.ok().map(|at| self.sorted[at].1)
    }

    pub(crate) fn contains(&self, external: u32) -> bool {
        self.address_number(external).is_some()
    }

    pub(crate) fn external(&self, address: u32) -> u32 {
        self.addresses[address as usize].external
    }

    /// The block that `port` of an address is in, if it is in one.
    pub(crate) fn block_of(&self, address: u32, port: u16) -> Option<u32> {
        let nth = u32::from(port.checked_sub(PORT_MIN)?) / u32::from(self.block_ports);
        (nth < self.blocks_per_address).then_some(address * self.blocks_per_address + nth)
    }

    pub(crate) fn address_of(&self, block: u32) -> u32 {
        block / self.blocks_per_address
    }

    pub(crate) fn first_port(&self, block: u32) -> u16 {
        PORT_MIN + (block % self.blocks_per_address) as u16 * self.block_ports
    }

    pub(crate) fn owner(&self, block: u32) -> u32 {
        self.blocks[block as usize].owner
    }

    /// An address for a new subscriber: of two drawn, the one with more to lend, which spreads
    /// subscribers almost evenly and tells nobody where the next one goes.
    pub(crate) fn draw_address(&self, random: &mut Random) -> Option<u32> {
        if self.open.is_empty() {
            return None;
        }
        let mut draw = || self.open[random.below(self.open.len() as u32) as usize];
        let (one, other) = (draw(), draw());
        let free = |address: u32| self.addresses[address as usize].free.len();
        Some(if free(one) >= free(other) { one } else { other })
    }

    /// Lends a block of the address that is drawn from its free ones. `is_further` says that the
    /// owner has one already.
    pub(crate) fn lend(
        &mut self,
        address: u32,
        owner: u32,
        is_further: bool,
        random: &mut Random,
    ) -> Option<u32> {
        let entry = &self.addresses[address as usize];
        let free = entry.free.len() as u32;
        if free == 0 || (is_further && entry.further >= (self.own_per_address / 2).max(1)) {
            return None;
        }
        let nth = random.below(free) as usize;
        Some(self.lend_nth(address, nth, owner, is_further))
    }

    /// Lends one certain block, if it is free.
    pub(crate) fn lend_block(&mut self, block: u32, owner: u32, is_further: bool) -> bool {
        let address = self.address_of(block);
        let free = &self.addresses[address as usize].free;
        let Some(nth) = free.iter().position(|free| *free == block) else {
            return false;
        };
        self.lend_nth(address, nth, owner, is_further);
        true
    }

    fn lend_nth(&mut self, address: u32, nth: usize, owner: u32, is_further: bool) -> u32 {
        let block = self.take_free(address, nth);
        self.addresses[address as usize].further += u32::from(is_further);
        self.blocks[block as usize].owner = owner;
        self.blocks_lent += 1;
        block
    }

    fn take_free(&mut self, address: u32, nth: usize) -> u32 {
        let entry = &mut self.addresses[address as usize];
        let block = entry.free.swap_remove(nth);
        if entry.free.is_empty() {
            let at = std::mem::replace(&mut entry.open_at, NONE) as usize;
            self.open.swap_remove(at);
            if let Some(moved) = self.open.get(at) {
                self.addresses[*moved as usize].open_at = at as u32;
            }
        }
        block
    }

    /// Takes back a lent block, whatever of it is in use. It rests first if strangers may know
    /// its ports. `was_further` says that the owner has others.
    pub(crate) fn take_back(&mut self, block: u32, was_further: bool, now_ms: u64, rests: bool) {
        let address = self.address_of(block) as usize;
        self.addresses[address].further -= u32::from(was_further);
        let words = self.bitmap_words();
        let start = block as usize * words * Protocol::ALL.len();
        self.used[start..start + words * Protocol::ALL.len()].fill(0);
        let entry = &mut self.blocks[block as usize];
        entry.owner = NONE;
        entry.ports_used = 0;
        self.blocks_lent -= 1;
        if rests && self.rest_ms > 0 {
            let until_ms = now_ms.saturating_add(self.rest_ms);
            self.resting.push_back((block, until_ms));
        } else {
            self.free(block);
        }
    }

    fn free(&mut self, block: u32) {
        let address = self.address_of(block);
        let entry = &mut self.addresses[address as usize];
        if entry.free.is_empty() {
            entry.open_at = self.open.len() as u32;
            self.open.push(address);
        }
        entry.free.push(block);
    }

    /// Frees the block that has rested longest, if its rest is over.
    pub(crate) fn wake_one(&mut self, now_ms: u64) -> bool {
        let over = self
            .resting
            .pop_front_if(|(_, until_ms)| *until_ms <= now_ms);
        if let Some((block, _)) = over {
            self.free(block);
        }
        over.is_some()
    }

    /// Blocks that rest, and for how much longer.
    pub(crate) fn resting(&self, now_ms: u64) -> impl Iterator<Item = (u32, u64)> + Clone {
        let left = move |(block, until_ms): &(u32, u64)| (*block, until_ms.saturating_sub(now_ms));
        self.resting.iter().map(left)
    }

    /// Lets a free block rest, as it did before a restart. False if it is not free, or if its
    /// rest were over before that of the last one.
    pub(crate) fn rest_block(&mut self, block: u32, until_ms: u64) -> bool {
        let address = self.address_of(block);
        let free = &self.addresses[address as usize].free;
        let last_ms = self.resting.back().map_or(0, |(_, last_ms)| *last_ms);
        let Some(nth) = free.iter().position(|free| *free == block) else {
            return false;
        };
        if until_ms < last_ms {
            return false;
        }
        self.take_free(address, nth);
        self.resting.push_back((block, until_ms));
        true
    }

    /// Looks at the block whose rest may be over first. One that has been idle for the whole
    /// rest is its owner's no longer: the caller takes it back. One that was used in between
    /// is looked at again, at the earliest when it can be over and at the latest a rest later.
    pub(crate) fn poll_idle(&mut self, now_ms: u64) -> Idle {
        let Some((block, _)) = self.idle.pop_front_if(|(_, due_ms)| *due_ms <= now_ms) else {
            return Idle::None;
        };
        let entry = &mut self.blocks[block as usize];
        let is_idle = entry.owner != NONE && entry.ports_used == 0;
        let over_ms = entry.idle_since_ms.saturating_add(self.rest_ms);
        if is_idle && over_ms > now_ms {
            self.idle.push_back((block, over_ms));
            return Idle::Passed;
        }
        entry.watched = false;
        if is_idle {
            Idle::Over(block)
        } else {
            Idle::Passed
        }
    }

    fn bitmap_words(&self) -> usize {
        usize::from(self.block_ports / BLOCK_PORTS_STEP)
    }

    fn bitmap(&mut self, block: u32, protocol: Protocol) -> &mut [u64] {
        let words = self.bitmap_words();
        let start = (block as usize * Protocol::ALL.len() + protocol as usize) * words;
        &mut self.used[start..start + words]
    }

    /// Lends a port of the block, the first free one from a drawn one on; one as even as
    /// `like`, if that is asked for.
    pub(crate) fn lend_port(
        &mut self,
        block: u32,
        protocol: Protocol,
        like: Option<u16>,
        random: &mut Random,
    ) -> Option<u16> {
        let wanted = match like {
            None => u64::MAX,
            Some(port) if port % 2 == 0 => EVEN_PORTS,
            Some(_) => !EVEN_PORTS,
        };
        let start = random.below(u32::from(self.block_ports)) as usize;
        let offset = first_free(self.bitmap(block, protocol), wanted, start)?;
        self.mark(block, protocol, offset);
        Some(self.first_port(block) + offset as u16)
    }

    /// Lends one certain port of a lent block, if it is free.
    pub(crate) fn lend_certain(&mut self, block: u32, protocol: Protocol, port: u16) -> bool {
        let offset = usize::from(port - self.first_port(block));
        let is_used = self.bitmap(block, protocol)[offset / 64] >> (offset % 64) & 1 == 1;
        if !is_used {
            self.mark(block, protocol, offset);
        }
        !is_used
    }

    fn mark(&mut self, block: u32, protocol: Protocol, offset: usize) {
        self.bitmap(block, protocol)[offset / 64] |= 1 << (offset % 64);
        self.blocks[block as usize].ports_used += 1;
    }

    /// Takes a lent port back.
    pub(crate) fn take_back_port(
        &mut self,
        block: u32,
        protocol: Protocol,
        port: u16,
        now_ms: u64,
    ) {
        let offset = usize::from(port - self.first_port(block));
        self.bitmap(block, protocol)[offset / 64] &= !(1 << (offset % 64));
        self.blocks[block as usize].ports_used -= 1;
        if self.blocks[block as usize].ports_used == 0 {
            self.watch(block, now_ms);
        }
    }

    /// Notes that a lent block is idle from now on.
    pub(crate) fn watch(&mut self, block: u32, now_ms: u64) {
        let entry = &mut self.blocks[block as usize];
        entry.idle_since_ms = now_ms;
        if !entry.watched {
            entry.watched = true;
            let due_ms = now_ms.saturating_add(self.rest_ms);
            self.idle.push_back((block, due_ms));
        }
    }

    pub(crate) fn is_idle(&self, block: u32) -> bool {
        self.blocks[block as usize].ports_used == 0
    }
}

/// What came of a look at the idle blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Idle {
    /// There is nothing to look at.
    None,
    /// A block was looked at and may stay.
    Passed,
    /// This one is to be taken back.
    Over(u32),
}

/// The first bit from `start` on, and round, that is clear in `used` and set in `wanted`.
fn first_free(used: &[u64], wanted: u64, start: usize) -> Option<usize> {
    let words = used.len();
    let from_start = u64::MAX << (start % 64);
    for step in 0..=words {
        let word = (start / 64 + step) % words;
        let part = match step {
            0 => from_start,
            _ if step == words => !from_start,
            _ => u64::MAX,
        };
        let free = !used[word] & wanted & part;
        if free != 0 {
            return Some(word * 64 + free.trailing_zeros() as usize);
        }
    }
    None
}
