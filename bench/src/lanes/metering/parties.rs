//! Who takes part: channels, keys and terms, the same in every process of a case.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest as _, Sha256};
use topnet_account::{Address, Amount, ChannelId};
use topnet_api::{Assignment, Assignments, ChainName, ChannelState, ChannelView, SlotState};
use topnet_books::{Tips, facts::Served};
use topnet_channel::{Offer, PROTOCOL_VERSION, SecretKey};
use topnet_unit::{BootId, Slot};

/// Name of the model data plane's only run.
pub const BOOT: BootId = BootId([7; 16]);
/// Whom every channel pays.
pub const PAYEE: Address = Address([5; 32]);
/// How far a payer pays ahead, in units: what a wallet does when nobody says otherwise.
pub const WINDOW: u64 = 64;
/// Enough for any run.
pub const ALLOCATION: Amount = Amount::from_ntop(1 << 50);
const UNIT_PRICE: Amount = Amount::from_ntop(25);
/// Long enough for the chains' headers never to be too old.
const CLOSE_WINDOW_BLOCKS: u64 = 1_000_000;
const BLOCK_INTERVAL_MS: u64 = 100;

/// The channel with this number.
pub fn channel(number: u32) -> ChannelId {
    ChannelId(name(b"channel", number))
}

/// Who signs its vouchers.
pub fn signer(number: u32) -> Result<SecretKey> {
    Ok(SecretKey::from_seed(name(b"signer", number))?)
}

/// The key of the payment port.
pub fn identity() -> Result<SecretKey> {
    Ok(SecretKey::from_seed(name(b"payee", 0))?)
}

fn name(what: &[u8], number: u32) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(what);
    digest.update(number.to_le_bytes());
    digest.finalize().into()
}

/// The slot of the channel with this number; slot 0 is never used.
pub fn slot(number: u32) -> Slot {
    Slot {
        index: number + 1,
        generation: 1,
    }
}

/// What is asked of every payer.
pub fn offer() -> Offer {
    Offer {
        version: PROTOCOL_VERSION,
        unit_price: UNIT_PRICE,
        epsilon_ppm: 5_000,
        window_max: WINDOW,
    }
}

/// What the provider serves.
pub fn served() -> Served {
    Served {
        service: ChainName::vpn(),
        payee: Some(PAYEE),
        close_window_blocks_min: 1,
        write_off_units_max: 0,
    }
}

/// What the chain would say of a channel.
pub fn view(number: u32) -> Result<ChannelView> {
    let signer = signer(number)?;
    Ok(ChannelView {
        id: channel(number),
        chain: ChainName::vpn(),
        payer: signer.address(),
        payee: PAYEE,
        signer: signer.public_key(),
        allocation: ALLOCATION,
        backed: ALLOCATION,
        paid: Amount::ZERO,
        close_window: CLOSE_WINDOW_BLOCKS,
        expiry: u64::MAX,
        state: ChannelState::Open,
    })
}

/// What the data plane would say: every channel has its slot.
pub fn assignments(channels: u32) -> Assignments {
    let assigned = |number| Assignment {
        channel: channel(number),
        slot: slot(number).index,
        generation: slot(number).generation,
        base_bytes: 0,
        state: SlotState::Live,
    };
    Assignments {
        boot: BOOT.to_string(),
        slots: (0..channels).map(assigned).collect(),
    }
}

/// The newest headers are of now.
pub fn tips() -> Tips {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now_ms = since.unwrap_or_default().as_millis() as u64;
    Tips {
        service_height: 1,
        service_time_ms: now_ms,
        main_time_ms: now_ms,
        block_interval_ms: BLOCK_INTERVAL_MS,
    }
}

/// Nanoseconds on the clock that all processes of a machine share.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither is negative on this clock.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
