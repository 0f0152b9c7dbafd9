//! What the pool has lent, kept from an orderly end to the next start.
//!
//! A file in the runtime directory for each worker's part of the pool, for this user alone. Little endian: magic, version, the
//! kernel's boot id, the monotonic milliseconds of the end, the inner subnet; the number of clients
//! that have something and each one's host number, key and channel; the NAT's own snapshot; SHA-256
//! of all that. It is taken once: a run that dies leaves none, and nobody's flows come back from
//! one that is older than the last run. A file that is not exactly what this version writes, here
//! and since the last boot, costs the flows and nothing else.
//!
//! A client has its flows again only with the key and the channel that it had
//! ([`Translation`](crate::translation::Translation) sees to that).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use topnet_account::ChannelId;
use topnet_config::Ipv4Subnet;
use topnet_nat::PoolPart;

use crate::files::replace_private;
use crate::nat_log::Holder;

/// Name of the file in the runtime directory; with several parts, how it begins.
const FILE: &str = "nat-state";
const MAGIC: [u8; 8] = *b"topnet-n";
const VERSION: u16 = 1;
/// As the kernel writes it, without its newline.
const BOOT_ID_BYTES: usize = 36;
const HEAD_BYTES: u64 = 8 + 2 + BOOT_ID_BYTES as u64 + 8 + 5 + 4;
const CLIENT_BYTES: u64 = 4 + 32 + 32;

/// What one run leaves to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatState {
    /// When it ended, by the monotonic clock.
    pub ended_ms: u64,
    /// Who had the host numbers that have something.
    pub holders: BTreeMap<u32, Holder>,
    /// What they have.
    pub snapshot: Vec<u8>,
}

/// What a state must fit to, to be this machine's.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Host numbers start there.
    pub inner: Ipv4Subnet,
    /// Clients that there may be.
    pub clients_max: u32,
    /// Whose state it is.
    pub part: PoolPart,
    /// The longest snapshot that the tables can have written.
    pub snapshot_bytes_max: u64,
    /// Tells whether the monotonic clock is still the same one.
    boot_id: [u8; BOOT_ID_BYTES],
}

/// Why there is no state to go on with.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// Somebody else's file, or no file.
    #[error("it is no file of this user's")]
    Foreign,
    /// It cannot be what was written.
    #[error("it is damaged")]
    Damaged,
    /// Written by another version.
    #[error("it has version {0}, not {VERSION}")]
    Version(u16),
    /// From before the machine was started, or from a time to come.
    #[error("it is from another boot of this machine")]
    OtherBoot,
    /// Host numbers were other addresses then.
    #[error("it was written with another inner_subnet")]
    OtherSubnet,
}

impl Place {
    /// The place of a configuration on the running kernel.
    pub fn new(
        inner: Ipv4Subnet,
        clients_max: u32,
        part: PoolPart,
        snapshot_bytes_max: u64,
    ) -> io::Result<Self> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let boot_id = text.trim_end().as_bytes().try_into();
        Ok(Self {
            inner,
            clients_max,
            part,
            snapshot_bytes_max,
            boot_id: boot_id.map_err(|_| io::ErrorKind::InvalidData)?,
        })
    }

    fn file(&self, runtime_dir: &Path) -> PathBuf {
        let PoolPart { number, of } = self.part;
        runtime_dir.join(match self.part {
            PoolPart::WHOLE => FILE.to_owned(),
            _ => format!("{FILE}-{number}-of-{of}"),
        })
    }

    fn bytes_max(&self) -> u64 {
        HEAD_BYTES
            + u64::from(self.clients_max) * CLIENT_BYTES
            + self.snapshot_bytes_max
            + SHA256_OUTPUT_LEN as u64
    }
}

/// Leaves a state to the next run. A reader sees all of it or none.
pub fn write(runtime_dir: &Path, place: &Place, state: &NatState) -> io::Result<()> {
    replace_private(&place.file(runtime_dir), &encode(place, state))
}

