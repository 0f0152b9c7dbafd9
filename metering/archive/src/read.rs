//! Finding segments and their lines, wherever they are.

use std::{collections::BTreeSet, fs};

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{Error, ObjectStoreExt as _, path::Path as Place};
use serde::Serialize;
use topnet_account::ChannelId;
use topnet_log::{Line, LogError, is_sealed, number_of, read_segment, segment_path};

use crate::{
    Archive, ArchiveError, Entry, ObjectHash,
    archive::{blocking, entry_place, object_place, read_file},
    entry::ENTRY_BYTES_MAX,
    manifest::if_there,
    store::SEGMENTS,
};

/// Where a segment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// In the directory, and lines still go to it.
    Open,
    /// In the directory, sealed, not yet in the archive.
    Sealed,
    /// In the directory, without a seal although a later one is there: its journal was lost.
    Unsealed,
    /// In the archive.
    Archived,
}

/// One segment, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// Its number.
    pub number: u64,
    /// Where it stands.
    pub state: State,
    /// Its lines.
    pub lines: u64,
    /// The earliest time that a line carries, in milliseconds since 1970.
    pub first_ms: u64,
    /// The latest.
    pub last_ms: u64,
    /// Its object's name, once it has one.
    pub hash: Option<ObjectHash>,
    /// The file or the object.
    pub place: String,
    /// Why it cannot be read, if so.
    pub problem: Option<String>,
}

impl Archive {
    /// Numbers of all segments that there are, in the directory or the store, in order.
    pub async fn numbers(&self) -> Result<Vec<u64>, ArchiveError> {
        let mut numbers: BTreeSet<u64> = self.stored_numbers().await?.into_iter().collect();
        numbers.extend(self.manifest.entries()?);
        // Those that are being removed count for nothing, whatever the store has left of them.
        for number in self.manifest.forgotten()? {
            numbers.remove(&number);
        }
        numbers.extend(self.manifest.files()?);
        Ok(numbers.into_iter().collect())
    }

    /// Numbers of the segments that the store has an entry of.
    pub(crate) async fn stored_numbers(&self) -> Result<Vec<u64>, ArchiveError> {
        let place = Place::from(SEGMENTS);
        let listed = self.store.list(Some(&place));
        let found: Vec<_> = listed
            .try_collect()
            .await
            .map_err(|source| self.failed("list", &place, source))?;
        let names = found.iter().filter_map(|found| found.location.filename());
        Ok(names.filter_map(number_of).collect())
    }

    /// All lines of a channel, in order, over all segments. With them every line is proved.
    pub async fn lines_of(&self, channel: &ChannelId) -> Result<Vec<Line>, ArchiveError> {
        let mut found = Vec::new();
        for number in self.numbers().await? {
            let channel = *channel;
            found.extend(
                self.lines(number, move |line| line.channel == channel)
                    .await?,
            );
        }
        Ok(found)
    }

    /// Those lines of a segment that `wanted` says, in order, wherever it is; none if it was
    /// removed meanwhile.
    async fn lines(
        &self,
        number: u64,
        wanted: impl Fn(&Line) -> bool + Send + 'static,
    ) -> Result<Vec<Line>, ArchiveError> {
        let dir = self.log_dir.clone();
        let read = blocking(move || (if_there(read_segment(&dir, number)), wanted));
        // A file that goes away meanwhile has its entry in the manifest before.
        match read.await {
            (Err(error), _) => Err(error.into()),
            (Ok(Some(mut lines)), wanted) => {
                lines.retain(wanted);
                Ok(lines)
            }
            (Ok(None), wanted) => match self.entry(number).await? {
                Some(entry) => self.archived_lines(entry, wanted).await,
                None => Ok(Vec::new()),
            },
        }
    }

    pub(crate) async fn archived_lines(
        &self,
        entry: Entry,
        wanted: impl Fn(&Line) -> bool + Send + 'static,
    ) -> Result<Vec<Line>, ArchiveError> {
        let bytes = self.object(&entry).await?;
        let place = self.told(&object_place(&entry.hash));
        blocking(move || {
            let damaged = |reason| ArchiveError::Damaged {
                place: place.clone(),
                reason,
            };
            let mut lines = Vec::new();
            let found = Entry::of(place.as_ref(), entry.number, &bytes, |line| {
                if wanted(line) {
                    lines.push(*line);
                }
            });
            match found {
                Ok(found) if found == entry => Ok(lines),
                Ok(_) => Err(damaged("the manifest says otherwise of it".to_owned())),
                Err(LogError::Damaged { reason, .. }) => Err(damaged(reason)),
                Err(error) => Err(damaged(error.to_string())),
            }
        })
        .await
    }

    /// The manifest's entry of a segment: the directory's, else the store's.
    pub async fn entry(&self, number: u64) -> Result<Option<Entry>, ArchiveError> {
        match self.manifest.entry(number)? {
            Some(entry) => Ok(Some(entry)),
            None => self.stored_entry(number).await,
        }
    }

    pub(crate) async fn stored_entry(&self, number: u64) -> Result<Option<Entry>, ArchiveError> {
        let place = entry_place(number);
        let mut text = Vec::new();
        let read = self.read(&place, ENTRY_BYTES_MAX as u64, |chunk| {
            text.extend_from_slice(chunk);
        });
        let unusable = |reason| ArchiveError::Entry {
            place: self.told(&place),
            reason,
        };
        match read.await {
            Ok(()) => Entry::from_text(number, &text).map(Some).map_err(unusable),
            Err(ArchiveError::Missing { .. }) => Ok(None),
            Err(ArchiveError::Damaged { reason, .. }) => Err(unusable(reason)),
            Err(error) => Err(error),
        }
    }

