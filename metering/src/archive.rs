//! How sealed segments of the service log come into the archive, and old ones go: a task of its
//! own, which the keeper and the journal never wait for.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};
use topnet_api::ArchiveStatus;
use topnet_archive::{Archive, ArchiveError, forget_files_before, waiting};
use tracing::{info, warn};

/// Between attempts at a store that refuses or does not answer: doubled from the first to the
/// last.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// How often old segments are looked for.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);

/// What the task is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The service log's directory.
    pub log_dir: PathBuf,
    /// Where the archive is.
    pub archive: topnet_config::Archive,
    /// How long segments are kept; for ever if `None`.
    pub kept: Option<Duration>,
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
        progress,
        archive: None,
        retry: RETRY,
        retained: None,
        told: None,
    };
    loop {
        let below = *sealed.borrow_and_update();
        let next = match keeper.turn(below).await {
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
                        let below = *sealed.borrow_and_update();
                        // What is wrong with the directory, the next turn says.
                        let _ = keeper.count(below);
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
    async fn turn(&mut self, below: u64) -> Result<(), ArchiveError> {
        let waiting = self.count(below)?;
        let archive = match self.archive.take() {
            Some(archive) => Ok(archive),
            None => Archive::open(&self.settings.log_dir, &self.settings.archive),
        };
        let taken = match &archive {
            Ok(archive) => self.take(archive, waiting).await,
            Err(_) => Ok(()),
        };
        let removed = self.forget_files(below);
        let archive = archive?;
        let retained = self.retain(&archive).await;
        taken.and(removed).and(retained)?;
        self.archive = Some(archive);
        Ok(())
    }

    async fn take(&self, archive: &Archive, waiting: Vec<u64>) -> Result<(), ArchiveError> {
        let mut first = Ok(());
        for number in waiting {
            match archive.take(number).await {
                Ok(entry) => {
                    info!(number, hash = %entry.hash, "a segment of the service log is archived");
                    self.progress.change(|status| {
                        status.waiting_segments -= 1;
                        status.archived_segments += 1;
                    });
                }
                // It would say the same of the others.
                Err(error @ ArchiveError::Store { .. }) => return Err(error),
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    /// Removes old files, which wait for the archive in vain.
    fn forget_files(&self, below: u64) -> Result<(), ArchiveError> {
        let Some(before) = self.kept_since() else {
            return Ok(());
        };
        let files = forget_files_before(&self.settings.log_dir, before, below)?;
        if files > 0 {
            warn!(
                files,
                "old segments are removed that still waited for the archive"
            );
            self.count(below)?;
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
        let segments = archive.forget_before(before).await?;
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

    fn count(&self, below: u64) -> Result<Vec<u64>, ArchiveError> {
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
        if self.told.replace(error.code()) != Some(error.code()) {
            warn!(%error, "the service log cannot be archived; trying again");
        }
        let words = error.to_string();
        self.progress.change(|status| status.problem = Some(words));
        let wait = self.retry;
        self.retry = (wait * 2).min(RETRY_MAX);
        wait
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use topnet_account::ChannelId;
    use topnet_archive::ObjectHash;
    use topnet_log::{Line, Segments, segment_path};
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
}
