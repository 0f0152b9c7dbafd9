//! Reading everything again.

use serde::Serialize;
use topnet_log::{is_sealed, read_segment, segment_path};

use crate::{
    Archive, ArchiveError, Entry, ObjectHash,
    archive::{blocking, entry_place, read_file},
    manifest::if_there,
};

/// So many segments in a row that the store refuses to read are the store, not the segments.
pub(crate) const UNREADABLE_MAX: usize = 3;

/// What reading everything again has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Segments that hold.
    pub segments: u64,
    /// Lines in them.
    pub lines: u64,
    /// What does not hold.
    pub findings: Vec<Finding>,
}

/// A segment that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its number.
    pub number: u64,
    /// A word for programs.
    pub code: &'static str,
    /// What is wrong, and where.
    pub what: String,
    /// What to do about it.
    pub mend: String,
}

impl Finding {
    pub(crate) fn of(number: u64, error: &ArchiveError) -> Self {
        let (code, mend) = match error {
            // The store has answered for others: this one is not merely out of reach.
            ArchiveError::Store { .. } => (
                "archive_unreadable",
                "verify again; if the same is named, look at its owner, its permissions and the \
                 disk it is on, and bring it back from a copy of the store",
            ),
            error => (error.code(), error.mend()),
        };
        Self {
            number,
            code,
            what: error.what(),
            mend: mend.to_owned(),
        }
    }
}

impl Archive {
    /// Reads every byte of every segment again, and its entries in directory and store. What the
    /// store cannot read is a finding like any other, so that one bad sector hides nothing behind
    /// it. An error is about the store as a whole: it cannot be listed, or several reads in a row
    /// fail.
    pub async fn verify(&self) -> Result<Verdict, ArchiveError> {
        let mut verdict = Verdict::default();
        let numbers = self.numbers().await?;
        // The store's numbers may be another log's.
        let newest = self.manifest.files()?.last().copied();
        let mut next = numbers.first().copied().unwrap_or(0);
        let mut unreadable = 0;
        for number in numbers {
            if next < number {
                verdict.findings.push(gone(next, number));
            }
            next = number + 1;
            let verified = self.verify_segment(number, Some(number) == newest).await;
            unreadable = match &verified {
                Err(Fault::Archive(ArchiveError::Store { .. })) => unreadable + 1,
                _ => 0,
            };
            match verified {
                Ok(None) => {}
                Ok(Some(lines)) => {
                    verdict.segments += 1;
                    verdict.lines += lines;
                }
                Err(Fault::Unsealed) => verdict.findings.push(self.unsealed(number)),
                Err(Fault::Archive(error)) if unreadable >= UNREADABLE_MAX => return Err(error),
                Err(Fault::Archive(error)) => verdict.findings.push(Finding::of(number, &error)),
            }
        }
        Ok(verdict)
    }

    /// The lines of a segment that holds; `None` if it was removed meanwhile.
    async fn verify_segment(&self, number: u64, newest: bool) -> Result<Option<u64>, Fault> {
        // The file first: when it goes, the entries are there.
        let file = self.verify_file(number, newest).await?;
        let here = self.manifest.entry(number)?;
        let stored = self.stored_entry(number).await?;
        let entry = match (here, stored) {
            (Some(here), Some(stored)) => {
                self.same(&self.told(&entry_place(number)), &here, &stored)?;
                here
            }
            // As long as the file is there the entries are on their way.
            (Some(entry), None) | (None, Some(entry)) if file.is_some() => entry,
            // Whoever has the store alone.
            (None, Some(stored)) => stored,
            (Some(_), None) => {
                let place = self.told(&entry_place(number));
                let reason = "it is not there".to_owned();
                return Err(ArchiveError::Entry { place, reason }.into());
            }
            (None, None) => return Ok(file.map(|file| file.lines)),
        };
        if let Some(file) = file
            && file.hash != Some(entry.hash)
        {
            return Err(Fault::Archive(ArchiveError::Conflict {
                number,
                place: self.told(&entry_place(number)),
                ours: file.hash.unwrap_or(ObjectHash::of(&[])),
                theirs: entry.hash,
            }));
        }
        self.archived_lines(entry, |_| false).await?;
        Ok(Some(entry.lines))
    }

    /// A file in the directory, if there is one.
    async fn verify_file(&self, number: u64, newest: bool) -> Result<Option<Checked>, Fault> {
        let (dir, path) = (self.log_dir.clone(), segment_path(&self.log_dir, number));
        let read = blocking(move || {
            if is_sealed(&dir, number)? {
                let entry = Entry::of(&path, number, &read_file(&path)?, |_| {})?;
                return Ok(Checked {
                    lines: entry.lines,
                    hash: Some(entry.hash),
                });
            }
            Ok(Checked {
                lines: read_segment(&dir, number)?.len() as u64,
                hash: None,
            })
        });
        let file = if_there(read.await).map_err(ArchiveError::from)?;
        match file {
            Some(Checked { hash: None, .. }) if !newest => Err(Fault::Unsealed),
            file => Ok(file),
        }
    }

    fn unsealed(&self, number: u64) -> Finding {
        let path = segment_path(&self.log_dir, number);
        Finding {
            number,
            code: "segment_unsealed",
            what: format!(
                "{} has no seal, and a later segment is there",
                path.display()
            ),
            mend:
                "if the journal was lost once, this is the segment of that time, and proofs still \
                   check its lines; else bring it back from a copy"
                    .to_owned(),
        }
    }
}

/// Removed segments are the oldest ones, so a gap is none of them.
fn gone(first: u64, next: u64) -> Finding {
    let last = next - 1;
    let which = match first == last {
        true => format!("segment {first} is"),
        false => format!("segments {first} to {last} are"),
    };
    Finding {
        number: first,
        code: "segment_missing",
        what: format!("{which} neither in the directory nor in the archive"),
        mend: "bring its file or its entry back from a copy of the directory or of the store"
            .to_owned(),
    }
}

/// A file that holds.
struct Checked {
    lines: u64,
    /// If it is sealed.
    hash: Option<ObjectHash>,
}

enum Fault {
    Unsealed,
    Archive(ArchiveError),
}

impl From<ArchiveError> for Fault {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}
