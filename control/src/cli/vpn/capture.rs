//! `topnet vpn capture`: what peers send and are sent inside the tunnel, in a pcap file.
//!
//! Only whole packets are written, so that a file which Ctrl-C ended is read like any other.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::{fs::OpenOptionsExt, net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;
use topnet_api::{
    CAPTURE_ALL, CAPTURE_PEER, CAPTURE_REFUSED, CaptureRecord, PCAP_HEADER_BYTES,
    PCAP_RECORD_BYTES, SocketName, pcap_header,
};
use topnet_config::Config;
use topnet_uapi::PublicKey;

use crate::cli::{
    arguments::VpnCapture,
    error::CliError,
    output::Output,
    private_file::check_replaceable,
    text::{Table, Text},
};

/// How long the data plane may take to begin, and to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the time is looked at while no packet comes.
const LOOK_PERIOD: Duration = Duration::from_millis(50);
const READ_BYTES: usize = 1 << 16;
/// Names standard output in the place of a file.
const STDOUT: &str = "-";

/// What was written.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Captured {
    file: String,
    packets: u64,
    /// Packets that came faster than they were taken; there may be none of the last ones.
    lost: u32,
}

impl Text for Captured {
    fn text(&self) -> String {
        Table::new(format!("captured to {}", self.file))
            .row("packets", self.packets.to_string())
            .row("lost", self.lost.to_string())
            .end()
    }
}

pub(super) fn execute(
    config: &Config,
    capture: &VpnCapture,
    output: Output,
) -> Result<(), CliError> {
    let path = SocketName::Captures.below(&config.runtime_dir);
    let unreachable = |error: &io::Error| {
        CliError::new(
            "capture",
            format!("no packets are to be had at {}: {error}", path.display()),
            "start the data plane, and run this as root or as its user",
        )
    };
    let mut socket = UnixStream::connect(&path).map_err(|error| unreachable(&error))?;
    let request = match capture.peer {
        Some(key) => format!("{CAPTURE_PEER}{}\n", PublicKey(key.0)),
        None => CAPTURE_ALL.to_owned(),
    };
    let mut header = [0; PCAP_HEADER_BYTES];
    let began = socket
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| socket.write_all(request.as_bytes()))
        .and_then(|()| socket.read_exact(&mut header[..CAPTURE_REFUSED.len()]));
    began.map_err(|error| unreachable(&error))?;
    if header.starts_with(CAPTURE_REFUSED.as_bytes()) {
        let mut words = String::new();
        socket
            .read_to_string(&mut words)
            .map_err(|error| unreachable(&error))?;
        return Err(CliError::new(
            "capture",
            words.trim().to_owned(),
            "`topnet vpn peers` lists the peers; one capture goes on at a time",
        ));
    }
    socket
        .read_exact(&mut header[CAPTURE_REFUSED.len()..])
        .map_err(|error| unreachable(&error))?;
    if header != pcap_header() {
        return Err(unreachable(&ErrorKind::InvalidData.into()));
    }
    let piped = capture.out == Path::new(STDOUT);
    let mut file: Box<dyn Write> = if piped {
        Box::new(io::stdout())
    } else {
        Box::new(private(&capture.out)?)
    };
    output.progress(&format!("writing to {}", capture.out.display()));
    let limits = Limits {
        until: capture
            .seconds
            .map(|seconds| Instant::now() + Duration::from_secs(seconds)),
        packets: capture.packets.unwrap_or(u64::MAX),
    };
    let copied = file
        .write_all(&header)
        .map_err(Fault::File)
        .and_then(|()| copy(&mut socket, &mut file, &limits));
    let (packets, lost) = match copied {
        Ok(copied) => copied,
        // Whoever read had enough, as `tcpdump -c` has.
        Err(Fault::File(error)) if piped && error.kind() == ErrorKind::BrokenPipe => return Ok(()),
        Err(fault) => return Err(fault.told(&path, &capture.out)),
    };
    let captured = Captured {
        file: capture.out.display().to_string(),
        packets,
        lost,
    };
    if piped {
        output.print_beside(&captured);
    } else {
        output.print(&captured);
    }
    Ok(())
}

/// Why copying ended before it was enough.
#[derive(Debug)]
enum Fault {
    /// The data plane ended, or says what is no packet.
    Socket(io::Error),
    /// What is copied cannot be written.
    File(io::Error),
}

impl Fault {
    fn told(self, socket: &Path, out: &Path) -> CliError {
        match self {
            Self::Socket(error) => CliError::new(
                "capture",
                format!("no more packets come from {}: {error}", socket.display()),
                "look at the log of topnet-dataplane; what is written so far can be read",
            ),
            Self::File(error) => CliError::new(
                "file",
                format!("{}: {error}", out.display()),
                "make room there, or write elsewhere",
            ),
        }
    }
}

/// When it is enough.
struct Limits {
    until: Option<Instant>,
    packets: u64,
}

/// A new file that nobody else may read, in the place of one that was there.
fn private(path: &Path) -> Result<File, CliError> {
    check_replaceable(path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(CliError::file(path, error));
        }
        _ => {}
    }
    let mut options = OpenOptions::new();
    let fresh = options.write(true).create_new(true).mode(0o600).open(path);
    fresh.map_err(|error| CliError::file(path, error))
}

