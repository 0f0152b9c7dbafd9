//! One namespace: made, entered, removed.

use crate::processes::{NamespaceId, end_all};
use crate::{Error, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;

/// Every namespace's name begins so; nothing else is ever made or removed.
pub const PREFIX: &str = "topnet-";

/// How many namespaces may exist at once, over all runs on the machine.
pub const NAMESPACES_MAX: usize = 24;

/// Where iproute2 keeps the namespaces' names.
const NAMES: &str = "/run/netns";

/// Held while a namespace is made or swept, so that a fresh one is not taken for a leftover
/// before its owner has locked it. (`/run/netns` itself is locked by iproute2.)
const MAKING: &str = "/run/topnet-netns.lock";

/// A network namespace, removed when dropped.
///
/// Processes started with [`Namespace::spawn`] belong to a thread that lives as long as this
/// value. A child that asks for a signal at its parent's death (`setpriv --pdeathsig`) therefore
/// gets it when the namespace is dropped or this process dies, not earlier.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// Locked: says to other runs that this one has an owner.
    handle: File,
    spawner: mpsc::Sender<SpawnRequest>,
    keep: bool,
}

/// A command for the namespace's thread, and where its answer goes.
struct SpawnRequest {
    command: Command,
    reply: mpsc::Sender<io::Result<Child>>,
}

impl Namespace {
    /// Makes the namespace with its loopback up and IPv6 off (whose own chatter would be
    /// counted). A leftover of that name without an owner is removed first.
    pub fn create(name: &str) -> Result<Namespace> {
        check_name(name)?;
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let _making = making_lock()?;
        if path_of(name).exists() && !remove_unowned(name)? {
            return Err(Error::Busy(name.to_owned()));
        }
        if names().len() >= NAMESPACES_MAX {
            return Err(Error::TooMany);
        }
        run(ip(["netns", "add", name]))?;
        let namespace = Namespace::own(name).inspect_err(|_| {
            // The first error is the one to tell.
            let _ = run(ip(["netns", "del", name]));
        })?;
        namespace.sysctl("net.ipv6.conf.all.disable_ipv6", "1").ok();
        run(ip(["-n", name, "link", "set", "lo", "up"]))?;
        Ok(namespace)
    }

    fn own(name: &str) -> Result<Namespace> {
        let path = path_of(name);
        let handle = File::open(&path).map_err(|source| file_error(&path, source))?;
        handle
            .try_lock()
            .map_err(|_| Error::Busy(name.to_owned()))?;
        let thread_handle = handle
            .try_clone()
            .map_err(|source| file_error(&path, source))?;
        let spawner = start_spawner(name, thread_handle)?;
        Ok(Namespace {
            name: name.to_owned(),
            handle,
            spawner,
            keep: false,
        })
    }

    /// The name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace, for programs that enter it by themselves.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Starts a process inside.
    pub fn spawn(&self, command: Command) -> Result<Child> {
        let line = line_of(&command);
        let (reply, answer) = mpsc::channel();
        let gone = || Error::ThreadGone(self.name.clone());
        self.spawner
            .send(SpawnRequest { command, reply })
            .map_err(|_| gone())?;
        answer
            .recv()
            .map_err(|_| gone())?
            .map_err(|source| Error::Start {
                command: line,
                source,
            })
    }

    /// Runs a command inside to its end; an exit status other than 0 is an error with what the
    /// command said.
    pub fn run(&self, mut command: Command) -> Result<Output> {
        let line = line_of(&command);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.spawn(command)?;
        finish(line, child)
    }

    /// Runs `work` on a thread of its own inside the namespace: sockets that it opens belong
    /// here for good.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_in(&self.handle).map_err(|source| file_error(&self.path(), source))?;
                    Ok(work())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Sets a `net.*` setting of this namespace.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = PathBuf::from(format!("/proc/sys/{}", key.replace('.', "/")));
        assert!(
            key.starts_with("net."),
            "only net.* settings belong to a network namespace, {key} would change the host"
        );
        self.enter(|| fs::write(&path, value))?
            .map_err(|source| file_error(&path, source))
    }

    /// Reads a `net.*` setting of this namespace.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = PathBuf::from(format!("/proc/sys/{}", key.replace('.', "/")));
        self.enter(|| fs::read_to_string(&path))?
            .map(|value| value.trim().to_owned())
            .map_err(|source| file_error(&path, source))
    }

    /// Adds a route: `destination` is a prefix or `default`, `via` the next hop.
    pub fn route(&self, destination: &str, via: &str) -> Result<()> {
        run(ip([
            "-n",
            self.name(),
            "route",
            "replace",
            destination,
            "via",
            via,
        ]))
        .map(drop)
    }

    /// Leaves the namespace and what runs in it behind when this value is dropped. The next run
    /// that needs the name, or [`sweep`], removes it.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = remove(&self.name) {
            eprintln!("topnet-netns: {error}");
        }
    }
}

