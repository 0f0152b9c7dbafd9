//! The bare cipher: what one core could do if there were nothing but WireGuard's sealing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::{GATEWAY_CPU, PACKET_BYTES, gbit};
use crate::cpus::pin;
use crate::lane::{Measurement, process_cpu_s};

const ROUND: Duration = Duration::from_millis(400);
/// Packets between two looks at the clock.
const BATCH: u64 = 256;

/// Seals packets on the gateway's CPU.
pub fn measure() -> Result<Measurement> {
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            pin(GATEWAY_CPU)?;
            seal()
        });
        work.join().map_err(|_| anyhow!("sealing panicked"))?
    })
}

fn seal() -> Result<Measurement> {
    let no = |_| anyhow!("the cipher refuses");
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).map_err(no)?);
    let mut packet = vec![0x5a; PACKET_BYTES];
    let (cpu, began) = (process_cpu_s(), Instant::now());
    let mut packets = 0_u64;
    while began.elapsed() < ROUND {
        for _ in 0..BATCH {
            let mut nonce = [0; NONCE_LEN];
            nonce[4..].copy_from_slice(&packets.to_le_bytes());
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut packet);
            let _ = std::hint::black_box(tag.map_err(no)?);
            packets += 1;
        }
    }
    let value = gbit(packets) / began.elapsed().as_secs_f64();
    Ok(Measurement::new(value, packets, process_cpu_s() - cpu))
}
