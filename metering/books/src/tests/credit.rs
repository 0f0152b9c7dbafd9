//! Credit follows what is on disk and proved.

use super::*;

/// Invariant 4: durable before released.
#[test]
fn credit_and_meter_wait_for_the_commit() {
    let mut world = World::new();
    world.pay(&mut payer(), 0);
    assert_eq!(world.credit.balance(SLOT), Balance::NONE);
    let entries = world.books.poll_entries(false, NOW_MS);
    assert_eq!(entries.len(), 1);
    assert_eq!(
        world.credit.balance(SLOT),
        Balance::NONE,
        "polled is not committed"
    );
    let known = Output::Known(secret().public_key());
    assert_eq!(world.books.poll_output(), Some(known));
    assert_eq!(world.books.poll_output(), None);
    world.books.handle_committed(true, world.now);
    assert_eq!(world.limit_bytes(), UNIT_BYTES);
    let outputs: Vec<Output> = std::iter::from_fn(|| world.books.poll_output()).collect();
    let [
        PayeeMessage::Offer(_),
        PayeeMessage::Resume(Some(held)),
        PayeeMessage::Meter(meter),
    ] = replies(&outputs)[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(
        (held.index, meter.accepted, meter.credit_bytes),
        (1, 1, UNIT_BYTES)
    );
}

#[test]
fn a_voucher_counts_when_it_is_proved_and_not_if_the_channel_froze_meanwhile() {
    let mut world = World::new();
    let roll = payer().poll_send().unwrap().saved().release();
    let unproved = world.books.handle_payer(LINK, &roll).unwrap();
    assert_eq!(world.books.status(CHANNEL).unwrap().reason, None);
    world.now += Duration::from_millis(1_001);
    world.books.poll_freshness(world.now, NOW_MS);
    world.books.handle_proof(LINK, unproved.clone().prove());
    assert!(replies(&world.turn()).contains(&PayeeMessage::Refused(RefusalCode::Frozen)));
    world.books.handle_tips(tips(1), world.now);
    world.books.poll_freshness(world.now, NOW_MS);
    world
        .books
        .handle_proof(LINK, Err(RefusalCode::WrongSignature));
    let refusal = PayeeMessage::Refused(RefusalCode::WrongSignature);
    assert!(replies(&world.turn()).contains(&refusal));
    world.books.handle_proof(LINK, unproved.prove());
    assert!(
        replies(&world.turn())
            .iter()
            .all(|reply| !matches!(reply, PayeeMessage::Refused(_)))
    );
    let record = world.stored.clone().unwrap().record.unwrap();
    assert!(record.len() > 200, "it holds the voucher");
}

#[test]
fn while_the_disk_refuses_nobody_gets_credit_and_whoever_must_loses_it() {
    let mut world = World::new();
    let mut payer = payer();
    world.pay(&mut payer, 0);
    world.turn();
    let before = world.limit_bytes();
    assert!(before > 0);
    world.usage.add(SLOT.index, 1, 1);
    world.pay(&mut payer, 1);
    world.books.poll_usage(true);
    let entries = world.books.poll_entries(true, NOW_MS);
    assert!(!entries.is_empty());
    world.books.handle_uncommitted(world.now);
    assert_eq!(world.limit_bytes(), before);
    assert!(
        std::iter::from_fn(|| world.books.poll_output())
            .next()
            .is_none()
    );
    let closing = ChannelView {
        state: ChannelState::Closing { deadline: 9 },
        ..view()
    };
    world.books.handle_channel(&closing);
    world.books.poll_freshness(world.now, NOW_MS);
    world.books.handle_uncommitted(world.now);
    assert_eq!(world.limit_bytes(), 0);
    // The same batch, written at last, is as good as if it had been at once.
    world.books.handle_committed(true, world.now);
    let status = world.books.status(CHANNEL).unwrap();
    assert_eq!((status.owed_units, status.metered_bytes), (1, 1));
}

/// What is redeemable beyond what main has accepted would be lost with the service.
#[test]
fn what_main_has_not_accepted_is_told() {
    let owing = |view: &ChannelView| {
        let mut world = World::hearing(view);
        world.pay(&mut payer(), 0);
        world.turn();
        world.usage.add(SLOT.index, 1, 1);
        world.turn();
        world
    };
    let told = |world: &World| world.books.status(CHANNEL).unwrap();
    let world = owing(&view());
    let worth = told(&world).redeemable;
    assert!(worth > Amount::ZERO);
    assert_eq!(told(&world).unbacked, Amount::ZERO);
    assert_eq!(world.books.unbacked(), Amount::ZERO);

    let backed = |backed| ChannelView { backed, ..view() };
    let mut world = owing(&backed(Amount::ZERO));
    assert_eq!(told(&world).unbacked, worth);
    assert_eq!(world.books.unbacked(), worth);
    world.books.handle_channel(&backed(Amount::from_ntop(1)));
    assert_eq!(told(&world).unbacked.ntop(), worth.ntop() - 1);
    // An answer from before changes nothing.
    world.books.handle_channel(&view());
    world.books.handle_channel(&backed(Amount::ZERO));
    assert_eq!(world.books.unbacked(), Amount::ZERO);
}
