//! The Merkle tree over a channel's lines: RFC 9162, section 2.1, with SHA-256.
//!
//! Only the peaks of the complete subtrees are kept (at most [`LEVELS_MAX`]); a new leaf changes
//! exactly one of them, which is all that a journal has to write.

use sha2::{Digest, Sha256};
use topnet_account::{ChannelId, Hash};

use crate::Line;

/// Levels that a tree may have.
pub const LEVELS_MAX: usize = 64;
const LEAF: u8 = 0;
const INNER: u8 = 1;
const DOMAIN: &[u8; 12] = b"topnet/log/1";

/// What a leaf has changed: the one peak that is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peak {
    /// Of the complete subtree: it has 2^level leaves.
    pub level: u8,
    /// Its hash.
    pub hash: Hash,
}

/// A tree that grows: its size and the peaks of its complete subtrees, largest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// The tree of `size` leaves whose peak of each level is what `peak` gives; `None` if one is
    /// missing.
    pub fn restore(size: u64, mut peak: impl FnMut(u8) -> Option<Hash>) -> Option<Self> {
        let levels = (0..LEVELS_MAX as u8).rev();
        let peaks = levels
            .filter(|level| size >> level & 1 == 1)
            .map(&mut peak)
            .collect::<Option<_>>()?;
        Some(Self { size, peaks })
    }

    /// Leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf. A tree of 2⁶⁴ − 1 leaves cannot be reached one by one.
    pub fn append(&mut self, line: &Line) -> Peak {
        self.append_leaf(leaf(line))
    }

    fn append_leaf(&mut self, leaf: Hash) -> Peak {
        let mut hash = leaf;
        let mut level = 0;
        while self.size >> level & 1 == 1
            && let Some(left) = self.peaks.pop()
        {
            hash = inner(&left, &hash);
            level += 1;
        }
        self.peaks.push(hash);
        self.size += 1;
        Peak { level, hash }
    }

    /// The tree's hash; zero for a tree without leaves.
    pub fn root(&self) -> Hash {
        let folded = self.peaks.iter().rev().copied();
        folded
            .reduce(|right, left| inner(&left, &right))
            .unwrap_or(Hash::ZERO)
    }
}

/// What a claim carries: it binds the channel and the number of lines to the tree. Zero where
/// there are no lines.
pub fn log_root(channel: &ChannelId, lines: u64, tree: &Hash) -> Hash {
    if lines == 0 {
        return Hash::ZERO;
    }
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    hasher.update(channel.as_bytes());
    hasher.update(lines.to_le_bytes());
    hasher.update(tree.as_bytes());
    Hash(hasher.finalize().into())
}

/// That a line is one of those that a claim's root is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The line.
    pub line: Line,
    /// Its place, from 0.
    pub index: u64,
    /// Lines in the tree.
    pub lines: u64,
    /// From the leaf's sibling upwards.
    pub path: Vec<Hash>,
}

impl Proof {
    /// The claim's root that the proof leads to (RFC 9162, 2.1.3.2); `None` if its path has the
    /// wrong length. It proves the line if the claim carries this root.
    pub fn root(&self) -> Option<Hash> {
        if self.index >= self.lines {
            return None;
        }
        let (mut place, mut last) = (self.index, self.lines - 1);
        let mut hash = leaf(&self.line);
        for sibling in &self.path {
            if last == 0 {
                return None;
            }
            if place & 1 == 1 || place == last {
                hash = inner(sibling, &hash);
                while place & 1 == 0 && place != 0 {
                    place >>= 1;
                    last >>= 1;
                }
            } else {
                hash = inner(&hash, sibling);
            }
            place >>= 1;
            last >>= 1;
        }
        (last == 0).then(|| log_root(&self.line.channel, self.lines, &hash))
    }
}

/// The proof of line `index` among all `lines` of a channel; `None` if there is no such line.
pub fn prove(lines: &[Line], index: usize) -> Option<Proof> {
    let leaves: Vec<Hash> = lines.iter().map(leaf).collect();
    let line = *lines.get(index)?;
    let mut path = Vec::new();
    climb(&leaves, index, &mut path);
    Some(Proof {
        line,
        index: index as u64,
        lines: lines.len() as u64,
        path,
    })
}

