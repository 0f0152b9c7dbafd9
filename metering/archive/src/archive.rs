//! Taking segments in, and removing old ones.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutPayload, path::Path as Place};
use topnet_config::Archive as Config;
use topnet_log::{LogError, is_sealed, numbers, segment_name, segment_path};

use crate::{
    ArchiveError, Entry, ObjectHash,
    manifest::Manifest,
    store::{self, OBJECTS, Opened, SEGMENTS},
};

/// The archive of one service log. One process writes it, the one that owns the log; any may read.
#[derive(Clone, Debug)]
pub struct Archive {
    pub(crate) log_dir: PathBuf,
    pub(crate) manifest: Manifest,
    pub(crate) store: Arc<dyn ObjectStore>,
    /// What people call the store.
    pub(crate) name: String,
    /// Where the store is, if it is a folder.
    pub(crate) folder: Option<PathBuf>,
}

impl Archive {
    /// Opens the archive of the log in `log_dir` to write. No bucket is asked for anything yet.
    pub fn open(log_dir: &Path, config: &Config) -> Result<Self, ArchiveError> {
        Ok(Self::over(log_dir, store::open(config)?))
    }

    /// Opens it to read; this makes nothing.
    pub fn open_to_read(log_dir: &Path, config: &Config) -> Result<Self, ArchiveError> {
        Ok(Self::over(log_dir, store::open_to_read(config)?))
    }

    pub(crate) fn over(log_dir: &Path, opened: Opened) -> Self {
        Self {
            log_dir: log_dir.to_owned(),
            manifest: Manifest::below(log_dir),
            store: opened.store,
            name: opened.name,
            folder: opened.folder,
        }
    }

    /// What people call the store.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes a sealed segment in. When this returns, the store has given back every byte of it,
    /// its entry is durable there and here, and its file is gone. It may be repeated from any
    /// point at which it was left.
    pub async fn take(&self, number: u64) -> Result<Entry, ArchiveError> {
        let path = segment_path(&self.log_dir, number);
        let (bytes, entry) = blocking(move || {
            let bytes = read_file(&path)?;
            let entry = Entry::of(&path, number, &bytes, |_| {})?;
            Ok::<_, LogError>((bytes, entry))
        })
        .await?;
        if let Some(known) = self.manifest.entry(number)? {
            self.same(&self.log_dir.display().to_string(), &entry, &known)?;
        }
        // Before anything big goes to another log's store, again at each attempt.
        self.is_stored(&entry).await?;
        self.put_object(&entry, bytes).await?;
        self.put_entry(&entry).await?;
        let archive = self.clone();
        blocking(move || {
            archive.manifest.write(&entry)?;
            let path = segment_path(&archive.log_dir, number);
            // If a crash brings it back, it is taken again.
            match fs::remove_file(&path) {
                // It became too old meanwhile.
                Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed.map_err(|source| LogError::File {
                    what: "remove",
                    path,
                    source,
                }),
            }?;
            Ok::<_, ArchiveError>(())
        })
        .await?;
        Ok(entry)
    }

