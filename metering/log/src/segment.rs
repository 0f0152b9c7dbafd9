//! The lines of all channels, in the order of time, in files that only grow.
//!
//! A segment is a file `NUMBER.log`: a head (magic, version, number), then lines of
//! [`LINE_BYTES`] each. A full one gets a seal as its last line: its number of lines and the
//! root of the tree over all of them, so that it can be kept anywhere. The journal says up to
//! which [`Position`] lines count. What stands behind that was never committed and is cut off
//! when the segments are opened: so a segment is sealed for good only when the journal stands in
//! a later one.
//!
//! Left to `topnet-archive`: where sealed segments are kept, and for how long. It leaves a file
//! `NUMBER.manifest` here for each that it has taken, so that no number is given twice.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use topnet_account::Hash;

use crate::{Frontier, LINE_BYTES, Line};

/// Lines of a segment unless configured otherwise; 44 MiB.
pub const SEGMENT_LINES: u64 = 1 << 19;
/// What the file of a segment that was taken into the archive leaves in its place.
pub const MANIFEST_SUFFIX: &str = "manifest";
const MAGIC: &[u8; 16] = b"topnet-log/1\0\0\0\0";
const SEAL: &[u8; 16] = b"topnet-log seal\0";
const SUFFIX: &str = "log";
const NAME_DIGITS: usize = 16;

/// Why there is no log, or no more of it. What cannot be logged must not be committed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The system says no: free the disk, or mend the permissions.
    #[error("cannot {what} the service log {path}: {source}; is the disk full?")]
    File {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not what was written.
    #[error(
        "the service log {path} is damaged: {reason}; restore it, or move the whole directory \
         away to begin a new log (lines that are gone cannot be shown to anybody)"
    )]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The journal is from before the log was archived.
    #[error(
        "the journal counts on a place in {path}, which was archived since: it is older than its \
         log; bring back a newer one, or move the whole directory away and give \
         [metering.archive] a new prefix or folder to begin a new log (its numbers are taken in \
         the old store)"
    )]
    JournalOlder {
        /// The segment.
        path: PathBuf,
    },
}

/// Up to where lines count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Number of the segment, from 1.
    pub segment: u64,
    /// Lines in it.
    pub lines: u64,
}

/// The segments, open for more.
#[derive(Debug)]
pub struct Segments {
    dir: PathBuf,
    lines_max: u64,
    position: Position,
    /// The segment that lines go to.
    file: Option<File>,
    tree: Frontier,
    /// Something was appended, or cut, that is not synced.
    unsynced: bool,
}

