//! The design's worked example: fund 100, open 60, claim 10 with fee 0.2, the payee closes, the
//! epoch's batch goes to main.
#![allow(clippy::unwrap_used)]

mod support;

use support::{SERVICE_VALIDATOR, World, address, claim_worth, ntop};
use topnet_account::NTOP_PER_TOP as TOP;
use topnet_ledger::{
    conservation::{MainTotals, ServiceTotals, Totals},
    genesis::{Fees, Rules},
    transaction::CloseByPayee,
};

const PAYER: u8 = 1;
const PAYEE: u8 = 2;

#[test]
fn worked_example() {
    let rules = Rules {
        fees: Fees {
            claim: ntop(TOP / 5),
            ..Fees::FREE
        },
        dust: ntop(TOP),
        allocation_min: ntop(TOP),
        claim_payout_min: ntop(10 * TOP),
        close_window_min: 1,
        ..Rules::default()
    };
    let mut world = World::new(&rules, &[(PAYER, 100 * TOP)]).funded(&[(PAYER, 100 * TOP)]);
    assert_eq!(world.main.balance(PAYER), 0);
    assert_eq!(world.service.balance(PAYER), 100 * TOP);

    let (open, channel) = world.service.open(PAYER, PAYEE, 60 * TOP);
    let claim = world.service.claim(claim_worth(PAYER, channel, 10 * TOP));
    world.service.block(&[open, claim]);
    let close = CloseByPayee {
        channel,
        claim: None,
    };
    world
        .service
        .block(&[world.service.close_by_payee(PAYEE, close)]);
    world.settle();

    // 40 + 0.1 stay on the service: the payer's balance and the proposer's half.
    assert_eq!(world.service.balance(PAYER), 40 * TOP);
    assert_eq!(world.service.balance(PAYEE), 0);
    assert_eq!(
        world.service.account(&address(SERVICE_VALIDATOR)).balance,
        ntop(TOP / 10)
    );
    assert_eq!(
        world.service.service_totals(),
        ServiceTotals {
            credited: u128::from(100 * TOP),
            batched: u128::from(59 * TOP + 9 * TOP / 10),
            balances: u128::from(40 * TOP + TOP / 10),
            allocations: 0,
            burn: 0,
        }
    );
    // 59 + 0.9 leave: the payee's 9.8, the payer's refund of 50, the burned half of the fee.
    assert_eq!(world.main.balance(PAYEE), 9 * TOP + 8 * TOP / 10);
    assert_eq!(world.main.balance(PAYER), 50 * TOP);
    assert_eq!(
        world.main.totals(),
        Totals::Main(MainTotals {
            supply: u128::from(100 * TOP),
            balances: u128::from(59 * TOP + 8 * TOP / 10),
            services: u128::from(40 * TOP + TOP / 10),
            allocations: 0,
            offers: 0,
            burned: u128::from(TOP / 10),
        })
    );
}
