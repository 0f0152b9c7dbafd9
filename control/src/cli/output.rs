//! Where results go: text for people, JSON for programs.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;

use super::{error::CliError, text::Text};

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub(super) json: bool,
}

impl Output {
    /// Prints a result.
    pub(super) fn print<T: Serialize + Text + ?Sized>(self, value: &T) {
        if self.json {
            println!("{}", to_json(value));
        } else {
            print!("{}", value.text());
        }
    }

    /// Prints a result beside what a program reads from standard output.
    pub(super) fn print_beside<T: Serialize + Text + ?Sized>(self, value: &T) {
        let words = if self.json {
            to_json(value) + "\n"
        } else {
            value.text()
        };
        // Whoever watched may be gone; what was wanted is done.
        let _ = write!(std::io::stderr(), "{words}");
    }

    /// Shows a page in the place of the one before; to programs a line.
    pub(super) fn show<T: Serialize + ?Sized>(self, value: &T, page: &str) {
        if self.json {
            println!("{}", serde_json::to_string(value).unwrap_or_default());
        } else if std::io::stdout().is_terminal() {
            // Home, the page, and away with what is left of the one before.
            print!("\x1b[H\x1b[2J{page}");
        } else {
            println!("{page}");
        }
        // Whoever reads a pipe wants it now; one that is gone ends the command with the next print.
        let _ = std::io::stdout().flush();
    }

    /// Says what is happening, to people only.
    pub(super) fn progress(self, words: &str) {
        if !self.json {
            // Whoever watched may be gone; that is no reason to end half-way.
            let _ = writeln!(std::io::stderr(), "{words}");
        }
    }

    /// Says that there is no result, and why.
    pub(super) fn nothing(self, words: &str) {
        if self.json {
            println!("null");
        } else {
            // Whoever watched may be gone; that is no reason to end half-way.
            let _ = writeln!(std::io::stderr(), "{words}");
        }
    }

    /// Prints why the command failed.
    pub(super) fn error(self, error: &CliError) {
        let mut stderr = std::io::stderr();
        if self.json {
            let _ = writeln!(stderr, "{}", serde_json::json!({ "error": error.0 }));
        } else {
            let _ = writeln!(stderr, "topnet: {}\n  {}", error.0.what, error.0.mend);
        }
    }
}

fn to_json<T: Serialize + ?Sized>(value: &T) -> String {
    // Values of ours always have a JSON form; if one had not, its place would say so.
    serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("\"{error}\""))
}