impl Segments {
    /// Opens the segments in `dir`, or begins them, at what the journal says; one that has
    /// `lines_max` lines is full. A journal that says nothing begins a new segment behind those
    /// that there are; its position is to be committed before lines are.
    pub fn open(dir: &Path, position: Option<Position>, lines_max: u64) -> Result<Self, LogError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("make the directory of", dir))?;
        let numbers = numbers(dir)?;
        let taken = numbers_with(dir, MANIFEST_SUFFIX)?;
        let newest = numbers.iter().chain(&taken).copied().max().unwrap_or(0);
        if let Some(position) = position
            && !numbers.contains(&position.segment)
            && taken.iter().any(|number| *number >= position.segment)
        {
            let path = segment_path(dir, position.segment);
            return Err(LogError::JournalOlder { path });
        }
        let mut segments = Self {
            dir: dir.to_owned(),
            lines_max,
            position: position.unwrap_or_default(),
            file: None,
            tree: Frontier::default(),
            unsynced: false,
        };
        // Numbers are not given twice, also where the whole log was moved away.
        if position.is_none() || numbers.is_empty() {
            segments.position.segment = segments.position.segment.max(newest);
            segments.begin()?;
            return Ok(segments);
        }
        for number in numbers {
            let path = segments.path(number);
            if number > segments.position.segment {
                fs::remove_file(&path).map_err(failed("cut what was not committed of", &path))?;
            }
        }
        segments.resume()?;
        Ok(segments)
    }

    /// Up to where everything was appended.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Appends lines; they count when they are synced and the journal says so.
    pub fn append(&mut self, lines: &[Line]) -> Result<(), LogError> {
        let mut rest = lines;
        while !rest.is_empty() {
            if self.position.lines >= self.lines_max {
                self.begin()?;
            }
            let room = usize::try_from(self.lines_max - self.position.lines).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room));
            let bytes: Vec<u8> = now.iter().flat_map(Line::to_bytes).collect();
            self.write(&bytes)?;
            for line in now {
                self.tree.append(line);
            }
            self.position.lines += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Returns when everything appended is on disk.
    pub fn sync(&mut self) -> Result<(), LogError> {
        if let Some(file) = self.file.as_ref().filter(|_| self.unsynced) {
            let path = self.path(self.position.segment);
            file.sync_data().map_err(failed("sync", &path))?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Goes back to `position`, after a write that failed: nobody knows what it left.
    pub fn rewind(&mut self, position: Position) -> Result<(), LogError> {
        let (dir, lines_max) = (self.dir.clone(), self.lines_max);
        *self = Self::open(&dir, Some(position), lines_max)?;
        Ok(())
    }

    /// Seals the segment that is full and begins the next.
    fn begin(&mut self) -> Result<(), LogError> {
        if self.file.is_some() {
            let mut seal = [0; LINE_BYTES];
            seal[..16].copy_from_slice(SEAL);
            seal[16..24].copy_from_slice(&self.position.lines.to_le_bytes());
            seal[24..56].copy_from_slice(self.tree.root().as_bytes());
            self.write(&seal)?;
            self.sync()?;
        }
        let number = self.position.segment + 1;
        let path = self.path(number);
        let mut file = options()
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(failed("begin", &path))?;
        file.write_all(&head(number))
            .and_then(|()| file.sync_all())
            .and_then(|()| File::open(&self.dir)?.sync_all())
            .map_err(failed("begin", &path))?;
        self.file = Some(file);
        self.position = Position {
            segment: number,
            lines: 0,
        };
        self.tree = Frontier::default();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        let path = self.path(self.position.segment);
        if let Some(file) = &mut self.file {
            self.unsynced = true;
            file.write_all(bytes).map_err(failed("write", &path))?;
        }
        Ok(())
    }

    /// Reads the segment up to the position and cuts off the rest.
    fn resume(&mut self) -> Result<(), LogError> {
        let path = self.path(self.position.segment);
        let mut file = options().open(&path).map_err(failed("open", &path))?;
        let length = (self.position.lines + 1) * LINE_BYTES as u64;
        let found = file.metadata().map_err(failed("open", &path))?.len();
        if found < length {
            let reason = format!("it has {found} bytes, the journal counts on {length}");
            return Err(LogError::Damaged { path, reason });
        }
        let mut lines = Reader::new(&mut file, &path, self.position.segment)?;
        for _ in 0..self.position.lines {
            match lines.next()? {
                Some(line) => drop(self.tree.append(&line)),
                None => {
                    let reason = "it is sealed before the place that the journal counts on".into();
                    return Err(LogError::Damaged { path, reason });
                }
            }
        }
        file.set_len(length)
            .and_then(|()| file.sync_all())
            .and_then(|()| file.seek(SeekFrom::Start(length)))
            .map_err(failed("cut what was not committed of", &path))?;
        self.file = Some(file);
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        segment_path(&self.dir, number)
    }
}

/// All lines of a segment, in order. The newest has none as long as its head is not whole: a kill
/// has left it so, and nothing in it was ever committed.
pub fn read_segment(dir: &Path, number: u64) -> Result<Vec<Line>, LogError> {
    let path = segment_path(dir, number);
    let file = File::open(&path).map_err(failed("open", &path))?;
    let length = file.metadata().map_err(failed("open", &path))?.len();
    if length < LINE_BYTES as u64 && numbers(dir)?.last() == Some(&number) {
        return Ok(Vec::new());
    }
    let mut reader = Reader::new(BufReader::new(file), &path, number)?;
    let mut lines = Vec::new();
    while let Some(line) = reader.next()? {
        lines.push(line);
    }
    Ok(lines)
}

/// Checks every byte of a sealed segment and shows its lines to `each`, in order: it must be
/// whole, from its head to its seal. `place` is where it comes from, for errors. Nothing that was
/// shown counts after an error.
pub fn read_sealed(
    place: &Path,
    number: u64,
    bytes: &[u8],
    mut each: impl FnMut(&Line),
) -> Result<(), LogError> {
    let damaged = |reason: &str| LogError::Damaged {
        path: place.to_owned(),
        reason: reason.to_owned(),
    };
    let whole = bytes.len().is_multiple_of(LINE_BYTES);
    let seal = bytes.rchunks_exact(LINE_BYTES).next().unwrap_or_default();
    // Behind the root a seal is empty.
    if !whole || !seal.starts_with(SEAL) || seal[56..] != [0; LINE_BYTES - 56] {
        return Err(damaged("it does not end with a seal"));
    }
    let mut source = bytes;
    let mut reader = Reader::new(&mut source, place, number)?;
    while let Some(line) = reader.next()? {
        each(&line);
    }
    match source {
        [] => Ok(()),
        _ => Err(damaged("there is more behind its seal")),
    }
}

/// True if the segment's file ends with a seal; whether it holds, [`read_sealed`] says.
pub fn is_sealed(dir: &Path, number: u64) -> Result<bool, LogError> {
    let path = segment_path(dir, number);
    let failed = failed("read", &path);
    let end = || -> io::Result<bool> {
        let mut file = File::open(&path)?;
        if file.metadata()?.len() < 2 * LINE_BYTES as u64 {
            return Ok(false);
        }
        let mut start = [0; SEAL.len()];
        file.seek(SeekFrom::End(-(LINE_BYTES as i64)))?;
        file.read_exact(&mut start)?;
        Ok(start == *SEAL)
    };
    end().map_err(failed)
}

struct Reader<'a, R> {
    source: R,
    path: &'a Path,
    tree: Frontier,
}

