//! The other processes of a case: this program again, in a role.
//!
//! They are spoken to in lines of JSON: what the role needs, then questions on its standard
//! input, answers on its standard output. They end when their questions end, when this process
//! is gone, or by their number.

use std::{
    io::{self, BufRead, BufReader, Lines, StdinLock, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Serialize, de::DeserializeOwned};
use topnet_lab::interrupt::Interrupt;

/// The word on the command line before the role.
pub const STAND_IN: &str = "stand-in";
/// How often a wait looks whether a signal has come.
const LOOK: Duration = Duration::from_millis(25);

/// What another process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// A model of the data plane: counts, obeys credit, pushes records.
    Plane,
    /// The payee: books, journal, keeper and payment port.
    Payee,
    /// Payers without disks.
    Payers,
    /// Whoever floods the payment port.
    Flood,
    /// The producing end of a ring or of a socket.
    Producer,
    /// Opens a journal.
    Opener,
}

impl Role {
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Another process. Killed when dropped.
#[derive(Debug)]
pub struct Another {
    role: Role,
    child: Child,
    questions: ChildStdin,
    answers: Receiver<String>,
}

impl Another {
    /// Starts `program` in a role and tells it what it needs.
    pub fn start(program: &Path, role: Role, needs: &impl Serialize) -> Result<Another> {
        let mut child = Command::new(program)
            .args([STAND_IN, &role.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let (Some(questions), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the {} has no pipes", role.name());
        };
        let (tell, answers) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(output).lines();
            // Whoever asked may have gone.
            lines
                .map_while(io::Result::ok)
                .take_while(|line| tell.send(line.clone()).is_ok())
                .for_each(drop);
        });
        let mut another = Another {
            role,
            child,
            questions,
            answers,
        };
        another.tell(needs)?;
        Ok(another)
    }

    /// Asks without waiting for the answer.
    pub fn tell(&mut self, question: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(question)?;
        writeln!(self.questions, "{line}")
            .and_then(|()| self.questions.flush())
            .with_context(|| format!("the {} does not listen", self.role.name()))
    }

    /// The next answer.
    pub fn hear<A: DeserializeOwned>(
        &mut self,
        interrupt: &Interrupt,
        patience: Duration,
    ) -> Result<A> {
        let deadline = Instant::now() + patience;
        loop {
            interrupt.check()?;
            match self.answers.recv_timeout(LOOK) {
                Ok(line) => return Ok(serde_json::from_str(&line)?),
                Err(RecvTimeoutError::Timeout) => ensure!(
                    Instant::now() < deadline,
                    "the {} does not answer within {} s",
                    self.role.name(),
                    patience.as_secs()
                ),
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
            }
        }
    }

    /// The next answer, if it is there.
    pub fn try_hear<A: DeserializeOwned>(&mut self) -> Result<Option<A>> {
        match self.answers.try_recv() {
            Ok(line) => Ok(Some(serde_json::from_str(&line)?)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(self.ended()),
        }
    }

    /// Asks and waits.
    pub fn ask<A: DeserializeOwned>(
        &mut self,
        interrupt: &Interrupt,
        patience: Duration,
        question: &impl Serialize,
    ) -> Result<A> {
        self.tell(question)?;
        self.hear(interrupt, patience)
    }

    fn ended(&mut self) -> anyhow::Error {
        let status = self.child.wait();
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        anyhow::anyhow!("the {} ended: {status}; see above", self.role.name())
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process's own side of the conversation.
#[derive(Debug)]
pub struct Asked {
    lines: Lines<StdinLock<'static>>,
}

impl Asked {
    /// What the role needs.
    pub fn begin<N: DeserializeOwned>() -> Result<(N, Asked)> {
        // The end of the questions would do, were nobody busy meanwhile.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let mut asked = Asked {
            lines: io::stdin().lines(),
        };
        let needs = asked
            .next()?
            .context("nobody says what is needed: this command is for cargo xtask bench")?;
        Ok((needs, asked))
    }

    /// The next question; `None` when there are no more.
    pub fn next<Q: DeserializeOwned>(&mut self) -> Result<Option<Q>> {
        let Some(line) = self.lines.next() else {
            return Ok(None);
        };
        Ok(Some(serde_json::from_str(&line?)?))
    }

    /// Answers.
    pub fn answer(&self, answer: &impl Serialize) -> Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, answer)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }
}
