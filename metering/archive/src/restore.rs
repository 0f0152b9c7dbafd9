//! Making the directory and the store say the same again.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt as _};

use crate::{Archive, ArchiveError, archive::entry_place};

impl Archive {
    /// Writes the entries that the directory lacks out of the store, and those that the store
    /// lacks out of the directory; gives how many. With the store alone a directory is made, and
    /// a log that is begun there goes on behind the segments that the store has.
    pub async fn restore(&self) -> Result<u64, ArchiveError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.log_dir)
            .map_err(|source| ArchiveError::Manifest {
                what: "make the directory of",
                path: self.log_dir.clone(),
                source,
            })?;
        let mut restored = 0;
        let files = self.manifest.files()?;
        for number in self.numbers().await? {
            // A file in the directory is taken with its entries by whoever owns the log.
            if files.contains(&number) {
                continue;
            }
            let here = usable(self.manifest.entry(number))?;
            let stored = usable(self.stored_entry(number).await)?;
            match (here, stored) {
                (Some(here), Some(stored)) => {
                    self.same(&self.told(&entry_place(number)), &here, &stored)?;
                }
                (Some(here), None) => {
                    self.check_object(&here).await?;
                    self.put_entry(&here).await?;
                    restored += 1;
                }
                (None, Some(stored)) => {
                    self.manifest.write(&stored)?;
                    restored += 1;
                }
                // Neither can be used; `verify` names it.
                (None, None) => {}
            }
        }
        Ok(restored)
    }
}

/// An entry that nobody can read is as good as none where another is at hand.
fn usable<T>(entry: Result<Option<T>, ArchiveError>) -> Result<Option<T>, ArchiveError> {
    match entry {
        Err(ArchiveError::Entry { .. }) => Ok(None),
        entry => entry,
    }
}