/// Removes what nobody has taken: it is of a run before the last one, or of one with other parts.
pub fn forget(runtime_dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(runtime_dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(FILE) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Takes the state that the last run left, if it left one. The file is gone afterwards, whatever
/// it was.
pub fn take(
    runtime_dir: &Path,
    place: &Place,
    now_ms: u64,
) -> Result<Option<NatState>, StateError> {
    let path = place.file(runtime_dir);
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(&path);
    let mut file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let read = read(&mut file, place.bytes_max());
    fs::remove_file(&path)?;
    decode(place, &read?, now_ms).map(Some)
}

fn read(file: &mut File, bytes_max: u64) -> Result<Vec<u8>, StateError> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(StateError::Foreign);
    }
    if metadata.len() > bytes_max {
        return Err(StateError::Damaged);
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Stands for the operator's own peers; no channel is named by zeros.
const NO_CHANNEL: [u8; 32] = [0; 32];

fn encode(place: &Place, state: &NatState) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&place.boot_id);
    bytes.extend_from_slice(&state.ended_ms.to_le_bytes());
    bytes.extend_from_slice(&place.inner.network().to_bits().to_le_bytes());
    bytes.push(place.inner.prefix_bits());
    bytes.extend_from_slice(&(state.holders.len() as u32).to_le_bytes());
    for (host, holder) in &state.holders {
        bytes.extend_from_slice(&host.to_le_bytes());
        bytes.extend_from_slice(&holder.wireguard_public_key);
        bytes.extend_from_slice(&holder.channel.map_or(NO_CHANNEL, |channel| channel.0));
    }
    bytes.extend_from_slice(&state.snapshot);
    let sum = digest(&SHA256, &bytes);
    bytes.extend_from_slice(sum.as_ref());
    bytes
}

fn decode(place: &Place, bytes: &[u8], now_ms: u64) -> Result<NatState, StateError> {
    let (bytes, sum) = bytes
        .split_last_chunk::<SHA256_OUTPUT_LEN>()
        .ok_or(StateError::Damaged)?;
    if digest(&SHA256, bytes).as_ref() != sum {
        return Err(StateError::Damaged);
    }
    let mut rest = bytes;
    if take_front(&mut rest)? != MAGIC {
        return Err(StateError::Damaged);
    }
    match u16::from_le_bytes(take_front(&mut rest)?) {
        VERSION => {}
        version => return Err(StateError::Version(version)),
    }
    let boot_id: [u8; BOOT_ID_BYTES] = take_front(&mut rest)?;
    let ended_ms = u64::from_le_bytes(take_front(&mut rest)?);
    if boot_id != place.boot_id || ended_ms > now_ms {
        return Err(StateError::OtherBoot);
    }
    let network = Ipv4Addr::from_bits(u32::from_le_bytes(take_front(&mut rest)?));
    let [prefix_bits] = take_front(&mut rest)?;
    if (network, prefix_bits) != (place.inner.network(), place.inner.prefix_bits()) {
        return Err(StateError::OtherSubnet);
    }
    let clients = u32::from_le_bytes(take_front(&mut rest)?);
    let mut holders = BTreeMap::new();
    for _ in 0..clients {
        let host = u32::from_le_bytes(take_front(&mut rest)?);
        let holder = Holder {
            wireguard_public_key: take_front(&mut rest)?,
            channel: Some(take_front(&mut rest)?)
                .filter(|channel| *channel != NO_CHANNEL)
                .map(ChannelId),
        };
        holders.insert(host, holder);
    }
    Ok(NatState {
        ended_ms,
        holders,
        snapshot: rest.to_vec(),
    })
}