/// RFC 9162, 2.1.3.1: the path within the smaller half comes first, then the other half's hash.
fn climb(leaves: &[Hash], index: usize, path: &mut Vec<Hash>) {
    if leaves.len() <= 1 {
        return;
    }
    let half = leaves.len().next_power_of_two() / 2;
    let (left, right) = leaves.split_at(half);
    if index < half {
        climb(left, index, path);
        path.push(tree(right));
    } else {
        climb(right, index - half, path);
        path.push(tree(left));
    }
}

fn tree(leaves: &[Hash]) -> Hash {
    let mut frontier = Frontier::default();
    for leaf in leaves {
        frontier.append_leaf(*leaf);
    }
    frontier.root()
}

fn leaf(line: &Line) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([LEAF]);
    hasher.update(line.to_bytes());
    Hash(hasher.finalize().into())
}

fn inner(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([INNER]);
    hasher.update(left.as_bytes());
    hasher.update(right.as_bytes());
    Hash(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::example;

    fn lines(count: u64) -> Vec<Line> {
        (1..=count).map(|units| example(9, units)).collect()
    }

    fn frontier(lines: &[Line]) -> Frontier {
        let mut frontier = Frontier::default();
        for line in lines {
            frontier.append(line);
        }
        frontier
    }

    /// RFC 9162, 2.1.1, word for word.
    fn recursive(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Hash::ZERO,
            [leaf] => *leaf,
            leaves => {
                let half = leaves.len().next_power_of_two() / 2;
                inner(&recursive(&leaves[..half]), &recursive(&leaves[half..]))
            }
        }
    }

    #[test]
    fn every_line_of_every_small_tree_is_proved_and_no_other() {
        for count in 1..=33 {
            let lines = lines(count);
            let tree = frontier(&lines);
            let leaves: Vec<Hash> = lines.iter().map(leaf).collect();
            assert_eq!(tree.root(), recursive(&leaves), "{count}");
            let root = log_root(&lines[0].channel, count, &tree.root());
            for index in 0..lines.len() {
                let proof = prove(&lines, index).unwrap();
                assert_eq!(proof.root(), Some(root), "{index} of {count}");
                let spoils: [fn(&mut Proof); 5] = [
                    |proof| proof.line.units += 1,
                    |proof| proof.index ^= 1,
                    |proof| proof.lines += 1,
                    |proof| proof.path.push(Hash::ZERO),
                    |proof| proof.path.truncate(proof.path.len().saturating_sub(1)),
                ];
                for (number, spoil) in spoils.iter().enumerate() {
                    let mut spoilt = proof.clone();
                    spoil(&mut spoilt);
                    let unspoilt = spoilt == proof;
                    assert!(
                        unspoilt || spoilt.root() != Some(root),
                        "{number}: {index} of {count}"
                    );
                }
            }
            assert_eq!(prove(&lines, lines.len()), None);
        }
    }

    #[test]
    fn a_tree_is_restored_from_the_one_peak_that_each_leaf_changed() {
        let mut kept = [None; LEVELS_MAX];
        let mut tree = Frontier::default();
        for line in lines(100) {
            let peak = tree.append(&line);
            kept[usize::from(peak.level)] = Some(peak.hash);
            let restored = Frontier::restore(tree.size(), |level| kept[usize::from(level)]);
            assert_eq!(restored, Some(tree.clone()));
        }
        assert_eq!(Frontier::restore(101, |_| None), None);
    }

    /// Claims on chains carry this (computed apart with another library): it changes only with the
    /// domain's version.
    #[test]
    fn golden_root() {
        let lines = lines(3);
        let root = log_root(&lines[0].channel, 3, &frontier(&lines).root());
        assert_eq!(
            root.to_string(),
            "0x9f364cf7b2fefb9b7211870db3c285d2f2bb6bf9bb75b383b6577d5e4f791c1f"
        );
        assert_eq!(log_root(&lines[0].channel, 0, &Hash::ZERO), Hash::ZERO);
    }
}
