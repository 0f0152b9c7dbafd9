//! What a chain can start from, written as people write it.
#![allow(clippy::unwrap_used)]

mod support;

use support::{World, main_genesis, ntop, rules, secret, service_genesis};
use topnet_account::Hash;
use topnet_ledger::{
    Genesis, Ledger,
    genesis::{BATCH_PAYOUTS_MAX, Counterpart, Fees, Role, Rules},
};

use crate::support::RingVerifier;

fn main() -> Genesis {
    main_genesis(&rules(), &[(1, 100)])
}

fn service() -> Genesis {
    service_genesis(&rules(), "vpn", main().counterpart())
}

#[test]
fn json_and_toml_round_trip() {
    let world = World::new(&rules(), &[(1, 100), (2, 200)]);
    for genesis in [
        world.main.ledger.description(),
        world.service.ledger.description(),
    ] {
        let json = serde_json::to_string(genesis).unwrap();
        assert_eq!(serde_json::from_str::<Genesis>(&json).unwrap(), *genesis);
        let text = toml::to_string(genesis).unwrap();
        assert_eq!(
            toml::from_str::<Genesis>(&text).unwrap(),
            *genesis,
            "{text}"
        );
    }
}

#[test]
fn what_is_left_out_has_a_default_and_a_slip_is_named() {
    let text = r#"
        name = "main"
        salt = "0x5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a"
        block_interval_ms = 100
        epoch_blocks = 50
        validators = ["0x1111111111111111111111111111111111111111111111111111111111111111"]
        [role.main]
        [rules]
        dust = "7"
        [rules.fees]
        claim = "0.00001TOP"
    "#;
    let genesis: Genesis = toml::from_str(text).unwrap();
    genesis.validate().unwrap();
    let fees = Fees {
        claim: ntop(10_000),
        ..Fees::default()
    };
    assert_eq!(
        genesis.rules,
        Rules {
            dust: ntop(7),
            fees,
            ..Rules::default()
        }
    );
    assert_eq!(
        genesis.role,
        Role::Main {
            services: Vec::new()
        }
    );

    let slipped = text.replace("dust", "dusk");
    let error = toml::from_str::<Genesis>(&slipped).unwrap_err().to_string();
    assert!(error.contains("dusk"), "{error}");
    // Without a salt of its own a chain would share its id with another one.
    let unsalted = text.replace("salt =", "# salt =");
    let error = toml::from_str::<Genesis>(&unsalted)
        .unwrap_err()
        .to_string();
    assert!(error.contains("salt"), "{error}");
}

#[test]
fn every_field_is_in_the_id() {
    let changes: &[fn(&mut Genesis)] = &[
        |g| g.name.push('2'),
        |g| g.salt.0[31] ^= 1,
        |g| g.block_interval_ms += 1,
        |g| g.epoch_blocks += 1,
        |g| g.validators[0] = secret(9).public_key(),
        |g| g.rules.dust = ntop(51),
        |g| g.rules.fund_min = ntop(1),
        |g| g.rules.allocation_min = ntop(1),
        |g| g.rules.claim_payout_min = ntop(15_001),
        |g| g.rules.close_window_min += 1,
        |g| g.rules.close_window_max += 1,
        |g| g.rules.batch_payouts_max += 1,
        |g| g.rules.fees.transfer = ntop(99),
        |g| g.rules.fees.fund = ntop(99),
        |g| g.rules.fees.withdraw = ntop(99),
        |g| g.rules.fees.open = ntop(99),
        |g| g.rules.fees.top_up = ntop(99),
        |g| g.rules.fees.claim = ntop(99),
        |g| g.rules.fees.claim_per_hash = ntop(99),
        |g| g.rules.fees.close = ntop(99),
        |g| g.rules.fees.finalise = ntop(99),
        |g| g.rules.fees.register = ntop(99),
        |g| g.rules.fees.recover = ntop(99),
        |g| g.rules.outflow_max = ntop(99),
        |g| g.rules.service_deposit = ntop(99),
        |g| g.rules.service_silence += 1,
        |g| g.rules.recovery_window += 1,
        |g| main_of(g).name.push('2'),
        |g| main_of(g).genesis = Hash::ZERO,
        |g| main_of(g).validators[0] = secret(9).public_key(),
        |g| {
            g.role = Role::Main {
                services: Vec::new(),
            }
        },
    ];
    let mut ids = vec![service().hash()];
    for (place, change) in changes.iter().enumerate() {
        let mut changed = service();
        change(&mut changed);
        assert!(!ids.contains(&changed.hash()), "change {place}");
        ids.push(changed.hash());
    }
    let richer = main_genesis(&rules(), &[(1, 101)]);
    assert_ne!(richer.hash(), main().hash());
}