/// Copies packets until it is enough; how many, and how many were lost.
fn copy(
    socket: &mut UnixStream,
    file: &mut impl Write,
    limits: &Limits,
) -> Result<(u64, u32), Fault> {
    socket
        .set_read_timeout(Some(LOOK_PERIOD))
        .map_err(Fault::Socket)?;
    let mut read = vec![0; READ_BYTES];
    let (mut waiting, mut packets) = (Vec::new(), 0);
    let mut closing: Option<Instant> = None;
    loop {
        let (whole, lost) =
            records(&waiting, &mut packets, limits.packets).map_err(Fault::Socket)?;
        // Whoever reads from a pipe wants them now.
        file.write_all(&waiting[whole.0])
            .and_then(|()| file.flush())
            .map_err(Fault::File)?;
        if let Some(lost) = lost {
            return Ok((packets, lost));
        }
        waiting.drain(..whole.1);
        let over = limits.until.is_some_and(|until| Instant::now() >= until);
        if closing.is_none() && (over || packets >= limits.packets) {
            // What is under way still comes, and behind it how much is missing.
            socket.shutdown(Shutdown::Write).map_err(Fault::Socket)?;
            closing = Some(Instant::now() + PATIENCE);
        }
        if closing.is_some_and(|until| Instant::now() >= until) {
            return Err(Fault::Socket(ErrorKind::TimedOut.into()));
        }
        match socket.read(&mut read) {
            Ok(0) => return Err(Fault::Socket(ErrorKind::UnexpectedEof.into())),
            Ok(bytes) => waiting.extend(&read[..bytes]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(Fault::Socket(error)),
        }
    }
}

/// A part of what waits that is to be written, and how much of it is done with.
type Whole = (std::ops::Range<usize>, usize);

/// Looks through whole records: what of them is to be written, and how many packets were lost if
/// that is said. Beyond `packets_max` they are left out.
fn records(
    waiting: &[u8],
    packets: &mut u64,
    packets_max: u64,
) -> io::Result<(Whole, Option<u32>)> {
    let (mut at, mut written) = (0, 0);
    while let Some((record, rest)) = waiting[at..].split_first_chunk::<PCAP_RECORD_BYTES>() {
        match CaptureRecord::from_bytes(*record).ok_or(ErrorKind::InvalidData)? {
            CaptureRecord::End { lost } => return Ok(((0..written, at), Some(lost))),
            CaptureRecord::Packet { bytes, .. } if rest.len() < bytes as usize => break,
            CaptureRecord::Packet { bytes, .. } => {
                at += PCAP_RECORD_BYTES + bytes as usize;
                if *packets < packets_max {
                    *packets += 1;
                    written = at;
                }
            }
        }
    }
    Ok(((0..written, at), None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn packet(bytes: u8) -> Vec<u8> {
        let record = CaptureRecord::Packet {
            at: Duration::from_secs(1),
            bytes: bytes.into(),
        };
        [&record.to_bytes()[..], &vec![bytes; bytes.into()]].concat()
    }

    /// What is written of these bytes, which come in pieces of any length.
    fn written(stream: &[u8], piece: usize, packets: u64) -> (Vec<u8>, Result<(u64, u32), Fault>) {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let stream = stream.to_vec();
        let sender = std::thread::spawn(move || {
            for piece in stream.chunks(piece) {
                theirs.write_all(piece).unwrap();
            }
        });
        let limits = Limits {
            until: None,
            packets,
        };
        let mut file = Vec::new();
        let copied = copy(&mut ours, &mut file, &limits);
        sender.join().unwrap();
        (file, copied)
    }

    #[test]
    fn whole_packets_are_written_and_no_more_than_were_wanted() {
        let packets = [packet(20), packet(60), packet(255)];
        let end = CaptureRecord::End { lost: 9 }.to_bytes();
        let stream = [&packets.concat()[..], &end].concat();
        for piece in [1, 7, 36, 1_000] {
            let (file, copied) = written(&stream, piece, u64::MAX);
            assert_eq!((file, copied.unwrap()), (packets.concat(), (3, 9)));
            let (file, copied) = written(&stream, piece, 2);
            assert_eq!((file, copied.unwrap()), (packets[..2].concat(), (2, 9)));
        }
        // The data plane ended in between.
        let (file, copied) = written(&stream[..50], 1_000, u64::MAX);
        assert_eq!(file, packets[0]);
        assert!(ended_by_socket(copied, ErrorKind::UnexpectedEof));
        let (_, copied) = written(&[0xff; 64], 1_000, u64::MAX);
        assert!(copied.is_ok_and(|(packets, lost)| (packets, lost) == (0, u32::MAX)));
        let (_, copied) = written(&[0x7f; 64], 1_000, u64::MAX);
        assert!(ended_by_socket(copied, ErrorKind::InvalidData));
    }

    fn ended_by_socket(copied: Result<(u64, u32), Fault>, kind: ErrorKind) -> bool {
        let fault = copied.unwrap_err();
        matches!(&fault, Fault::Socket(error) if error.kind() == kind)
            && fault
                .told(Path::new("its.sock"), Path::new("out.pcap"))
                .0
                .what
                .contains("its.sock")
    }

    #[test]
    fn a_full_disk_is_no_fault_of_the_data_plane() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&packet(20)).unwrap();
        let limits = Limits {
            until: None,
            packets: 1,
        };
        let mut full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let fault = copy(&mut ours, &mut full, &limits).unwrap_err();
        let told = fault.told(Path::new("its.sock"), Path::new("out.pcap")).0;
        assert!(told.what.starts_with("out.pcap: No space left"), "{told}");
    }

    #[test]
    fn the_file_is_its_owner_s_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capture.pcap");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        private(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn what_is_no_file_stays_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("null");
        symlink("/dev/null", &path).unwrap();
        let refused = private(&path).unwrap_err().0;
        assert!(refused.mend.contains("`-`"), "{refused}");
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    }
}