impl<'a, R: Read> Reader<'a, R> {
    fn new(mut source: R, path: &'a Path, number: u64) -> Result<Self, LogError> {
        let mut found = [0; LINE_BYTES];
        source
            .read_exact(&mut found)
            .map_err(failed("read", path))?;
        if found != head(number) {
            let reason = "it does not begin as a segment of this number and version".to_owned();
            let path = path.to_owned();
            return Err(LogError::Damaged { path, reason });
        }
        Ok(Self {
            source,
            path,
            tree: Frontier::default(),
        })
    }

    /// The next line; `None` at the end, which may be a seal. A torn last line is no line.
    fn next(&mut self) -> Result<Option<Line>, LogError> {
        let mut bytes = [0; LINE_BYTES];
        match self.source.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(source) => return Err(failed("read", self.path)(source)),
        }
        let damaged = |reason: &str| LogError::Damaged {
            path: self.path.to_owned(),
            reason: format!("{reason} at line {}", self.tree.size()),
        };
        if bytes.starts_with(SEAL) {
            let root = self.tree.root();
            let holds = bytes[16..24] == self.tree.size().to_le_bytes()
                && Hash(bytes[24..56].try_into().unwrap_or_default()) == root;
            return if holds {
                Ok(None)
            } else {
                Err(damaged("its seal does not hold"))
            };
        }
        let line = Line::from_bytes(&bytes).ok_or_else(|| damaged("a line is about no unit"))?;
        self.tree.append(&line);
        Ok(Some(line))
    }
}

fn head(number: u64) -> [u8; LINE_BYTES] {
    let mut head = [0; LINE_BYTES];
    head[..16].copy_from_slice(MAGIC);
    head[16..24].copy_from_slice(&number.to_le_bytes());
    head
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// The file of a segment in the log's directory.
pub fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{}.{SUFFIX}", segment_name(number)))
}

