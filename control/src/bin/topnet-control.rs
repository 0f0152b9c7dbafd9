//! The control process; see `topnet_control`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    match topnet_control::daemon::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("topnet-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}