/// Removes every namespace named `topnet-*` that has no running owner, with the processes in it.
/// Returns the names removed.
pub fn sweep() -> Result<Vec<String>> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let _making = making_lock()?;
    let mut removed = Vec::new();
    for name in names() {
        if remove_unowned(&name)? {
            removed.push(name);
        }
    }
    Ok(removed)
}

/// The names of all namespaces of ours, sorted.
fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(NAMES) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| check_name(name).is_ok())
        .collect();
    names.sort();
    names
}

/// Removes a namespace unless somebody holds its lock; false if so.
fn remove_unowned(name: &str) -> Result<bool> {
    // A name whose bind mount is gone is an empty file, which can be locked as well.
    if let Ok(handle) = File::open(path_of(name))
        && handle.try_lock().is_err()
    {
        return Ok(false);
    }
    remove(name)?;
    Ok(true)
}

fn remove(name: &str) -> Result<()> {
    check_name(name)?;
    let path = path_of(name);
    // A leftover file that is no namespace has the identity of a plain file: no process matches.
    if let Some(id) = NamespaceId::of(&path) {
        end_all(id);
    }
    run(ip(["netns", "del", name])).map(drop)
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NAMES).join(name)
}

fn check_name(name: &str) -> Result<()> {
    let tail = name.strip_prefix(PREFIX).unwrap_or_default();
    let fits = (1..=48).contains(&tail.len())
        && tail
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fits {
        Ok(())
    } else {
        Err(Error::Name(name.to_owned()))
    }
}

fn making_lock() -> Result<File> {
    let path = Path::new(MAKING);
    let open = || {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|source| file_error(path, source))
}

/// Starts the thread that lives in the namespace and starts its processes.
fn start_spawner(name: &str, handle: File) -> Result<mpsc::Sender<SpawnRequest>> {
    let (sender, requests) = mpsc::channel::<SpawnRequest>();
    let (entered, ready) = mpsc::channel();
    let path = path_of(name);
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let moved = move_in(&handle);
            // The lock belongs to the open file: this copy must not outlive the owner's.
            drop(handle);
            let failed = moved.is_err();
            if entered.send(moved).is_err() || failed {
                return;
            }
            for SpawnRequest { mut command, reply } in requests {
                let child = command.spawn();
                if let Err(mpsc::SendError(Ok(mut unclaimed))) = reply.send(child) {
                    let _ = unclaimed.kill();
                    let _ = unclaimed.wait();
                }
            }
        })
        .map_err(|source| file_error(&path, source))?;
    ready
        .recv()
        .map_err(|_| Error::ThreadGone(name.to_owned()))?
        .map_err(|source| file_error(&path, source))?;
    Ok(sender)
}

/// Moves the calling thread into the namespace.
fn move_in(handle: &File) -> io::Result<()> {
    move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(io::Error::from)
}

fn file_error(path: &Path, source: io::Error) -> Error {
    Error::File {
        path: path.display().to_string(),
        source,
    }
}

/// An `ip` command with these arguments.
pub(crate) fn ip<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new("ip");
    command.args(arguments);
    command
}

/// Runs a command on the host's side to its end; see [`Namespace::run`].
pub(crate) fn run(mut command: Command) -> Result<Output> {
    let line = line_of(&command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().map_err(|source| Error::Start {
        command: line.clone(),
        source,
    })?;
    finish(line, child)
}

fn finish(command: String, child: Child) -> Result<Output> {
    let output = match child.wait_with_output() {
        Ok(output) => output,
        Err(source) => return Err(Error::Start { command, source }),
    };
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::Command {
        command,
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn line_of(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_are_accepted() {
        let long = format!("{PREFIX}{}", "x".repeat(49));
        for (name, fits) in [
            ("topnet-client", true),
            ("topnet-a-1", true),
            ("topnet-", false),
            ("default", false),
            ("topnet-../x", false),
            ("topnet-A", false),
            ("", false),
            (long.as_str(), false),
        ] {
            assert_eq!(check_name(name).is_ok(), fits, "{name}");
        }
    }

    #[test]
    fn a_failed_command_says_what_ran_and_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such thing >&2; exit 3"]);
        let error = run(command).unwrap_err().to_string();
        assert!(error.contains("sh -c"), "{error}");
        assert!(error.contains("no such thing"), "{error}");
        assert!(error.contains('3'), "{error}");
    }
}
