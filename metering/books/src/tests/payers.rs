//! Payers that are strange, wrong, or do not pay.

use super::*;

#[test]
fn strangers_and_other_peoples_channels_are_turned_away() {
    let mut world = World::new();
    let other = SecretKey::from_seed([4; 32]).unwrap().public_key();
    assert_eq!(
        world.books.handle_hello(2, CHANNEL, other),
        Greeting::WrongKey
    );
    let unknown = ChannelId(Hash::ZERO.0);
    assert_eq!(
        world.books.handle_hello(2, unknown, other),
        Greeting::Unknown
    );
    world.turn();
    let roll = PayerMessage::Resume(None);
    world.say(2, &roll);
    assert_eq!(world.turn(), []);
    for view in [
        ChannelView {
            payee: Address([6; 32]),
            id: unknown,
            ..view()
        },
        ChannelView {
            close_window: 9,
            id: unknown,
            ..view()
        },
        ChannelView {
            chain: ChainName::main(),
            id: unknown,
            ..view()
        },
    ] {
        assert!(!world.books.handle_channel(&view));
    }
    // A second link of the same payer takes the first one's place.
    let again = world.books.handle_hello(3, CHANNEL, secret().public_key());
    assert_eq!(again, Greeting::Welcome);
    assert!(world.turn().contains(&Output::End(LINK)));
    assert_eq!(world.books.connected(), 1);
}

/// A token under a voucher that was never promised.
fn stale() -> PayerMessage {
    PayerMessage::Token(Token {
        channel: CHANNEL,
        seq: 1,
        index: 1,
        preimage: [1; 32],
        own_bytes: 0,
    })
}

#[test]
fn a_payer_that_is_refused_again_and_again_loses_its_link_and_must_wait() {
    let mut world = World::new();
    world.turn();
    let refusals_max = PATIENCE_MAX / REFUSAL_COST;
    for refusals in 1..=refusals_max {
        world.say(LINK, &stale());
        let outputs = world.turn();
        assert!(replies(&outputs).contains(&PayeeMessage::Refused(RefusalCode::StaleVoucher)));
        let ends = outputs.contains(&Output::End(LINK));
        assert_eq!(ends, refusals == refusals_max);
    }
    assert_eq!(world.books.connected(), 0);
    world.say(LINK, &stale());
    assert_eq!(world.turn(), []);
    assert_eq!(world.books.counters().refusals, u64::from(refusals_max));

    let key = secret().public_key();
    assert_eq!(
        world.books.handle_hello(2, CHANNEL, key),
        Greeting::TooOften
    );
    assert_eq!(world.books.connected(), 0);
    world.now += Duration::from_secs(u64::from(LINK_COST));
    world.books.poll_freshness(world.now, NOW_MS);
    assert_eq!(world.books.handle_hello(3, CHANNEL, key), Greeting::Welcome);
    world.say(3, &stale());
    assert!(world.turn().contains(&Output::End(3)), "not eight more");
}

#[test]
fn a_payer_may_make_links_again_and_again_but_not_without_end() {
    let mut world = World::new();
    let key = secret().public_key();
    let mut link = LINK;
    let mut hello = |world: &mut World| {
        link += 1;
        world.books.handle_hello(link, CHANNEL, key)
    };
    // One is the link that the world began with.
    for _ in 1..PATIENCE_MAX / LINK_COST {
        assert_eq!(hello(&mut world), Greeting::Welcome);
    }
    assert_eq!(hello(&mut world), Greeting::TooOften);
    assert_eq!(world.books.connected(), 1, "the link that stands does");
    for _ in 0..1_000 {
        world.now += Duration::from_secs(u64::from(LINK_COST));
        world.books.poll_freshness(world.now, NOW_MS);
        assert_eq!(hello(&mut world), Greeting::Welcome);
    }
}