    /// An object's name says what is in it only to those who wrote it right, so what is already
    /// there is believed, like what was just written, when it was read back.
    async fn put_object(&self, entry: &Entry, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        let place = object_place(&entry.hash);
        match self.check_object(entry).await {
            Ok(()) => return Ok(()),
            Err(ArchiveError::Missing { .. } | ArchiveError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        let put = self.store.put(&place, PutPayload::from(bytes)).await;
        put.map_err(|source| self.failed("write", &place, source))?;
        self.check_object(entry).await
    }

    /// The entry goes to the store once its object is there, so whoever finds one finds the other.
    pub(crate) async fn put_entry(&self, entry: &Entry) -> Result<(), ArchiveError> {
        if self.is_stored(entry).await? {
            return Ok(());
        }
        let place = entry_place(entry.number);
        let put = self.store.put(&place, entry.to_text().into()).await;
        put.map_err(|source| self.failed("write", &place, source))?;
        Ok(())
    }

    /// True if the store has this entry.
    async fn is_stored(&self, entry: &Entry) -> Result<bool, ArchiveError> {
        match self.stored_entry(entry.number).await {
            Ok(Some(known)) => {
                let place = self.told(&entry_place(entry.number));
                self.same(&place, entry, &known).map(|()| true)
            }
            // Nobody could read it, and this is what it has to be about.
            Ok(None) | Err(ArchiveError::Entry { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Two logs in one store would each lose what the other has written.
    pub(crate) fn same(
        &self,
        place: &str,
        entry: &Entry,
        known: &Entry,
    ) -> Result<(), ArchiveError> {
        if entry == known {
            return Ok(());
        }
        Err(ArchiveError::Conflict {
            number: entry.number,
            place: place.to_owned(),
            ours: entry.hash,
            theirs: known.hash,
        })
    }

    /// Removes archived segments whose last line is older than `time`, from the store and the
    /// directory, and ends what an earlier call has begun. Gives their number. Files that wait in
    /// the directory are left to [`forget_files_before`], which needs no store.
    pub async fn forget_before(&self, time: SystemTime) -> Result<u64, ArchiveError> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        for number in self.manifest.entries()? {
            let entry = self.manifest.entry(number)?;
            if entry.is_some_and(|entry| entry.last_ms < time_ms) {
                self.manifest.begin_forgetting(number)?;
            }
        }
        let forgotten = self.manifest.forgotten()?;
        for &number in &forgotten {
            if let Some(entry) = self.manifest.forgotten_entry(number)? {
                // Whoever has the store alone shall find no entry without its object.
                self.remove(&entry_place(number)).await?;
                self.remove(&object_place(&entry.hash)).await?;
            }
        }
        // Else a power loss could bring back what nothing would remove any more.
        if let Some(folder) = self.folder.clone().filter(|_| !forgotten.is_empty()) {
            blocking(move || store::sync_removals(&folder)).await?;
        }
        for &number in &forgotten {
            self.manifest.end_forgetting(number)?;
        }
        Ok(forgotten.len() as u64)
    }

    async fn remove(&self, place: &Place) -> Result<(), ArchiveError> {
        match self.store.delete(place).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.failed("remove", place, source)),
        }
    }

    pub(crate) fn failed(&self, what: &'static str, place: &Place, source: Error) -> ArchiveError {
        ArchiveError::Store {
            what,
            place: self.told(place),
            source,
        }
    }

    /// A place as people call it.
    pub(crate) fn told(&self, place: &Place) -> String {
        format!("{}/{place}", self.name)
    }
}

/// Numbers of the sealed segments that are still in the log's directory, of those below `below`:
/// only these are sealed for good. A file that cannot be read waits with them: what is wrong with
/// it, [`Archive::take`] says of it alone.
pub fn waiting(log_dir: &Path, below: u64) -> Result<Vec<u64>, LogError> {
    let mut waiting = Vec::new();
    for number in numbers(log_dir)? {
        if number < below && is_sealed(log_dir, number).unwrap_or(true) {
            waiting.push(number);
        }
    }
    Ok(waiting)
}

/// Removes the files of segments below `below` that were written before `time`, whether the
/// archive has them or not. Gives their number. What is wrong with one does not keep the others.
pub fn forget_files_before(log_dir: &Path, time: SystemTime, below: u64) -> Result<u64, LogError> {
    let (mut removed, mut first) = (0, Ok(()));
    for number in numbers(log_dir)? {
        if number >= below {
            continue;
        }
        match remove_older(segment_path(log_dir, number), time) {
            Ok(false) => {}
            Ok(true) => removed += 1,
            Err(error) => first = first.and(Err(error)),
        }
    }
    first.map(|()| removed)
}

fn remove_older(path: PathBuf, time: SystemTime) -> Result<bool, LogError> {
    let written = fs::metadata(&path).and_then(|data| data.modified());
    let (what, removed) = match written {
        Ok(written) if written >= time => return Ok(false),
        Ok(_) => ("remove", fs::remove_file(&path)),
        Err(error) => ("look at", Err(error)),
    };
    removed
        .map(|()| true)
        .map_err(|source| LogError::File { what, path, source })
}

pub(crate) fn object_place(hash: &ObjectHash) -> Place {
    Place::from_iter([OBJECTS.to_owned(), hash.to_string()])
}

pub(crate) fn entry_place(number: u64) -> Place {
    Place::from_iter([SEGMENTS.to_owned(), segment_name(number)])
}

pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, LogError> {
    fs::read(path).map_err(|source| LogError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })
}

/// Runs what would hold up a thread of tasks.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
