//! Worlds that every test run goes through; `cargo xtask sim` goes through more.
#![allow(clippy::unwrap_used)]

use topnet_sim::{Coverage, Settings, run};

const CHAOS: Settings = Settings {
    datagram_chaos: true,
    trace: false,
};

fn run_all(seeds: std::ops::Range<u64>, settings: Settings) -> Coverage {
    let mut coverage = Coverage::default();
    for seed in seeds {
        match run(seed, settings) {
            Ok(outcome) => coverage.add(outcome.coverage),
            Err(failure) => {
                let chaos = if settings.datagram_chaos {
                    " --datagram-chaos"
                } else {
                    ""
                };
                panic!("{failure}\ncargo xtask sim --seed {seed}{chaos} --trace")
            }
        }
    }
    coverage
}

#[test]
fn every_unit_is_accounted_for_in_every_seeded_world() {
    let coverage = run_all(0..300, Settings::default());
    for (name, times) in coverage.counts() {
        assert!(times > 0, "no world has {name}: {coverage:?}");
    }
}

#[test]
fn loss_repetition_and_reordering_change_nothing_in_the_end() {
    run_all(0..100, CHAOS);
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_another() {
    for settings in [Settings::default(), CHAOS] {
        let hashes = || (0..20).map(move |seed| run(seed, settings).unwrap().hash);
        assert!(hashes().eq(hashes()));
        let mut sorted: Vec<u64> = hashes().collect();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 20);
    }
}
