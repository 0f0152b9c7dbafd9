//! How sealed segments of the service log come into the archive, and old ones go: a task of its
//! own, which the keeper and the journal never wait for.

use std::{
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};
use topnet_api::ArchiveStatus;
use topnet_archive::{Archive, ArchiveError, forget_files_before, waiting};
use topnet_log::segment_path;
use tracing::{info, warn};

/// Between attempts at a store that refuses or does not answer: doubled from the first to the
/// last.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// How often old segments are looked for.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);

/// A store that takes longer over one step is told of: a segment of the usual length goes to a
/// bucket and back in that time over a line of 3 Mbit/s.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// What the task is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The service log's directory.
    pub log_dir: PathBuf,
    /// Where the archive is.
    pub archive: topnet_config::Archive,
    /// How long segments are kept; for ever if `None`.
    pub kept: Option<Duration>,
    /// How long the store may take over a segment before status and log tell of it.
    pub patience: Duration,
}

/// How the archive stands, for whoever asks.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<ArchiveStatus>>);

impl Progress {
    /// As it is now.
    pub fn status(&self) -> ArchiveStatus {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn change(&self, change: impl FnOnce(&mut ArchiveStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Archives the segments below the number that `sealed` says, those of an earlier run too, and
/// removes old ones, until metering ends.
pub async fn keep(settings: Settings, mut sealed: watch::Receiver<u64>, progress: Progress) {
    let mut keeper = Keeper {
        settings,
        sealed: sealed.clone(),
        progress,
        archive: None,
        retry: RETRY,
        retained: None,
        told: None,
    };
    loop {
        sealed.mark_unchanged();
        let next = match keeper.turn().await {
            Ok(()) => {
                keeper.well();
                RETENTION_INTERVAL
            }
            Err(error) => keeper.trouble(&error),
        };
        let next = Instant::now() + next;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => break,
                changed = sealed.changed() => match changed {
                    // A store in trouble is left alone until its time comes.
                    Ok(()) if keeper.is_in_trouble() => {
                        // What is wrong with the directory, the next turn says.
                        let _ = keeper.count();
                    }
                    Ok(()) => break,
                    // The keeper has ended, and metering with it.
                    Err(_) => return,
                },
            }
        }
    }
}

struct Keeper {
    settings: Settings,
    /// Segments below this number are sealed for good.
    sealed: watch::Receiver<u64>,
    progress: Progress,
    /// Opened anew after trouble, with what the credentials are by then.
    archive: Option<Archive>,
    retry: Duration,
    retained: Option<Instant>,
    /// What was told of; its words change with each attempt.
    told: Option<&'static str>,
}

impl Keeper {
    /// One round over all that waits. What is wrong with one segment does not hold up the others,
    /// and what is wrong with the store keeps no old file on the disk that new lines need.
    async fn turn(&mut self) -> Result<(), ArchiveError> {
        let waiting = self.count()?;
        let archive = match self.archive.take() {
            Some(archive) => Ok(archive),
            None => self.open().await,
        };
        let taken = match &archive {
            Ok(archive) => self.take(archive, waiting).await,
            Err(_) => Ok(()),
        };
        let removed = self.forget_files();
        let archive = archive?;
        let retained = self.retain(&archive).await;
        taken.and(removed).and(retained)?;
        self.archive = Some(archive);
        Ok(())
    }

    async fn open(&mut self) -> Result<Archive, ArchiveError> {
        let settings = self.settings.clone();
        // A folder may be on a disk that does not answer.
        let opening = tokio::task::spawn_blocking(move || {
            Archive::open(&settings.log_dir, &settings.archive)
        });
        match self.patiently(opening).await {
            Ok(opened) => opened,
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }

    async fn take(&mut self, archive: &Archive, waiting: Vec<u64>) -> Result<(), ArchiveError> {
        let mut first = Ok(());
        for number in waiting {
            // It may have become too old while another was waited for.
            if !segment_path(&self.settings.log_dir, number).exists() {
                continue;
            }
            match self.patiently(archive.take(number)).await {
                Ok(entry) => {
                    info!(number, hash = %entry.hash, "a segment of the service log is archived");
                    self.progress.change(|status| status.archived_segments += 1);
                    self.count()?;
                }
                // It would say the same of the others.
                Err(error @ ArchiveError::Store { .. }) => return Err(error),
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    /// Waits for a step of the store's, however long it takes: a disk that does not answer cannot
    /// be told to give up, and another attempt would hang beside the first. Meanwhile the count
    /// stays true, old files go, and a step that takes too long is told of.
    async fn patiently<T>(&mut self, step: impl Future<Output = T>) -> T {
        let mut step = pin!(step);
        let started = Instant::now();
        let mut next = started + self.settings.patience;
        loop {
            tokio::select! {
                done = &mut step => return done,
                () = tokio::time::sleep_until(next) => {
                    next += self.settings.patience;
                    self.slow(started.elapsed());
                    // Both are about the directory, of which the next turn says what is wrong.
                    let _ = self.forget_files();
                }
                // Without a sender metering ends; then nobody waits for this task.
                Ok(()) = self.sealed.changed() => {
                    let _ = self.count();
                }
            }
        }
    }

    /// Removes old files, which wait for the archive in vain.
    fn forget_files(&mut self) -> Result<(), ArchiveError> {
        let Some(before) = self.kept_since() else {
            return Ok(());
        };
        let below = *self.sealed.borrow();
        let files = forget_files_before(&self.settings.log_dir, before, below)?;
        if files > 0 {
            warn!(
                files,
                "old segments are removed that still waited for the archive"
            );
            self.count()?;
        }
        Ok(())
    }

    async fn retain(&mut self, archive: &Archive) -> Result<(), ArchiveError> {
        let due = self
            .retained
            .is_none_or(|at| at.elapsed() >= RETENTION_INTERVAL);
        let Some(before) = self.kept_since().filter(|_| due) else {
            return Ok(());
        };
        let segments = self.patiently(archive.forget_before(before)).await?;
        if segments > 0 {
            info!(segments, "old segments of the service log are removed");
        }
        self.retained = Some(Instant::now());
        Ok(())
    }

    /// What is older goes.
    fn kept_since(&self) -> Option<SystemTime> {
        let kept = self.settings.kept?;
        SystemTime::now().checked_sub(kept)
    }

    /// Numbers of the segments that wait now.
    fn count(&mut self) -> Result<Vec<u64>, ArchiveError> {
        let below = *self.sealed.borrow_and_update();
        let waiting = waiting(&self.settings.log_dir, below)?;
        self.progress
            .change(|status| status.waiting_segments = waiting.len() as u64);
        Ok(waiting)
    }

    fn is_in_trouble(&self) -> bool {
        self.progress.status().problem.is_some()
    }

    fn well(&mut self) {
        self.retry = RETRY;
        if self.told.take().is_some() {
            info!("the archive of the service log takes segments again");
        }
        self.progress.change(|status| status.problem = None);
    }

    /// How long to wait.
    fn trouble(&mut self, error: &ArchiveError) -> Duration {
        self.tell(error.code(), error.to_string());
        let wait = self.retry;
        self.retry = (wait * 2).min(RETRY_MAX);
        wait
    }

    fn slow(&mut self, waited: Duration) {
        let place = match &self.settings.archive.bucket {
            Some(bucket) => format!("the bucket {bucket}"),
            None => self.settings.archive.dir.display().to_string(),
        };
        let words = format!(
            "{place} has not answered for {} s; is it out of reach? check [metering.archive]; \
             nothing is lost meanwhile",
            waited.as_secs()
        );
        self.tell("archive_slow", words);
    }

    fn tell(&mut self, code: &'static str, words: String) {
        if self.told.replace(code) != Some(code) {
            warn!(error = %words, "the service log cannot be archived; trying again");
        }
        self.progress.change(|status| status.problem = Some(words));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use topnet_account::ChannelId;
    use topnet_archive::ObjectHash;
    use topnet_log::{Line, Segments};
    use topnet_unit::{BootId, Slot};

    use super::*;

    fn line(units: u64) -> Line {
        Line {
            channel: ChannelId([1; 32]),
            units_before: units - 1,
            units,
            channel_bytes: units,
            time_ms: units,
            boot: BootId([3; 16]),
            slot: Slot {
                index: 4,
                generation: 5,
            },
        }
    }

    async fn until(progress: &Progress, done: impl Fn(&ArchiveStatus) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(&progress.status()) {
            assert!(Instant::now() < deadline, "{:?}", progress.status());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_store_that_is_away_is_told_of_and_has_everything_when_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = dir.path().join("log");
        let mut segments = Segments::open(&log_dir, None, 2).unwrap();
        segments.append(&[line(1), line(2), line(3)]).unwrap();
        let (sealed, told) = watch::channel(segments.position().segment);
        let progress = Progress::default();
        // Where a folder should be made there is a file.
        let blocked = dir.path().join("blocked");
        fs::write(&blocked, "").unwrap();
        let settings = Settings {
            log_dir: log_dir.clone(),
            archive: topnet_config::Archive {
                dir: blocked.join("archive"),
                ..topnet_config::Archive::default()
            },
            kept: Some(Duration::from_secs(3600)),
            patience: PATIENCE,
        };
        let task = tokio::spawn(keep(settings, told, progress.clone()));
        until(&progress, |status| status.problem.is_some()).await;
        assert_eq!(progress.status().waiting_segments, 1);
        segments.append(&[line(4), line(5)]).unwrap();
        sealed.send_replace(segments.position().segment);
        until(&progress, |status| status.waiting_segments == 2).await;

        fs::remove_file(&blocked).unwrap();
        until(&progress, |status| status.problem.is_none()).await;
        let status = progress.status();
        assert_eq!((status.waiting_segments, status.archived_segments), (0, 2));
        // By their lines' time these are old: the same turn has removed them everywhere.
        assert_eq!(topnet_log::numbers(&log_dir).unwrap(), [3]);
        let objects = fs::read_dir(blocked.join("archive/objects")).unwrap();
        assert_eq!(objects.count(), 0);
        drop(sealed);
        task.await.unwrap();
    }

    /// Lines go to the disk that old segments are on: a store that takes none of them, or that
    /// cannot even be opened, must not keep them there for ever.
    #[tokio::test]
    async fn old_segments_go_also_while_the_store_refuses() {
        for opens in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let log_dir = dir.path().join("log");
            let mut segments = Segments::open(&log_dir, None, 2).unwrap();
            segments.append(&[line(1), line(2), line(3)]).unwrap();
            segments.append(&[line(4), line(5)]).unwrap();
            let old = fs::File::options()
                .write(true)
                .open(segment_path(&log_dir, 1))
                .unwrap();
            let hours = Duration::from_secs(2 * 3600);
            old.set_modified(SystemTime::now() - hours).unwrap();
            let archive = dir.path().join("archive");
            if opens {
                let second = fs::read(segment_path(&log_dir, 2)).unwrap();
                let first = fs::read(segment_path(&log_dir, 1)).unwrap();
                for bytes in [first, second] {
                    // No object can be written over a directory.
                    let object = ObjectHash::of(&bytes).to_string();
                    fs::create_dir_all(archive.join("objects").join(object).join("full")).unwrap();
                }
            } else {
                fs::write(&archive, "").unwrap();
            }
            let settings = Settings {
                log_dir: log_dir.clone(),
                archive: topnet_config::Archive {
                    dir: archive,
                    ..topnet_config::Archive::default()
                },
                kept: Some(Duration::from_secs(3600)),
                patience: PATIENCE,
            };
            let (sealed, told) = watch::channel(segments.position().segment);
            let progress = Progress::default();
            let task = tokio::spawn(keep(settings, told, progress.clone()));
            until(&progress, |status| status.problem.is_some()).await;
            assert_eq!(topnet_log::numbers(&log_dir).unwrap(), [2, 3]);
            assert_eq!(progress.status().waiting_segments, 1);
            drop(sealed);
            task.await.unwrap();
        }
    }

    /// Whoever opens a pipe that nobody writes waits, as for a disk that does not answer.
    struct Pipe(PathBuf);

    impl Pipe {
        fn at(path: PathBuf) -> Self {
            use rustix::fs::{CWD, FileType, Mode, mknodat};
            mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
            Self(path)
        }
    }

    impl Drop for Pipe {
        fn drop(&mut self) {
            let aside = self.0.with_extension("aside");
            fs::rename(&self.0, &aside).unwrap();
            // Who waits has nothing to read.
            let both = fs::File::options().read(true).write(true).open(&aside);
            fs::remove_file(&aside).unwrap();
            drop(both.unwrap());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_store_that_hangs_is_told_of_and_what_waits_for_it_is_counted_and_kept_as_long() {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = dir.path().join("log");
        let mut segments = Segments::open(&log_dir, None, 2).unwrap();
        segments.append(&[line(1), line(2), line(3)]).unwrap();
        let archive = dir.path().join("archive");
        fs::create_dir_all(archive.join("segments")).unwrap();
        let pipe = Pipe::at(archive.join("segments/0000000000000001"));
        let settings = Settings {
            log_dir: log_dir.clone(),
            archive: topnet_config::Archive {
                dir: archive.clone(),
                ..topnet_config::Archive::default()
            },
            kept: Some(Duration::from_secs(3600)),
            patience: Duration::from_millis(50),
        };
        let (sealed, told) = watch::channel(segments.position().segment);
        let progress = Progress::default();
        let task = tokio::spawn(keep(settings, told, progress.clone()));
        until(&progress, |status| status.problem.is_some()).await;
        let problem = progress.status().problem.unwrap();
        assert!(problem.contains("has not answered"), "{problem}");
        segments.append(&[line(4), line(5)]).unwrap();
        sealed.send_replace(segments.position().segment);
        until(&progress, |status| status.waiting_segments == 2).await;
        let second = fs::File::options()
            .write(true)
            .open(segment_path(&log_dir, 2))
            .unwrap();
        let hours = Duration::from_secs(2 * 3600);
        second.set_modified(SystemTime::now() - hours).unwrap();
        until(&progress, |status| status.waiting_segments == 1).await;
        assert_eq!(topnet_log::numbers(&log_dir).unwrap(), [1, 3]);

        // It answers, with nothing: so the entry is written.
        drop(pipe);
        until(&progress, |status| status.archived_segments == 1).await;
        until(&progress, |status| status.problem.is_none()).await;
        drop(sealed);
        task.await.unwrap();
    }
}
