//! Reads the counters of a WireGuard client that is not ours.

use std::{
    fs,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with},
};
use tracing::warn;

use crate::counter::{ByteCounter, Counted, Reading, Readings};

/// How long `wg` or a userspace WireGuard may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Between two questions.
const ASK_INTERVAL: Duration = Duration::from_millis(50);
/// An answer older than this is missed.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// Counts beside a foreign WireGuard client, in the network namespace that it runs in.
///
/// The interface's counters are the kernel's and read at once. WireGuard's own may take their
/// time, or never come: a thread asks for them, and [`read`](ByteCounter::read) gives the newest
/// answer. Only the first reading waits for one, within a bound, because counting begins there.
#[derive(Debug)]
pub struct WireguardCounter {
    interface: String,
    asker: Asker,
    asked: Option<Arc<Answers>>,
    /// The transfer is of inner packets, as they are billed: no other count is needed.
    exact: bool,
    /// The transfer could not be read, and that was said.
    complained: bool,
}

/// Asks WireGuard for a peer's transfer.
#[derive(Clone, Debug)]
struct Asker {
    interface: String,
    /// Base64, as `wg` shows it.
    peer: String,
    /// Where userspace implementations answer.
    socket: PathBuf,
    /// What shows the kernel's.
    program: PathBuf,
}

/// The newest answer, between the thread that asks and whoever reads.
#[derive(Debug, Default)]
struct Answers {
    newest: Mutex<Option<Answer>>,
    came: Condvar,
}

#[derive(Clone, Debug)]
struct Answer {
    at: Instant,
    /// `None`: WireGuard does not know the peer now.
    transfer: Option<Reading>,
    /// Why it cannot be asked.
    failed: Option<String>,
}

impl WireguardCounter {
    /// Counts what goes through `interface` and to its peer `peer` (its 32-byte public key).
    pub fn new(interface: &str, peer: [u8; 32]) -> Self {
        let asker = Asker {
            interface: interface.to_owned(),
            peer: base64(&peer),
            socket: format!("/var/run/wireguard/{interface}.sock").into(),
            program: "wg".into(),
        };
        Self::with(asker)
    }

    /// Counts at an interface of this project's, which answers at `socket` and whose transfer is
    /// of inner packets: exactly what is billed for what arrives.
    pub fn exact(interface: &str, peer: [u8; 32], socket: PathBuf) -> Self {
        let mut counter = Self::new(interface, peer);
        counter.asker.socket = socket;
        counter.exact = true;
        counter
    }

    fn with(asker: Asker) -> Self {
        Self {
            interface: asker.interface.clone(),
            asker,
            asked: None,
            exact: false,
            complained: false,
        }
    }

    /// The newest answer. The thread that asks starts with the first call and ends with `self`.
    fn answer(&mut self) -> io::Result<Option<Answer>> {
        if let Some(answers) = &self.asked {
            return Ok(answers.newest().clone());
        }
        let answers = Arc::new(Answers::default());
        let (asker, theirs) = (self.asker.clone(), Arc::downgrade(&answers));
        thread::Builder::new()
            .name("wireguard-transfer".to_owned())
            .spawn(move || asker.ask_on(&theirs))?;
        let first = answers.wait_first();
        self.asked = Some(answers);
        Ok(first)
    }

    fn complain(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            warn!(
                interface = self.interface,
                reason,
                "WireGuard does not say what it transferred; the interface's lower count must \
                 do, and paying may fall behind: let this user read it (CAP_NET_ADMIN, or the \
                 group of its socket)"
            );
        }
    }
}

impl ByteCounter for WireguardCounter {
    fn read(&mut self) -> io::Result<Readings> {
        let Some(incarnation) = index(&self.interface)? else {
            return Ok(Readings::default());
        };
        let devices = fs::read_to_string("/proc/thread-self/net/dev")?;
        let Some(counted) = parse_devices(&devices, &self.interface) else {
            return Ok(Readings::default());
        };
        let answer = self.answer()?;
        let transfer = match &answer {
            Some(answer) => {
                if let Some(reason) = &answer.failed {
                    self.complain(reason);
                } else if answer.at.elapsed() > STALE_AFTER {
                    self.complain("it does not answer any more");
                } else if answer.transfer.is_some() {
                    self.complained = false;
                }
                // An answer about an interface that is gone says nothing of this one.
                answer
                    .transfer
                    .filter(|transfer| transfer.incarnation == incarnation)
            }
            None => {
                self.complain("it has not answered yet");
                None
            }
        };
        let interface = Some(Reading {
            counted,
            incarnation,
        });
        Ok(Readings {
            interface: if self.exact { transfer } else { interface },
            transfer,
        })
    }
}

