//! One target of `topnet-fuzz` under libFuzzer, whose options are this program's arguments.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use topnet_fuzz::{Target, target};

/// Names the target.
const VARIABLE: &str = "TOPNET_FUZZ_TARGET";

static CHOSEN: OnceLock<Target> = OnceLock::new();

fn choose() -> Target {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    let Some(target) = target(&name) else {
        eprintln!("{VARIABLE} is `{name}`, which is no target; see tests/fuzz/src/lib.rs");
        std::process::exit(2);
    };
    target
}

fuzz_target!(|bytes: &[u8]| CHOSEN.get_or_init(choose)(bytes));
