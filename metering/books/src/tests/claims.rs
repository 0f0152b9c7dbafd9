//! Claims are handed over when they have grown, and again if they did not arrive.

use super::*;

const NONE: [u64; 0] = [];

fn units(world: &mut World) -> Vec<u64> {
    let claims = world.books.take_claims(10);
    let units_of = |held: &topnet_api::HeldClaim| {
        assert_eq!(held.channel, CHANNEL);
        let voucher = topnet_channel::SignedVoucher::from_bytes(&held.claim.voucher).unwrap();
        voucher.voucher.units(held.claim.index).unwrap()
    };
    claims.iter().map(units_of).collect()
}

#[test]
fn a_claim_is_handed_over_once_it_is_durable_and_again_if_it_was_lost() {
    let mut world = World::new();
    let mut payer = payer();
    world.pay(&mut payer, 0);
    world.turn();
    assert_eq!(units(&mut world), NONE, "nothing is owed yet");

    // A unit is owed and paid for; until that is on disk there is nothing to claim.
    world.usage.add(SLOT.index, 1, 1);
    world.books.poll_usage(true);
    assert_eq!(units(&mut world), NONE);
    world.turn();
    assert_eq!(units(&mut world), [1]);
    world.turn();
    assert_eq!(units(&mut world), NONE, "it has not grown");
    world
        .books
        .handle_claims_lost(&[CHANNEL, ChannelId([8; 32])]);
    world.books.handle_claims_lost(&[CHANNEL]);
    assert_eq!(units(&mut world), [1], "once, however often it is told");

    world.pay(&mut payer, 1);
    world.turn();
    assert_eq!(units(&mut world), NONE, "paid for, and not owed");
    world.usage.add(SLOT.index, UNIT_BYTES, 1);
    world.turn();
    assert_eq!(units(&mut world), [2]);

    // Whoever starts anew does not know what arrived.
    let stored = world.stored.take().unwrap();
    world.books = Books::restore(served(), offer(), vec![stored]).unwrap();
    assert_eq!(units(&mut world), [2]);
    assert_eq!(units(&mut world), NONE);
}
