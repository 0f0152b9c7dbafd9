//! Making the directory and the store say the same again.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt as _};

use serde::Serialize;

use crate::{Archive, ArchiveError, Finding, archive::entry_place, verify::UNREADABLE_MAX};

/// What was made the same again, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Entries that were written.
    pub entries: u64,
    /// Segments whose entries still differ, or are still missing.
    pub findings: Vec<Finding>,
}

impl Archive {
    /// Writes the entries that the directory lacks out of the store, and those that the store
    /// lacks out of the directory. What is wrong with one segment does not keep the others;
    /// an error is about the store as a whole. With the store alone a directory is made, and a log that is begun there goes on behind the
    /// segments that the store has.
    pub async fn restore(&self) -> Result<Restored, ArchiveError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.log_dir)
            .map_err(|source| ArchiveError::Manifest {
                what: "make the directory of",
                path: self.log_dir.clone(),
                source,
            })?;
        let mut restored = Restored::default();
        let files = self.manifest.files()?;
        let mut unreadable = 0;
        for number in self.numbers().await? {
            // A file in the directory is taken with its entries by whoever owns the log.
            if files.contains(&number) {
                continue;
            }
            let entry = self.restore_entry(number).await;
            unreadable = match &entry {
                Err(ArchiveError::Store { .. }) => unreadable + 1,
                _ => 0,
            };
            match entry {
                Ok(true) => restored.entries += 1,
                Ok(false) => {}
                Err(error) if unreadable >= UNREADABLE_MAX => return Err(error),
                Err(error) => restored.findings.push(Finding::of(number, &error)),
            }
        }
        Ok(restored)
    }

    /// True if an entry was written.
    async fn restore_entry(&self, number: u64) -> Result<bool, ArchiveError> {
        let (here, stored) = (self.manifest.entry(number), self.stored_entry(number).await);
        // An entry that nobody can read is as good as none where another is at hand.
        let (here, stored) = match (here, stored) {
            (
                Err(error @ ArchiveError::Entry { .. }),
                Err(ArchiveError::Entry { .. }) | Ok(None),
            )
            | (Ok(None), Err(error @ ArchiveError::Entry { .. })) => return Err(error),
            (here, stored) => (usable(here)?, usable(stored)?),
        };
        match (here, stored) {
            (Some(here), Some(stored)) => {
                self.same(&self.told(&entry_place(number)), &here, &stored)?;
                Ok(false)
            }
            (Some(here), None) => {
                self.check_object(&here).await?;
                self.put_entry(&here).await?;
                Ok(true)
            }
            (None, Some(stored)) => {
                self.manifest.write(&stored)?;
                Ok(true)
            }
            // It was removed meanwhile.
            (None, None) => Ok(false),
        }
    }
}

fn usable<T>(entry: Result<Option<T>, ArchiveError>) -> Result<Option<T>, ArchiveError> {
    match entry {
        Err(ArchiveError::Entry { .. }) => Ok(None),
        entry => entry,
    }
}