impl Answers {
    fn newest(&self) -> MutexGuard<'_, Option<Answer>> {
        // Whoever panicked had written whole answers.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first answer, if it comes in time.
    fn wait_first(&self) -> Option<Answer> {
        let patience = 2 * ANSWER_TIMEOUT;
        let (newest, _) = self
            .came
            .wait_timeout_while(self.newest(), patience, |newest| newest.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        newest.clone()
    }
}

impl Asker {
    /// Asks again and again, as long as somebody wants to know.
    fn ask_on(&self, answers: &Weak<Answers>) {
        loop {
            let answer = self.ask();
            let Some(answers) = answers.upgrade() else {
                return;
            };
            *answers.newest() = Some(answer);
            answers.came.notify_all();
            drop(answers);
            thread::sleep(ASK_INTERVAL);
        }
    }

    fn ask(&self) -> Answer {
        let asked = index(&self.interface).and_then(|incarnation| {
            let (Some(incarnation), counted) = (incarnation, self.transfer()?) else {
                return Ok(None);
            };
            Ok(counted.map(|counted| Reading {
                counted,
                incarnation,
            }))
        });
        let at = Instant::now();
        match asked {
            Ok(transfer) => Answer {
                at,
                transfer,
                failed: None,
            },
            Err(error) => Answer {
                at,
                transfer: None,
                failed: Some(error.to_string()),
            },
        }
    }

    /// The peer's transfer, if WireGuard may be asked and knows the peer.
    fn transfer(&self) -> io::Result<Option<Counted>> {
        if self.socket.exists() {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            stream.write_all(b"get=1\n\n")?;
            return Ok(read_uapi(stream, &self.peer));
        }
        let mut command = Command::new(&self.program);
        command.args(["show", &self.interface, "transfer"]);
        let shown = output_in_time(command, ANSWER_TIMEOUT)?;
        Ok(parse_wg_show(&shown, &self.peer))
    }
}

/// The interface's number in this namespace, if it is there.
fn index(interface: &str) -> io::Result<Option<u32>> {
    let cloexec = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, cloexec, None)?;
    match name_to_index(&socket, interface) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// What `command` prints. One that takes longer than `patience` is killed.
fn output_in_time(mut command: Command, patience: Duration) -> io::Result<String> {
    let deadline = Instant::now() + patience;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let read = child
        .stdout
        .take()
        .ok_or_else(|| io::Error::other("it has no output"))
        .and_then(|stdout| read_until(stdout, deadline));
    if read.is_err() {
        // It may have ended by itself meanwhile.
        let _ = child.kill();
    }
    let status = child.wait()?;
    let text = read?;
    if !status.success() {
        let what = format!("{} ended with {status}", command.get_program().display());
        return Err(io::Error::other(what));
    }
    Ok(text)
}

/// Reads to the end, which must come before `deadline`.
fn read_until(mut source: impl Read + AsFd, deadline: Instant) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&source, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout))? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "`wg` does not answer in time",
            ));
        }
        match source.read(&mut chunk)? {
            0 => break,
            read => bytes.extend_from_slice(&chunk[..read]),
        }
        if bytes.len() as u64 > ANSWER_BYTES_MAX {
            return Err(io::Error::other("`wg` says more than it could know"));
        }
    }
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// Reads `/proc/net/dev`: after the name, eight receive columns, then eight transmit ones.
fn parse_devices(text: &str, interface: &str) -> Option<Counted> {
    let columns = text.lines().find_map(|line| {
        let (name, columns) = line.split_once(':')?;
        (name.trim() == interface).then_some(columns)
    })?;
    let mut columns = columns.split_ascii_whitespace();
    let down_bytes = columns.next()?.parse().ok()?;
    let up_bytes = columns.nth(7)?.parse().ok()?;
    Some(Counted {
        up_bytes,
        down_bytes,
    })
}

/// Reads `wg show INTERFACE transfer`: peer, received, sent.
fn parse_wg_show(text: &str, peer: &str) -> Option<Counted> {
    text.lines().find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        if columns.next()? != peer {
            return None;
        }
        let down_bytes = columns.next()?.parse().ok()?;
        let up_bytes = columns.next()?.parse().ok()?;
        Some(Counted {
            up_bytes,
            down_bytes,
        })
    })
}

/// Reads a userspace implementation's answer (the "cross-platform userspace" protocol of
/// wireguard.com/xplatform): `key=value` lines, a peer's own after its `public_key`, then an
/// empty line.
fn read_uapi(stream: impl Read, peer: &str) -> Option<Counted> {
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    let mut stream = stream.take(ANSWER_BYTES_MAX);
    while !text.ends_with(b"\n\n") {
        match stream.read(&mut chunk) {
            Ok(bytes) if bytes > 0 => text.extend_from_slice(&chunk[..bytes]),
            _ => break,
        }
    }
    parse_uapi(std::str::from_utf8(&text).ok()?, peer)
}

