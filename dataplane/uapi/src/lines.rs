//! Cuts a stream into lines, with one line's memory.

use zeroize::{Zeroize, Zeroizing};

/// The lines of a stream that arrives in pieces. Lines may hold keys, so each is wiped when the
/// next one is asked for.
pub(crate) struct LineReader {
    line: Zeroizing<Vec<u8>>,
    line_bytes_max: usize,
    /// What is in `line` has been handed out.
    taken: bool,
    /// The line's beginning was too long already, and what follows still belongs to it.
    skipping: bool,
}

/// What stands before the next line end.
pub(crate) enum Line<'r> {
    /// A line without its end.
    Text(&'r [u8]),
    /// A piece of `line_bytes_max` bytes and one more. The line's remaining pieces are said again,
    /// so that whoever counts lines bounds an endless one too.
    TooLong,
}

impl LineReader {
    pub(crate) fn new(line_bytes_max: usize) -> Self {
        Self {
            // Of its last size at once: a vector that grows leaves copies behind.
            line: Zeroizing::new(Vec::with_capacity(line_bytes_max)),
            line_bytes_max,
            taken: false,
            skipping: false,
        }
    }

    /// True if no line has begun.
    pub(crate) fn is_at_start(&self) -> bool {
        self.taken || (self.line.is_empty() && !self.skipping)
    }

    /// The next line, and `bytes` moved on behind it; `None` when more bytes are needed.
    pub(crate) fn next(&mut self, bytes: &mut &[u8]) -> Option<Line<'_>> {
        loop {
            if self.taken {
                self.line.zeroize();
                self.taken = false;
            }
            let room = self.line_bytes_max - self.line.len();
            let near = &bytes[..bytes.len().min(room + 1)];
            let Some(end) = near.iter().position(|byte| *byte == b'\n') else {
                if near.len() <= room {
                    self.line.extend_from_slice(near);
                    *bytes = &[];
                    return None;
                }
                *bytes = &bytes[near.len()..];
                self.taken = true;
                self.skipping = true;
                return Some(Line::TooLong);
            };
            self.line.extend_from_slice(&near[..end]);
            *bytes = &bytes[end + 1..];
            self.taken = true;
            if self.skipping {
                self.skipping = false;
                continue;
            }
            return Some(Line::Text(&self.line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&str]) -> Vec<String> {
        let mut reader = LineReader::new(4);
        let mut lines = Vec::new();
        for piece in pieces {
            let mut bytes = piece.as_bytes();
            while let Some(line) = reader.next(&mut bytes) {
                lines.push(match line {
                    Line::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                    Line::TooLong => "!".to_owned(),
                });
            }
            assert!(bytes.is_empty());
        }
        lines
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let cases: [(&[&str], &[&str]); 6] = [
            (&["ab\ncd\n"], &["ab", "cd"]),
            (&["a", "b\n", "\n", "c"], &["ab", ""]),
            (&["abcd\n"], &["abcd"]),
            (&["abcde\nx\n"], &["!", "x"]),
            (&["abc", "defghijk", "l\n\n"], &["!", "!", ""]),
            (&["abcde", "\n", "\n"], &["!", ""]),
        ];
        for (pieces, expected) in cases {
            assert_eq!(lines(pieces), expected, "{pieces:?}");
        }
    }
}
