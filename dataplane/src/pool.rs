//! How the pool of public addresses begins, with what the last run left, and how it is left.

use std::io;
use std::path::Path;
use std::time::Duration;

use topnet_config::{Dataplane, Nat};
use topnet_nat::BlockEventKind;

use crate::error::RunError;
use crate::io::monotonic_ns;
use crate::nat_log::{Holder, NatLog};
use crate::nat_state::{self, Place};
use crate::plane::Plane;
use crate::service::Shared;
use crate::translation::Translation;

/// The pool and its log, if clients share addresses. What the last run had lent is lent still; the
/// log says so anew, since its first line ends all that was before.
pub(crate) fn begin_pool(
    section: &Dataplane,
    runtime_dir: &Path,
    seed: [u8; 32],
) -> Result<(Option<Translation>, Option<NatLog>), RunError> {
    let Some(nat) = &section.nat else {
        return Ok((None, None));
    };
    let path = &nat.log_file;
    let opened = NatLog::open(path, section.inner_subnet.network());
    let mut log = opened.map_err(|source| RunError::NatLog {
        path: path.clone(),
        source,
    })?;
    let translation = match restored(section, nat, runtime_dir, seed) {
        Some(translation) => translation,
        None => Translation::new(nat, section.clients_max(), seed).map_err(RunError::Nat)?,
    };
    for (event, holder) in translation.restored_blocks() {
        log.record(&event, holder, Duration::ZERO);
    }
    Ok((Some(translation), Some(log)))
}

/// The pool as the last run left it. Without it flows begin anew, which is what is said then.
fn restored(
    section: &Dataplane,
    nat: &Nat,
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
    let place = place(section, nat).map_err(|error| begin_anew(error.to_string()));
    let state = nat_state::take(runtime_dir, &place.ok()?, now_ms);
    let state = state
        .map_err(|error| begin_anew(error.to_string()))
        .ok()??;
    let clients = state.holders.len();
    let restored = Translation::restore(nat, section.clients_max(), seed, now_ms, state);
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
    plane: &mut Plane,
) {
    let Some(nat) = &section.nat else {
        return;
    };
    while let Some(event) = plane.take_block_event() {
        let holder = match event.kind {
            BlockEventKind::Allocated => plane.holder(event.subscriber).map(Holder::of),
            BlockEventKind::Released => None,
        };
        shared.note_block(&event, holder);
    }
    let Some(state) = plane.nat_state(monotonic_ns() / 1_000_000) else {
        return;
    };
    let written = place(section, nat).and_then(|it| nat_state::write(runtime_dir, &it, &state));
    if let Err(error) = written {
        tracing::warn!(%error, "the NAT's state is not kept: flows begin anew at the next start");
    }
}

fn place(section: &Dataplane, nat: &Nat) -> io::Result<Place> {
    let clients_max = section.clients_max();
    let config = nat.translation(clients_max).map_err(io::Error::other)?;
    Place::new(
        section.inner_subnet,
        clients_max,
        config.snapshot_bytes_max(),
    )
}
