//! Why a segment is not in the archive, or cannot be had from it.

use std::{fmt, io, path::PathBuf};

use topnet_log::LogError;

use crate::ObjectHash;

/// What failed. None of it loses a line: what is not in the archive stays where it is.
#[derive(Debug)]
pub enum ArchiveError {
    /// A segment's file in the log's directory.
    Log(LogError),
    /// The manifest in the log's directory.
    Manifest {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store refuses, is full, or does not answer.
    Store {
        /// What was tried.
        what: &'static str,
        /// On what.
        place: String,
        /// What the store, or the way to it, said.
        source: object_store::Error,
    },
    /// What opens the bucket.
    Credentials {
        /// Where it was looked for.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The store does not have what the manifest names.
    Missing {
        /// What should be there.
        place: String,
    },
    /// The store has something else than was written.
    Damaged {
        /// Where.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// An entry of the manifest, in the directory or the store.
    Entry {
        /// Where.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// Two segments have the same number.
    Conflict {
        /// Which.
        number: u64,
        /// Where the other one is named.
        place: String,
        /// The hash of the segment at hand.
        ours: ObjectHash,
        /// The hash of the other.
        theirs: ObjectHash,
    },
    /// Nobody knows such a segment.
    Unknown {
        /// As it was asked for.
        wanted: String,
    },
}

impl ArchiveError {
    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Log(_) => "service_log",
            Self::Manifest { .. } => "manifest",
            Self::Store { .. } => "archive_unreachable",
            Self::Credentials { .. } => "archive_credentials",
            Self::Missing { .. } => "object_missing",
            Self::Damaged { .. } => "object_damaged",
            Self::Entry { .. } => "manifest",
            Self::Conflict { .. } => "segment_conflict",
            Self::Unknown { .. } => "segment_unknown",
        }
    }

    /// What is wrong, and where.
    pub fn what(&self) -> String {
        match self {
            Self::Log(error) => error.to_string(),
            Self::Manifest { what, path, source } => {
                format!("cannot {what} the manifest {}: {source}", path.display())
            }
            Self::Store {
                what,
                place,
                source,
            } => format!("cannot {what} {place}: {}", deepest(source)),
            Self::Credentials { place, reason } => {
                format!("no credentials for the archive's bucket in {place}: {reason}")
            }
            Self::Missing { place } => format!("the archive has no {place}"),
            Self::Damaged { place, reason } => format!("{place} is damaged: {reason}"),
            Self::Entry { place, reason } => format!("the entry {place} cannot be used: {reason}"),
            Self::Conflict {
                number,
                place,
                ours,
                theirs,
            } => format!(
                "{place} is about another segment {number}: its hash is {theirs}, and the one at \
                 hand has {ours}"
            ),
            Self::Unknown { wanted } => {
                format!("there is no segment {wanted} in the directory or the archive")
            }
        }
    }

    /// What to do about it.
    pub fn mend(&self) -> &'static str {
        use object_store::Error;
        match self {
            Self::Log(_) | Self::Manifest { .. } => {
                "look at the disk and at the permissions; metering's user and root may read the log"
            }
            Self::Store {
                source: Error::PermissionDenied { .. } | Error::Unauthenticated { .. },
                ..
            } => "check the credentials, and what they allow on the bucket",
            Self::Store { .. } => {
                "is the store full, or out of reach? check [metering.archive]; nothing is lost \
                 meanwhile"
            }
            Self::Credentials { .. } => {
                "write aws_access_key_id and aws_secret_access_key into [metering.archive] \
                 credentials_file, mode 600, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            }
            Self::Missing { .. } | Self::Damaged { .. } => {
                "bring it back from a copy of the store: an object's name is the BLAKE3 hash of \
                 the right bytes"
            }
            Self::Entry { .. } => {
                "`topnet log restore`, as metering's user, writes what the directory or the store \
                 lacks from the other of them"
            }
            Self::Conflict { .. } => {
                "this is another log's store: give this log a prefix or a folder of its own in \
                 [metering.archive]"
            }
            Self::Unknown { .. } => "`topnet log list` shows those that there are",
        }
    }
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what(), self.mend())
    }
}

impl std::error::Error for ArchiveError {}

impl From<LogError> for ArchiveError {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

/// A store's words are cut here.
const WORDS_BYTES_MAX: usize = 300;

/// The deepest cause says most, and the place stands before it already.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(cause) = deepest.source() {
        deepest = cause;
    }
    words(&deepest.to_string())
}

/// What a store said, short. A body in XML is reduced to its code and message: beside them S3
/// repeats what it was sent, a session's token among it.
fn words(said: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = said.split_once(&format!("<{name}>"))?;
        Some(rest.split('<').next().unwrap_or_default().trim())
    };
    let before = said.split('<').next().unwrap_or_default().trim();
    let parts = [Some(before), element("Code"), element("Message")];
    let parts = parts.into_iter().flatten().filter(|part| !part.is_empty());
    let mut words = parts.collect::<Vec<_>>().join(" ");
    let end = words.floor_char_boundary(WORDS_BYTES_MAX);
    if end < words.len() {
        words.truncate(end);
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_s_words_are_short_and_have_no_token() {
        let body = "Server returned non-2xx status code: 400 Bad Request: <?xml version=\"1.0\"?>\n\
                    <Error><Code>ExpiredToken</Code><Message>The token has expired.</Message>\
                    <Token-0>FwoGZXIvYXdzE</Token-0></Error>";
        assert_eq!(
            words(body),
            "Server returned non-2xx status code: 400 Bad Request: ExpiredToken The token has \
             expired."
        );
        assert_eq!(words("connection refused"), "connection refused");
        let long = format!("502: {}", "é".repeat(999));
        assert!(words(&long).len() < WORDS_BYTES_MAX + 4);
        let html = words("502: <html><body>a proxy</body></html>");
        assert_eq!(html, "502:");
    }
}
