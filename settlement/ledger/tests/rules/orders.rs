//! What accounts can order, on a service and on main.

use super::*;

#[test]
fn orders_of_accounts() {
    fn to_payee(amount: u64) -> Action {
        Action::Transfer {
            to: address(PAYEE),
            amount: ntop(amount),
        }
    }
    fn withdraw(amount: u64) -> Action {
        Action::Withdraw {
            amount: ntop(amount),
        }
    }
    let cases: &[Case] = &[
        ("transfer", |s| s.payer_orders(to_payee(1)), "ok"),
        (
            "transfer nothing",
            |s| s.payer_orders(to_payee(0)),
            "amount_zero",
        ),
        (
            "transfer all but the fee",
            |s| s.world.service.order(STRANGER, to_payee(9_998)),
            "ok",
        ),
        (
            "transfer more than that",
            |s| s.world.service.order(STRANGER, to_payee(9_999)),
            "balance_short",
        ),
        (
            "transfer more than there can be",
            |s| s.payer_orders(to_payee(u64::MAX)),
            "overflow",
        ),
        (
            "transfer out of nothing",
            |s| s.world.service.order(9, to_payee(1)),
            "balance_short",
        ),
        (
            "transfer to oneself",
            |s| {
                s.payer_orders(Action::Transfer {
                    to: address(PAYER),
                    amount: ntop(5),
                })
            },
            "ok",
        ),
        (
            "old nonce",
            |s| s.world.service.order_with(PAYER, 0, to_payee(1)),
            "nonce_behind",
        ),
        (
            "later nonce",
            |s| s.world.service.order_with(PAYER, 2, to_payee(1)),
            "nonce_ahead",
        ),
        (
            "last nonce",
            |s| s.world.service.order_with(PAYER, u64::MAX, to_payee(1)),
            "nonce_ahead",
        ),
        (
            "transfer on another chain",
            |s| Transaction {
                chain: s.world.main.id(),
                ..s.payer_orders(to_payee(1))
            },
            "other_chain",
        ),
        (
            "fund on a service",
            |s| {
                let (service, beneficiary) = (s.world.service.id(), address(PAYER));
                s.payer_orders(Action::Fund {
                    service,
                    amount: ntop(1),
                    beneficiary,
                })
            },
            "other_kind_of_chain",
        ),
        ("withdraw", |s| s.payer_orders(withdraw(51)), "ok"),
        (
            "withdraw nothing",
            |s| s.payer_orders(withdraw(0)),
            "amount_zero",
        ),
        ("withdraw dust", |s| s.payer_orders(withdraw(50)), "dust"),
        (
            "withdraw all but the fee",
            |s| s.world.service.order(STRANGER, withdraw(9_996)),
            "ok",
        ),
        (
            "withdraw more than that",
            |s| s.world.service.order(STRANGER, withdraw(9_997)),
            "balance_short",
        ),
        (
            "withdraw more than there can be",
            |s| s.payer_orders(withdraw(u64::MAX)),
            "balance_short",
        ),
    ];
    check(&Stage::new(), cases);
}

#[test]
fn orders_on_main() {
    fn fund(service: Hash, amount: u64) -> Action {
        Action::Fund {
            service,
            amount: ntop(amount),
            beneficiary: address(STRANGER),
        }
    }
    let stage = Stage::new();
    let (main, service) = (&stage.world.main, stage.world.service.id());
    let open = Action::Open(stage.world.service.terms(PAYEE, PAYER, ALLOCATION));
    // The payer has 10,000,000 less 5,000,000 and the fee of 3.
    let cases = [
        ("fund", fund(service, 100), "ok"),
        ("fund nothing", fund(service, 0), "fund_small"),
        ("fund too little", fund(service, 99), "fund_small"),
        ("fund all but the fee", fund(service, 4_999_994), "ok"),
        (
            "fund more than that",
            fund(service, 4_999_995),
            "balance_short",
        ),
        ("fund nobody", fund(Hash([1; 32]), 100), "service_unknown"),
        ("fund main", fund(main.id(), 100), "service_unknown"),
        (
            "withdraw on main",
            Action::Withdraw { amount: ntop(100) },
            "other_kind_of_chain",
        ),
        ("open on main", open, "other_kind_of_chain"),
    ];
    for (name, action, code) in cases {
        assert_eq!(main.code(&main.order(PAYER, action)), code, "{name}");
    }
    let bodies = [
        Body::Expire(stage.channel),
        stage
            .world
            .service
            .close_by_payer(PAYER, stage.channel)
            .body,
        stage
            .world
            .credit()
            .map_or(Body::Expire(stage.channel), |credit| credit.body),
    ];
    for body in bodies {
        let transaction = Transaction {
            chain: main.id(),
            body,
        };
        assert_eq!(
            main.code(&transaction),
            "other_kind_of_chain",
            "{transaction:?}"
        );
    }
}