/// A segment's number as names are made of it: in the order of names they are in order.
pub fn segment_name(number: u64) -> String {
    format!("{number:0NAME_DIGITS$}")
}

/// Reads [`segment_name`]; so no name that somebody else has made up is near the last number.
pub fn number_of(name: &str) -> Option<u64> {
    let digits = name.len() == NAME_DIGITS && name.bytes().all(|byte| byte.is_ascii_digit());
    name.parse().ok().filter(|_| digits)
}

/// Numbers of the segments whose files are in the log's directory, in order.
pub fn numbers(dir: &Path) -> Result<Vec<u64>, LogError> {
    numbers_with(dir, SUFFIX)
}

/// Numbers of the files with a suffix in the log's directory, in order.
pub fn numbers_with(dir: &Path, suffix: &str) -> Result<Vec<u64>, LogError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let path = entry.map_err(failed("list", dir))?.path();
        let is_one = path.extension().is_some_and(|found| found == suffix);
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        if let Some(number) = stem.filter(|_| is_one).and_then(number_of) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError + use<> {
    let path = path.to_owned();
    move |source| LogError::File { what, path, source }
}

#[cfg(test)]
mod tests {
    use topnet_account::ChannelId;

    use super::*;
    use crate::{line::example, log_root, prove};

    const LINES_MAX: u64 = 4;

    fn open(dir: &Path, position: Option<Position>) -> Result<Segments, LogError> {
        Segments::open(dir, position, LINES_MAX)
    }

    fn lines_of(dir: &Path, channel: &ChannelId) -> Vec<Line> {
        let numbers = numbers(dir).unwrap().into_iter();
        let lines = numbers.flat_map(|number| read_segment(dir, number).unwrap());
        lines.filter(|line| line.channel == *channel).collect()
    }

    fn lines(channel: u8, units: std::ops::RangeInclusive<u64>) -> Vec<Line> {
        units.map(|units| example(channel, units)).collect()
    }

