//! Processes of a run: each under its own user with its own capabilities, logged, waited for,
//! and ended with the run.

use crate::interrupt::Interrupt;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use topnet_netns::Namespace;

/// How long a process gets between SIGTERM and SIGKILL.
const STOP_WAIT: Duration = Duration::from_secs(5);
/// How much of a log is shown when something fails.
const TAIL_LINES: usize = 15;

/// Whom a process runs as, and what it may do beyond that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Its own number. Numbers without a name are as good as any to the kernel.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Capabilities by their names without `cap_`.
    pub capabilities: &'static [&'static str],
}

/// Whether a process ends with this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// It ends with the run, even if the run is killed.
    Run,
    /// It stays, for somebody to look around.
    Stays,
}

/// A command that `user` runs.
pub fn as_user(user: User, lifetime: Lifetime, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    // Everything is taken first, then what is needed is given back.
    let set: String = std::iter::once("-all".to_owned())
        .chain(user.capabilities.iter().map(|name| format!(",+{name}")))
        .collect();
    command
        .args(["--reuid", &user.uid.to_string()])
        .args(["--regid", &user.gid.to_string()])
        .arg("--clear-groups")
        .arg(format!("--inh-caps={set}"))
        .arg(format!("--ambient-caps={set}"))
        .arg(format!("--bounding-set={set}"))
        .arg("--no-new-privs");
    if lifetime == Lifetime::Run {
        command.args(["--pdeathsig", "KILL"]);
    }
    command.arg("--").arg(program);
    command
}

/// A running process. Ended when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    keep: bool,
}

impl Process {
    /// Starts a command inside a namespace; what it says is appended to `log`.
    pub fn start(
        namespace: &Namespace,
        name: &str,
        mut command: Command,
        log: &Path,
    ) -> Result<Process> {
        let open = || File::options().create(true).append(true).open(log);
        let file = open().with_context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // A Ctrl-C at the terminal is for the lab, which ends its processes in order.
            .process_group(0);
        let child = namespace.spawn(command)?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            keep: false,
        })
    }

    /// What it is called here.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready`; an error if the process ends before, with what it said.
    pub fn wait_ready(
        &mut self,
        interrupt: &Interrupt,
        limit: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<()> {
        let what = format!("{} is ready", self.name);
        interrupt
            .wait(&what, limit, || {
                if let Some(status) = self.child.try_wait()? {
                    bail!("{} ended with {status}", self.name);
                }
                Ok(ready().then_some(()))
            })
            .with_context(|| self.last_words())
    }

    /// Waits until it ends; an error unless it ended well.
    pub fn wait_success(&mut self, interrupt: &Interrupt, limit: Duration) -> Result<()> {
        let what = format!("{} has ended", self.name);
        let child = &mut self.child;
        let status = interrupt.wait(&what, limit, || Ok(child.try_wait()?))?;
        if !status.success() {
            bail!("{} ended with {status}\n{}", self.name, self.last_words());
        }
        Ok(())
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends a signal to it and to all that it started, as Ctrl-C at a terminal does.
    pub fn signal_group(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process_group(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Ends it at once, as a crash does, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed
            .map(drop)
            .with_context(|| format!("cannot kill {}", self.name))
    }

    /// Asks it to end, then ends it.
    pub fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // If it is gone meanwhile, all is well.
        let _ = self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_WAIT;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Leaves the process running when this value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        tail(&self.name, &self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.keep {
            self.stop();
        }
    }
}

/// Runs a command inside a namespace to its end and returns its standard output. It is ended
/// after `limit` and when the run is interrupted.
pub fn output(
    namespace: &Namespace,
    mut command: Command,
    interrupt: &Interrupt,
    limit: Duration,
) -> Result<String> {
    let name = line_of(&command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = namespace.spawn(command)?;
    let read = |stream: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // A pipe breaks when its process is ended, which is reported by itself.
                let _ = stream.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = read(child.stdout.take().map(|stream| Box::new(stream) as _));
    let err = read(child.stderr.take().map(|stream| Box::new(stream) as _));
    let ended = interrupt.wait(&name, limit, || Ok(child.try_wait()?));
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (out, err) = (
        out.join().unwrap_or_default(),
        err.join().unwrap_or_default(),
    );
    let status = ended.with_context(|| err.trim().to_owned())?;
    if !status.success() {
        bail!("`{name}` failed ({status}): {}", err.trim());
    }
    Ok(out)
}

fn line_of(command: &Command) -> String {
    // What setpriv is told is no news; what follows is.
    let words: Vec<&OsStr> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .collect();
    let start = words
        .iter()
        .position(|word| *word == "--")
        .map_or(0, |position| position + 1);
    words[start..]
        .iter()
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last lines of a log, with a heading.
pub fn tail(name: &str, log: &Path) -> String {
    let text = fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    format!("last words of {name}:\n  {}", lines[from..].join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_all_taken_and_the_needed_given_back() {
        let user = User {
            uid: 7,
            gid: 8,
            capabilities: &["net_admin", "bpf"],
        };
        let command = as_user(user, Lifetime::Run, Path::new("/bin/true"));
        let words: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        let line = words.join(" ");
        assert!(
            line.contains("--ambient-caps=-all,+net_admin,+bpf"),
            "{line}"
        );
        assert!(
            line.contains("--bounding-set=-all,+net_admin,+bpf"),
            "{line}"
        );
        assert!(line.contains("--reuid 7 --regid 8"), "{line}");
        assert!(line.ends_with("--pdeathsig KILL -- /bin/true"), "{line}");
        assert_eq!(line_of(&command), "/bin/true");
        let kept = as_user(user, Lifetime::Stays, Path::new("/bin/true"));
        assert!(!kept.get_args().any(|word| word == "--pdeathsig"));
    }
}
