//! The `topnet` command; see `topnet_control::cli`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    topnet_control::cli::main()
}
