//! How the pool of public addresses begins, with what the last run left, and how it is left.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use topnet_config::{Dataplane, Nat};
use topnet_nat::{BlockEventKind, PoolPart};

use crate::error::RunError;
use crate::io::monotonic_ns;
use crate::nat_log::{Holder, NatLog};
use crate::nat_state::{self, Place};
use crate::plane::Plane;
use crate::run::random;
use crate::service::Shared;
use crate::session::WorkerNumber;
use crate::translation::{FirstFragments, Translation};

/// The pool in parts, one for each worker, and its log.
#[derive(Default)]
pub(crate) struct Pool {
    /// None at all if clients share no addresses.
    pub(crate) parts: Vec<Translation>,
    pub(crate) log: Option<NatLog>,
    /// Which worker has what a client of the last run had, by the client's key.
    pub(crate) awaited: HashMap<[u8; 32], WorkerNumber>,
}

/// The pool and its log, if clients share addresses. What the last run had lent is lent still; the
/// log says so anew, since its first line ends all that was before.
pub(crate) fn begin_pool(
    section: &Dataplane,
    workers: u32,
    runtime_dir: &Path,
) -> Result<Pool, RunError> {
    let Some(nat) = &section.nat else {
        return Ok(Pool::default());
    };
    let path = &nat.log_file;
    let opened = NatLog::open(path, section.inner_subnet.network());
    let mut log = opened.map_err(|source| RunError::NatLog {
        path: path.clone(),
        source,
    })?;
    let mut pool = Pool::default();
    let firsts = Arc::<FirstFragments>::default();
    for number in 0..workers {
        let part = PoolPart {
            number,
            of: workers,
        };
        let seed = random("draw a seed")?;
        let clients_max = section.clients_max();
        let translation = match restored(section, nat, part, runtime_dir, seed) {
            Some(translation) => translation,
            None => Translation::new(nat, clients_max, part, seed).map_err(RunError::Nat)?,
        };
        for (event, holder) in translation.restored_blocks() {
            log.record(&event, holder, Duration::ZERO);
        }
        let keys = translation.awaited().map(|had| had.wireguard_public_key);
        let awaited = keys.map(|key| (key, WorkerNumber(number)));
        pool.awaited.extend(awaited);
        pool.parts
            .push(translation.with_firsts(Arc::clone(&firsts)));
    }
    if let Err(error) = nat_state::forget(runtime_dir) {
        tracing::warn!(%error, "what is left of older runs' NAT cannot be removed");
    }
    pool.log = Some(log);
    Ok(pool)
}

/// A part as the last run left it. Without it flows begin anew, which is what is said then.
fn restored(
    section: &Dataplane,
    nat: &Nat,
    part: PoolPart,
    runtime_dir: &Path,
    seed: [u8; 32],
) -> Option<Translation> {
    let now_ms = monotonic_ns() / 1_000_000;
    let begin_anew = |reason: String| {
        tracing::warn!(
            reason,
            "the NAT's state of the last run is of no use: flows begin anew"
        );
    };
    let place = place(section, nat, part).map_err(|error| begin_anew(error.to_string()));
    let state = nat_state::take(runtime_dir, &place.ok()?, now_ms);
    let state = state
        .map_err(|error| begin_anew(error.to_string()))
        .ok()??;
    let clients = state.holders.len();
    let restored = Translation::restore(nat, section.clients_max(), part, seed, now_ms, state);
    let translation = restored
        .map_err(|error| begin_anew(error.to_string()))
        .ok()?;
    tracing::info!(clients, "the NAT goes on with what the last run had lent");
    Some(translation)
}

/// Leaves what is lent to the next run, and tells the log what was not told yet.
pub(crate) fn leave_pool(
    section: &Dataplane,
    runtime_dir: &Path,
    shared: &Shared,
    planes: &mut [Plane],
) {
    let Some(nat) = &section.nat else {
        return;
    };
    let of = planes.len() as u32;
    for (number, plane) in (0..).zip(planes) {
        while let Some(event) = plane.take_block_event() {
            let holder = match event.kind {
                BlockEventKind::Allocated => plane.holder(event.subscriber).map(Holder::of),
                BlockEventKind::Released => None,
            };
            shared.note_block(&event, holder);
        }
        let Some(state) = plane.nat_state(monotonic_ns() / 1_000_000) else {
            continue;
        };
        let place = place(section, nat, PoolPart { number, of });
        let written = place.and_then(|it| nat_state::write(runtime_dir, &it, &state));
        if let Err(error) = written {
            tracing::warn!(%error, "the NAT's state is not kept: flows begin anew at the next start");
        }
    }
}

fn place(section: &Dataplane, nat: &Nat, part: PoolPart) -> io::Result<Place> {
    let clients_max = section.clients_max();
    let config = nat.translation(clients_max).map_err(io::Error::other)?;
    let config = config.with_part(part);
    Place::new(
        section.inner_subnet,
        clients_max,
        part,
        config.snapshot_bytes_max(),
    )
}