fn parse_uapi(text: &str, peer: &str) -> Option<Counted> {
    let (mut ours, mut up, mut down) = (false, None, None);
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match key {
            "public_key" => ours = hex(value).is_some_and(|key| base64(&key) == peer),
            "tx_bytes" if ours => up = value.parse().ok(),
            "rx_bytes" if ours => down = value.parse().ok(),
            _ => {}
        }
    }
    Some(Counted {
        up_bytes: up?,
        down_bytes: down?,
    })
}

fn hex(text: &str) -> Option<[u8; 32]> {
    Some(
        format!("0x{text}")
            .parse::<topnet_account::PublicKey>()
            .ok()?
            .0,
    )
}

/// Base64 with padding (RFC 4648), as WireGuard writes keys.
fn base64(bytes: &[u8; 32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(44);
    for group in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=group.len()].copy_from_slice(group);
        let word = u32::from_be_bytes(word);
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= group.len() {
                ALPHABET[digit] as char
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn counted(up_bytes: u64, down_bytes: u64) -> Counted {
        Counted {
            up_bytes,
            down_bytes,
        }
    }

    #[test]
    fn the_kernels_and_wireguards_words_are_understood() {
        let devices = "Inter-|   Receive                            |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes\n    \
            lo:       1       2    0    0    0     0          0         0        3       4 0 0\n \
            wg0:12345     67    0    0    0     0          0         0   987654     321 0 0 0 0 0\n";
        assert_eq!(
            parse_devices(devices, "wg0"),
            Some(counted(987_654, 12_345))
        );
        assert_eq!(parse_devices(devices, "wg1"), None);

        let peer = base64(&[7; 32]);
        assert_eq!(peer, "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
        let shown = format!("other\t1\t2\n{peer}\t148\t92\n");
        assert_eq!(parse_wg_show(&shown, &peer), Some(counted(92, 148)));

        let key = "07".repeat(32);
        let other = "08".repeat(32);
        let answer = format!(
            "private_key={other}\nlisten_port=1\npublic_key={key}\nrx_bytes=148\ntx_bytes=92\n\
             public_key={other}\nrx_bytes=1\ntx_bytes=2\nerrno=0\n\n"
        );
        assert_eq!(read_uapi(answer.as_bytes(), &peer), Some(counted(92, 148)));
        assert_eq!(read_uapi(&b"errno=0\n\n"[..], &peer), None);
    }

    fn asker(program: &str, dir: &tempfile::TempDir) -> Asker {
        let path = dir.path().join("wg");
        fs::write(&path, program).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        Asker {
            interface: "lo".to_owned(),
            peer: base64(&[7; 32]),
            socket: dir.path().join("none.sock"),
            program: path,
        }
    }

    /// The loopback interface stands in for a tunnel, and a script for `wg`.
    #[test]
    fn a_wg_that_hangs_holds_up_nothing_but_the_first_reading() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let hanging = format!("#!/bin/sh\necho $$ > {}\nexec sleep 1000\n", pid.display());
        let mut counter = WireguardCounter::with(asker(&hanging, &dir));
        for _ in 0..100 {
            let readings = counter.read().unwrap();
            assert!(readings.interface.is_some());
            assert_eq!(readings.transfer, None);
        }
        assert!(counter.complained);
        // The one that hung was killed, and waited for, before the next was asked.
        let written = |than: &str| loop {
            let text = fs::read_to_string(&pid).unwrap_or_default();
            if text.ends_with('\n') && text != than {
                return text;
            }
            thread::sleep(Duration::from_millis(20));
        };
        let first = written("");
        written(&first);
        let hung = format!("/proc/{}", first.trim());
        assert!(!std::path::Path::new(&hung).exists());
    }

    #[test]
    fn the_newest_answer_is_given_with_the_interfaces_number() {
        let dir = tempfile::tempdir().unwrap();
        let shown = format!("#!/bin/sh\necho '{}\t148\t92'\n", base64(&[7; 32]));
        let mut counter = WireguardCounter::with(asker(&shown, &dir));
        // Another test's fork may keep the script from being run at first.
        let (readings, transfer) = loop {
            let readings = counter.read().unwrap();
            if let Some(transfer) = readings.transfer {
                break (readings, transfer);
            }
        };
        assert_eq!(transfer.counted, counted(92, 148));
        assert_eq!(
            transfer.incarnation,
            readings.interface.unwrap().incarnation
        );
        let refused = asker("#!/bin/sh\nexit 3\n", &dir).ask();
        assert!(refused.failed.unwrap().contains("exit status: 3"));
    }
}