    /// An object's bytes, if they are those that its name says.
    async fn object(&self, entry: &Entry) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = Vec::new();
        self.show_object(&entry.hash, entry.bytes, |chunk| {
            bytes.extend_from_slice(chunk);
        })
        .await?;
        Ok(bytes)
    }

    pub(crate) async fn check_object(&self, entry: &Entry) -> Result<(), ArchiveError> {
        self.show_object(&entry.hash, entry.bytes, |_| {}).await
    }

    /// Shows an object's bytes; none of them counts unless this ends well.
    async fn show_object(
        &self,
        hash: &ObjectHash,
        bytes_max: u64,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), ArchiveError> {
        let place = object_place(hash);
        let mut hasher = blake3::Hasher::new();
        self.read(&place, bytes_max, |chunk| {
            hasher.update(chunk);
            each(chunk);
        })
        .await?;
        let found = ObjectHash::from_hasher(&hasher);
        if found == *hash {
            return Ok(());
        }
        Err(ArchiveError::Damaged {
            place: self.told(&place),
            reason: format!("its bytes have the hash {found}"),
        })
    }

    /// Reads no more than `bytes_max`, whatever the store sends.
    async fn read(
        &self,
        place: &Place,
        bytes_max: u64,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), ArchiveError> {
        let failed = |source| match source {
            Error::NotFound { .. } => ArchiveError::Missing {
                place: self.told(place),
            },
            source => self.failed("read", place, source),
        };
        let mut chunks = self.store.get(place).await.map_err(failed)?.into_stream();
        let mut left = bytes_max;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(failed)?;
            left = left.checked_sub(chunk.len() as u64).ok_or_else(|| {
                let reason = format!("it has more than {bytes_max} bytes");
                let place = self.told(place);
                ArchiveError::Damaged { place, reason }
            })?;
            each(&chunk);
        }
        Ok(())
    }

    /// All bytes of segment `number`, checked, wherever it is.
    pub async fn segment(&self, number: u64) -> Result<Vec<u8>, ArchiveError> {
        let path = segment_path(&self.log_dir, number);
        if let Ok(true) = is_sealed(&self.log_dir, number)
            && let Ok(bytes) = fs::read(&path)
        {
            Entry::of(&path, number, &bytes, |_| {})?;
            return Ok(bytes);
        }
        let Some(entry) = self.entry(number).await? else {
            let wanted = format!("{number} that is sealed");
            return Err(ArchiveError::Unknown { wanted });
        };
        self.archived_lines(entry, |_| false).await?;
        self.object(&entry).await
    }

    /// The number of the segment whose object has this name.
    pub async fn number_by(&self, hash: &ObjectHash) -> Result<u64, ArchiveError> {
        let segments = self.segments().await?;
        let named = segments.iter().find(|segment| segment.hash == Some(*hash));
        named
            .map(|segment| segment.number)
            .ok_or_else(|| ArchiveError::Unknown {
                wanted: hash.to_string(),
            })
    }

    /// Every segment, in order; one that cannot be read says so.
    pub async fn segments(&self) -> Result<Vec<Segment>, ArchiveError> {
        let mut segments = Vec::new();
        let numbers = self.numbers().await?;
        // The store's numbers may be another log's.
        let newest = self.manifest.files()?.last().copied();
        for number in numbers {
            match self.file(number, Some(number) == newest).await? {
                Some(segment) => segments.push(segment),
                None => segments.extend(self.archived(number).await),
            }
        }
        Ok(segments)
    }

    /// A segment whose file is in the directory.
    async fn file(&self, number: u64, newest: bool) -> Result<Option<Segment>, ArchiveError> {
        let (dir, path) = (self.log_dir.clone(), segment_path(&self.log_dir, number));
        let place = path.display().to_string();
        let (sealed, read) = blocking(move || {
            let sealed = is_sealed(&dir, number);
            let read = || {
                let lines = read_segment(&dir, number)?;
                let hash = match sealed {
                    Ok(true) => Some(ObjectHash::of(&read_file(&path)?)),
                    _ => None,
                };
                Ok((hash, lines))
            };
            let read = if_there(read());
            (sealed, read)
        })
        .await;
        let (hash, lines, problem) = match read {
            Ok(Some((hash, lines))) => (hash, lines, None),
            Ok(None) => return Ok(None),
            Err(error) => (None, Vec::new(), Some(error.to_string())),
        };
        let times = || lines.iter().map(|line| line.time_ms);
        Ok(Some(Segment {
            number,
            state: match (sealed, newest) {
                (Ok(true), _) => State::Sealed,
                (_, true) => State::Open,
                (Ok(false), false) => State::Unsealed,
                // What cannot be read waits for the archive like what is sealed.
                (Err(_), false) => State::Sealed,
            },
            lines: lines.len() as u64,
            first_ms: times().min().unwrap_or(0),
            last_ms: times().max().unwrap_or(0),
            hash,
            place,
            problem,
        }))
    }

    /// A segment that the manifest knows; `None` if it was removed meanwhile.
    async fn archived(&self, number: u64) -> Option<Segment> {
        let unread = |error: ArchiveError| Segment {
            number,
            state: State::Archived,
            lines: 0,
            first_ms: 0,
            last_ms: 0,
            hash: None,
            place: self.told(&entry_place(number)),
            problem: Some(error.what()),
        };
        match self.entry(number).await {
            Ok(entry) => entry.map(|entry| Segment {
                number,
                state: State::Archived,
                lines: entry.lines,
                first_ms: entry.first_ms,
                last_ms: entry.last_ms,
                hash: Some(entry.hash),
                place: self.told(&object_place(&entry.hash)),
                problem: None,
            }),
            Err(error) => Some(unread(error)),
        }
    }
}