    #[test]
    fn lines_are_found_again_over_segments_and_prove_the_claims_root() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path(), None).unwrap();
        let mut tree = Frontier::default();
        for units in 1..=11 {
            segments
                .append(&[example(1, units), example(2, units)])
                .unwrap();
            segments.sync().unwrap();
            tree.append(&example(1, units));
        }
        assert_eq!(
            segments.position(),
            Position {
                segment: 6,
                lines: 2
            }
        );
        let channel = ChannelId([1; 32]);
        let found = lines_of(dir.path(), &channel);
        assert_eq!(found, lines(1, 1..=11));
        let root = log_root(&channel, 11, &tree.root());
        assert_eq!(prove(&found, 7).unwrap().root(), Some(root));
    }

    #[test]
    fn what_the_journal_does_not_say_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path(), None).unwrap();
        segments.append(&lines(1, 1..=3)).unwrap();
        let committed = segments.position();
        segments.append(&lines(1, 4..=10)).unwrap();
        segments.sync().unwrap();
        drop(segments);
        let mut segments = open(dir.path(), Some(committed)).unwrap();
        assert_eq!(segments.position(), committed);
        segments.append(&lines(2, 1..=2)).unwrap();
        segments.rewind(committed).unwrap();
        segments.append(&lines(1, 4..=6)).unwrap();
        segments.sync().unwrap();
        let found = lines_of(dir.path(), &ChannelId([1; 32]));
        assert_eq!(found, lines(1, 1..=6));
        assert_eq!(lines_of(dir.path(), &ChannelId([2; 32])), []);
    }

    #[test]
    fn damage_is_named_and_a_log_that_was_moved_away_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path(), None).unwrap();
        segments.append(&lines(1, 1..=6)).unwrap();
        let committed = segments.position();
        drop(segments);
        let first = segment_path(dir.path(), 1);
        let whole = fs::read(&first).unwrap();
        for at in [0, 17, LINE_BYTES + 40, whole.len() - 60] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&first, &damaged).unwrap();
            let read = read_segment(dir.path(), 1);
            assert!(matches!(read, Err(LogError::Damaged { .. })), "{at}");
        }
        let second = segment_path(dir.path(), 2);
        let short = fs::read(&second).unwrap();
        fs::write(&second, &short[..short.len() - 1]).unwrap();
        let refused = open(dir.path(), Some(committed));
        assert!(matches!(refused, Err(LogError::Damaged { .. })));
        fs::remove_file(&first).unwrap();
        fs::remove_file(&second).unwrap();
        let mut segments = open(dir.path(), Some(committed)).unwrap();
        segments.append(&lines(1, 7..=7)).unwrap();
        assert_eq!(segments.position().segment, 3);
    }

    #[test]
    fn a_journal_that_was_lost_overwrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path(), None).unwrap();
        segments.append(&lines(1, 1..=2)).unwrap();
        drop(segments);
        let mut segments = open(dir.path(), None).unwrap();
        segments.append(&lines(2, 1..=1)).unwrap();
        assert_eq!(read_segment(dir.path(), 1).unwrap(), lines(1, 1..=2));
        assert_eq!(read_segment(dir.path(), 2).unwrap(), lines(2, 1..=1));
    }

    #[test]
    fn a_newest_segment_whose_head_was_torn_is_empty_and_an_older_one_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path(), None).unwrap();
        segments.append(&lines(1, 1..=3)).unwrap();
        segments.sync().unwrap();
        let next = segment_path(dir.path(), 2);
        for length in [0, 1, LINE_BYTES - 1] {
            fs::write(&next, &head(2)[..length]).unwrap();
            let found = lines_of(dir.path(), &ChannelId([1; 32]));
            assert_eq!(found, lines(1, 1..=3), "{length}");
            assert!(!is_sealed(dir.path(), 2).unwrap());
        }
        fs::write(segment_path(dir.path(), 3), head(3)).unwrap();
        assert!(read_segment(dir.path(), 2).is_err());
    }

    #[test]
    fn numbers_of_segments_that_were_taken_away_are_not_given_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0000000000000007.manifest"), "").unwrap();
        let segments = open(dir.path(), None).unwrap();
        assert_eq!(segments.position().segment, 8);
    }

    #[test]
    fn a_journal_that_is_older_than_what_was_archived_cuts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path(), None).unwrap();
        segments.append(&lines(1, 1..=3)).unwrap();
        let old = segments.position();
        segments.append(&lines(1, 4..=6)).unwrap();
        drop(segments);
        let first = segment_path(dir.path(), 1);
        fs::rename(&first, first.with_extension(MANIFEST_SUFFIX)).unwrap();
        let refused = open(dir.path(), Some(old)).unwrap_err();
        assert!(
            matches!(refused, LogError::JournalOlder { .. }),
            "{refused}"
        );
        // The old store has the numbers that a new log begins with.
        let words = refused.to_string();
        assert!(words.contains("a new prefix or folder"), "{words}");
        assert_eq!(read_segment(dir.path(), 2).unwrap(), lines(1, 5..=6));
    }

    #[test]
    fn a_sealed_segment_is_believed_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path(), None).unwrap();
        segments.append(&lines(1, 1..=6)).unwrap();
        assert!(is_sealed(dir.path(), 1).unwrap());
        assert!(!is_sealed(dir.path(), 2).unwrap());
        let whole = fs::read(segment_path(dir.path(), 1)).unwrap();
        let read = |bytes: &[u8]| {
            let mut found = Vec::new();
            let read = read_sealed(dir.path(), 1, bytes, |line| found.push(*line));
            read.map(|()| found)
        };
        assert_eq!(read(&whole).unwrap(), lines(1, 1..=4));
        let refused = |bytes: &[u8]| matches!(read(bytes), Err(LogError::Damaged { .. }));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(refused(&damaged), "{at}");
        }
        for length in 0..whole.len() {
            assert!(refused(&whole[..length]), "{length}");
        }
        let twice = [&whole[..], &whole[whole.len() - LINE_BYTES..]].concat();
        assert!(refused(&twice));
    }
}