fn take_front<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], StateError> {
    let (taken, after) = rest.split_first_chunk::<N>().ok_or(StateError::Damaged)?;
    *rest = after;
    Ok(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn place() -> Place {
        let inner = "10.78.0.0/24".parse().unwrap();
        Place::new(inner, 4, PoolPart::WHOLE, 100).unwrap()
    }

    fn state() -> NatState {
        let holder = |number: u8| Holder {
            channel: (number > 0).then_some(ChannelId([number; 32])),
            wireguard_public_key: [number + 100; 32],
        };
        NatState {
            ended_ms: 7000,
            holders: [(2, holder(2)), (9, holder(9))].into(),
            snapshot: vec![5; 60],
        }
    }

    #[test]
    fn each_part_has_its_own_and_what_nobody_took_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let part = |number, of| Place {
            part: PoolPart { number, of },
            ..place()
        };
        let at = |ended_ms| NatState {
            ended_ms,
            ..state()
        };
        write(dir.path(), &part(0, 2), &at(1)).unwrap();
        write(dir.path(), &part(1, 2), &at(2)).unwrap();
        write(dir.path(), &part(1, 3), &at(3)).unwrap();
        write(dir.path(), &place(), &at(4)).unwrap();
        let taken = |place: &Place| take(dir.path(), place, 7000).unwrap();
        assert_eq!(taken(&part(0, 2)), Some(at(1)));
        assert_eq!(taken(&part(1, 2)), Some(at(2)));
        forget(dir.path()).unwrap();
        assert_eq!((taken(&part(1, 3)), taken(&place())), (None, None));
    }

    #[test]
    fn what_was_written_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(take(dir.path(), &place(), 7000), Ok(None)));
        // A torn one of a run that died is in nobody's way.
        fs::write(dir.path().join("nat-state.new"), "torn").unwrap();
        write(dir.path(), &place(), &state()).unwrap();
        let mode = fs::metadata(dir.path().join(FILE))
            .unwrap()
            .permissions()
            .mode();
        // Who talks to whom is nobody else's business.
        assert_eq!(mode & 0o777, 0o600);
        let taken = take(dir.path(), &place(), 7000).unwrap();
        assert_eq!(taken, Some(state()));
        assert!(matches!(take(dir.path(), &place(), 7000), Ok(None)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn every_damage_and_every_other_place_is_refused_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let good = encode(&place(), &state());
        let refused = |bytes: &[u8], place: &Place, now_ms| {
            fs::write(&path, bytes).unwrap();
            let error = take(dir.path(), place, now_ms).unwrap_err();
            assert!(!path.exists());
            error
        };
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            assert!(
                matches!(refused(&bytes, &place(), 7000), StateError::Damaged),
                "{at}"
            );
            let cut = refused(&good[..at], &place(), 7000);
            assert!(matches!(cut, StateError::Damaged), "cut at {at}");
        }
        let sealed = |at: usize, byte: u8| {
            let mut bytes = good[..good.len() - SHA256_OUTPUT_LEN].to_vec();
            bytes[at] = byte;
            let sum = digest(&SHA256, &bytes);
            bytes.extend_from_slice(sum.as_ref());
            bytes
        };
        assert!(matches!(
            refused(&sealed(8, 2), &place(), 7000),
            StateError::Version(2)
        ));
        // More clients than it has bytes for.
        assert!(matches!(
            refused(&sealed(59, 40), &place(), 7000),
            StateError::Damaged
        ));
        assert!(matches!(
            refused(&good, &place(), 6999),
            StateError::OtherBoot
        ));
        let booted = Place {
            boot_id: [b'x'; BOOT_ID_BYTES],
            ..place()
        };
        assert!(matches!(
            refused(&good, &booted, 7000),
            StateError::OtherBoot
        ));
        let moved = Place {
            inner: "10.79.0.0/24".parse().unwrap(),
            ..place()
        };
        assert!(matches!(
            refused(&good, &moved, 7000),
            StateError::OtherSubnet
        ));
        let small = Place {
            clients_max: 0,
            snapshot_bytes_max: 1,
            ..place()
        };
        assert!(matches!(refused(&good, &small, 7000), StateError::Damaged));
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(take(dir.path(), &place(), 7000).is_err());
    }
}
