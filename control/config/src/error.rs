//! What is wrong with a configuration: where, what, and the mend.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

/// A configuration that no process starts with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read the configuration {}: {error}; name another with --config, or make one with `topnet init`",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: String,
    },
    /// The file says something that cannot be.
    #[error("{}", list(path, problems))]
    Refused {
        /// The file.
        path: PathBuf,
        /// Never empty.
        problems: Vec<Problem>,
    },
}

impl ConfigError {
    pub(crate) fn refused(path: &Path, problems: Vec<Problem>) -> Self {
        Self::Refused {
            path: path.to_owned(),
            problems,
        }
    }

    /// What is wrong; empty if the file could not be read at all.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Unreadable { .. } => &[],
            Self::Refused { problems, .. } => problems,
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1, if there is one to point at.
    pub line: Option<usize>,
    /// Dotted key: `metering.payment_listen`. Empty if the file is not TOML there.
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub mend: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        write!(f, "{}; {}", self.what, self.mend)
    }
}

impl Problem {
    /// Says in our words what the parser or the deserializer refused.
    pub(crate) fn from_toml(error: &toml::de::Error, text: &str) -> Self {
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        let line = error.span().map(|span| line_of(text, span.start));
        let place = error
            .span()
            .map_or_else(String::new, |span| key_at(text, span.start));
        let (what, mend) = match message.strip_prefix("unknown field `") {
            Some(rest) => unknown_key(rest),
            None if message.starts_with("missing field") => {
                (message.replace("field", "key"), "add the key".to_owned())
            }
            None => (message, "correct the value".to_owned()),
        };
        Self {
            line,
            place,
            what,
            mend,
        }
    }
}

/// Collects what the checks find, with the place of each in the file.
pub(crate) struct Problems<'a> {
    text: &'a str,
    section: String,
    list: Vec<Problem>,
}

impl<'a> Problems<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            text,
            section: String::new(),
            list: Vec::new(),
        }
    }

    /// What is added from here on is about keys of `section` (dotted; empty: the top level).
    pub(crate) fn enter(&mut self, section: &str) {
        section.clone_into(&mut self.section);
    }

    /// `key` of the current section is wrong.
    pub(crate) fn add(&mut self, key: &str, what: impl Into<String>, mend: impl Into<String>) {
        let place = match self.section.as_str() {
            "" => key.to_owned(),
            section => format!("{section}.{key}"),
        };
        self.list.push(Problem {
            line: line_of_key(self.text, &place),
            place,
            what: what.into(),
            mend: mend.into(),
        });
    }

    pub(crate) fn into_list(self) -> Vec<Problem> {
        self.list
    }
}

fn list(path: &Path, problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| format!("\n  {problem}"));
    format!(
        "{} cannot be used:{}",
        path.display(),
        lines.collect::<String>()
    )
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
}

/// `NAME`, expected one of `A`, `B` → what is wrong and the likeliest slip.
fn unknown_key(rest: &str) -> (String, String) {
    let (name, expected) = rest.split_once('`').unwrap_or((rest, ""));
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let near = known
        .iter()
        .map(|known| (edits(name, known), known))
        .filter(|(edits, known)| *edits <= 2.max(known.len() / 3))
        .min();
    let mend = match near {
        Some((_, near)) => format!("did you mean `{near}`?"),
        None if known.is_empty() => "remove it".to_owned(),
        None => format!("remove it; known here: {}", known.join(", ")),
    };
    (format!("unknown key `{name}`"), mend)
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The line of a dotted key; of its section if the key is left to its default.
fn line_of_key(text: &str, place: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut line = None;
    for part in place.split('.') {
        let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref() == part) else {
            return line;
        };
        line = Some(line_of(text, key.span().start));
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => return line,
        }
    }
    line
}

/// The dotted key whose key or value covers `offset`.
fn key_at(text: &str, offset: usize) -> String {
    fn find(table: &DeTable<'_>, offset: usize, path: &mut Vec<String>) -> bool {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            let inside = match value.get_ref() {
                DeValue::Table(inner) => find(inner, offset, path),
                _ => false,
            };
            if inside || key.span().contains(&offset) || value.span().contains(&offset) {
                return true;
            }
            path.pop();
        }
        false
    }
    let mut path = Vec::new();
    if let Ok(document) = DeTable::parse(text) {
        find(document.get_ref(), offset, &mut path);
    }
    path.join(".")
}