fn main_of(genesis: &mut Genesis) -> &mut Counterpart {
    match &mut genesis.role {
        Role::Service { main } => main,
        Role::Main { .. } => panic!("not a service"),
    }
}

#[test]
fn no_chain_starts_from_nonsense() {
    fn with_services(genesis: &mut Genesis, services: &[Counterpart]) {
        genesis.role = Role::Main {
            services: services.to_vec(),
        };
    }
    type Change = fn(&mut Genesis);
    let of_main: &[(Change, &str)] = &[
        (|g| g.name.clear(), "name"),
        (|g| g.name = "x".repeat(33), "name"),
        (|g| g.name = "Main".to_owned(), "name"),
        (|g| g.block_interval_ms = 0, "block_interval_ms"),
        (|g| g.epoch_blocks = 0, "epoch_blocks"),
        (|g| g.validators.clear(), "validators"),
        (|g| g.validators.push(g.validators[0]), "validators"),
        (|g| g.rules.fees.claim = ntop(u64::MAX), "rules.fees"),
        (
            |g| g.rules.fees.claim_per_hash = ntop(u64::MAX / 2),
            "rules.fees",
        ),
        (|g| g.rules.fees.close = ntop(u64::MAX), "rules.fees"),
        // 45 and 256 hashes: one nTOP more than a fiftieth.
        (|g| g.rules.fees.claim = ntop(45), "rules.claim_payout_min"),
        (
            |g| g.rules.claim_payout_min = ntop(50 * 266 - 1),
            "rules.claim_payout_min",
        ),
        (|g| g.rules.allocation_min = ntop(0), "rules"),
        (|g| g.rules.fund_min = ntop(0), "rules"),
        (|g| g.rules.outflow_max = ntop(0), "rules"),
        (|g| g.rules.service_silence = 0, "rules"),
        (|g| g.rules.recovery_window = 0, "rules"),
        (|g| g.rules.close_window_min = 0, "rules.close_window_min"),
        (|g| g.rules.close_window_min = 101, "rules.close_window_min"),
        (|g| g.rules.batch_payouts_max = 0, "rules.batch_payouts_max"),
        (
            |g| g.rules.batch_payouts_max = BATCH_PAYOUTS_MAX + 1,
            "rules.batch_payouts_max",
        ),
        (
            |g| g.balances.extend([(secret(2).address(), ntop(u64::MAX))]),
            "balances",
        ),
        (
            |g| with_services(g, &[service().counterpart(), service().counterpart()]),
            "role.main.services",
        ),
        (
            |g| {
                with_services(
                    g,
                    &[Counterpart {
                        genesis: g.hash(),
                        ..service().counterpart()
                    }],
                )
            },
            "role.main.services",
        ),
        (
            |g| {
                let service = Counterpart {
                    validators: Vec::new(),
                    ..service().counterpart()
                };
                with_services(g, &[service]);
            },
            "role.main.services",
        ),
    ];
    let of_service: &[(Change, &str)] = &[
        (|g| main_of(g).validators.clear(), "role.service.main"),
        (|g| main_of(g).name.clear(), "role.service.main"),
        (
            |g| g.balances.extend([(secret(1).address(), ntop(1))]),
            "balances",
        ),
    ];
    let cases = of_main
        .iter()
        .map(|case| (main(), case))
        .chain(of_service.iter().map(|case| (service(), case)));
    for (mut genesis, (change, field)) in cases {
        genesis.validate().unwrap();
        change(&mut genesis);
        let error = genesis.validate().unwrap_err();
        assert_eq!(error.field, *field);
        assert!(error.to_string().contains(field));
        assert!(Ledger::new(genesis, RingVerifier).is_err());
    }
}
