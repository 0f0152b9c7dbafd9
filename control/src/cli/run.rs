//! `topnet run` and `topnet check-config`.

use std::{os::unix::process::CommandExt, process::Command};

use serde::Serialize;
use topnet_config::{Config, ConfigError, Problem, Process};

use super::{arguments::Options, error::CliError, output::Output, text::Text};

/// Becomes `topnet-PROCESS`, which stands beside this command.
pub(super) fn run(options: &Options, process: Process) -> Result<(), CliError> {
    let own = std::env::current_exe()
        .map_err(|error| CliError::file(std::path::Path::new("topnet"), error))?;
    let program = own.with_file_name(format!("topnet-{process}"));
    let error = Command::new(&program)
        .arg("--config")
        .arg(&options.config)
        .exec();
    Err(CliError::new(
        "run",
        format!("cannot run {}: {error}", program.display()),
        format!(
            "install topnet-{process} beside topnet, in {}",
            own.with_file_name("").display()
        ),
    ))
}

/// What `check-config` found.
#[derive(Debug, Serialize)]
struct Checked {
    config: String,
    ok: bool,
    problems: Vec<ProblemReport>,
}

#[derive(Debug, Serialize)]
struct ProblemReport {
    line: Option<usize>,
    place: String,
    what: String,
    mend: String,
}

/// Names everything that is wrong at once.
pub(super) fn check_config(options: &Options, output: Output) -> Result<(), CliError> {
    let problems = match Config::load(&options.config) {
        Ok(config) => config.check_machine(),
        Err(error @ ConfigError::Unreadable { .. }) => return Err(error.into()),
        Err(error) => error.problems().to_vec(),
    };
    let count = problems.len();
    let config = options.config.display().to_string();
    output.print(&Checked {
        config: config.clone(),
        ok: problems.is_empty(),
        problems: problems.into_iter().map(ProblemReport::from).collect(),
    });
    if count == 0 {
        return Ok(());
    }
    Err(CliError::new(
        "config",
        format!("{config} cannot be used as it is: {count} found"),
        "mend what is listed, and check again",
    ))
}

impl From<Problem> for ProblemReport {
    fn from(problem: Problem) -> Self {
        let Problem {
            line,
            place,
            what,
            mend,
        } = problem;
        Self {
            line,
            place,
            what,
            mend,
        }
    }
}

impl Text for Checked {
    fn text(&self) -> String {
        if self.ok {
            return format!("{} is good\n", self.config);
        }
        let line = |problem: &ProblemReport| {
            let line = problem
                .line
                .map(|line| format!(":{line}"))
                .unwrap_or_default();
            let ProblemReport {
                place, what, mend, ..
            } = problem;
            format!("{}{line}: {place}: {what}\n  {mend}\n", self.config)
        };
        self.problems.iter().map(line).collect()
    }
}