#[test]
fn what_the_operator_forgives_is_written_off_only_where_the_payer_counts_less() {
    let mut world = World::new();
    let mut payer = payer();
    world.pay(&mut payer, 0);
    world.turn();
    // The payer has seen nothing of what used up all that it paid for.
    let paid = world.limit_bytes();
    world.usage.add(SLOT.index, paid, 1);
    world.turn();
    let mut tip_ms = NOW_MS;
    let mut wait = |world: &mut World| {
        for _ in 0..4 {
            world.now += Duration::from_secs(3);
            tip_ms += 1;
            let tips = Tips {
                service_time_ms: tip_ms,
                main_time_ms: tip_ms,
                ..tips(0)
            };
            world.books.handle_tips(tips, world.now);
            world.books.poll_freshness(world.now, NOW_MS);
            world.turn();
        }
    };
    // It has said nothing of its own count yet, so it has counted less.
    wait(&mut world);
    assert_eq!(world.limit_bytes(), paid + UNIT_BYTES);
    assert_eq!(world.books.status(CHANNEL).unwrap().written_off_units, 1);
    world.usage.add(SLOT.index, UNIT_BYTES, 1);
    wait(&mut world);
    assert_eq!(world.limit_bytes(), paid + UNIT_BYTES, "one unit is all");
    assert_eq!(world.books.counters().written_off, 1);
}

#[test]
fn nothing_is_written_off_for_a_payer_that_counts_as_much_and_does_not_pay() {
    let mut world = World::new();
    let mut payer = payer();
    world.pay(&mut payer, 0);
    world.turn();
    let paid = world.limit_bytes();
    world.usage.add(SLOT.index, paid, 1);
    world.turn();
    let promise = payer.promise().unwrap();
    let token = Token {
        channel: CHANNEL,
        seq: promise.voucher.voucher.seq,
        index: promise.index,
        preimage: promise.preimage,
        own_bytes: paid,
    };
    world.say(LINK, &PayerMessage::Token(token));
    for tip_ms in NOW_MS + 1..NOW_MS + 5 {
        world.now += Duration::from_secs(3);
        let tips = Tips {
            service_time_ms: tip_ms,
            main_time_ms: tip_ms,
            ..tips(0)
        };
        world.books.handle_tips(tips, world.now);
        world.books.poll_freshness(world.now, NOW_MS);
        world.turn();
    }
    assert_eq!(world.limit_bytes(), paid);
    assert_eq!(world.books.counters().written_off, 0);
}

#[test]
fn a_payer_far_ahead_hears_of_several_units_at_once_and_of_the_last_in_time() {
    let mut world = World::new();
    let mut payer = payer();
    let owed_told = |outputs: &[Output]| -> Vec<u64> {
        let owed = |message| match message {
            PayeeMessage::Meter(meter) => Some(meter.owed),
            _ => None,
        };
        replies(outputs).into_iter().filter_map(owed).collect()
    };
    world.pay(&mut payer, 0);
    world.turn();
    // Its window grows with what it has paid for.
    for units in 1..64 {
        world.usage.add(SLOT.index, UNIT_BYTES, 1);
        let told = owed_told(&world.turn());
        assert!(units > 8 || told == [units], "it is little ahead: {told:?}");
        world.pay(&mut payer, units);
        world.turn();
    }
    let pass = |world: &mut World, time| {
        world.now += time;
        owed_told(&world.turn())
    };
    let interval = TELLING_INTERVAL_PER_LINK;
    pass(&mut world, interval);
    let mut told = Vec::new();
    for _ in 0..8 {
        world.usage.add(SLOT.index, UNIT_BYTES, 1);
        told.extend(owed_told(&world.turn()));
    }
    assert_eq!(told, [70], "an eighth of 64, more or less");
    assert!(pass(&mut world, interval - Duration::from_nanos(1)).is_empty());
    assert_eq!(pass(&mut world, Duration::from_nanos(1)), [71]);
    assert!(pass(&mut world, interval).is_empty());
}
