//! What the chains say, too late or again.

use super::*;

/// Invariant 6: fail closed.
#[test]
fn a_quarter_of_the_close_window_without_a_header_freezes_and_news_thaw() {
    let mut world = World::new();
    let mut payer = payer();
    world.pay(&mut payer, 0);
    world.turn();
    // 40 blocks of 100 ms: a second.
    for (age_ms, limit_bytes) in [(1_000, UNIT_BYTES), (1_001, 0), (0, UNIT_BYTES)] {
        world.books.handle_tips(tips(age_ms), world.now);
        world.books.poll_freshness(world.now, NOW_MS);
        // Taking credit away waits for no commit.
        world.books.handle_committed(false, world.now);
        world.turn();
        assert_eq!(world.limit_bytes(), limit_bytes, "{age_ms}");
    }
    let closing = ChannelView {
        state: ChannelState::Closing { deadline: 1 },
        ..view()
    };
    world.books.handle_channel(&closing);
    world.books.poll_freshness(world.now, NOW_MS);
    world.books.handle_committed(false, world.now);
    assert_eq!(world.limit_bytes(), 0);
    world.pay(&mut payer, 1);
    let frozen = PayeeMessage::Refused(RefusalCode::Frozen);
    assert!(replies(&world.turn()).contains(&frozen));
}

/// Invariant 6: fresh headers alone say nothing of a channel, which may have been closed while
/// metering was away, and an older answer of the chain's may come last.
#[test]
fn a_restart_thaws_no_channel_that_the_chain_has_not_named_and_none_is_reopened() {
    let mut world = World::new();
    world.pay(&mut payer(), 0);
    world.turn();
    let mut books = Books::restore(served(), offer(), vec![world.stored.unwrap()]).unwrap();
    let (attachment, _, credit) = tables(2);
    books.handle_attached(attachment);
    books.handle_assignments(&assignments(2, SlotState::Live));
    let mut limit_bytes = |view: Option<ChannelView>| {
        books.handle_tips(tips(0), world.now);
        if let Some(view) = view {
            books.handle_channel(&view);
        }
        books.poll_freshness(world.now, NOW_MS);
        let entries = books.poll_entries(true, NOW_MS);
        books.handle_committed(!entries.is_empty(), world.now);
        credit.balance(SLOT).limit_bytes
    };
    let closing = ChannelView {
        state: ChannelState::Closing { deadline: 1 },
        ..view()
    };
    assert_eq!(limit_bytes(None), 0);
    assert_eq!(limit_bytes(Some(view())), UNIT_BYTES);
    assert_eq!(limit_bytes(Some(closing)), 0);
    assert_eq!(limit_bytes(Some(view())), 0);
}

#[test]
fn a_channel_that_anybody_may_soon_close_takes_nothing() {
    let mut world = World::new();
    let mut payer = payer();
    let near = 1_000 + view().close_window / 4;
    for (expiry, serves) in [(near + 1, true), (near, false), (near + 1, true)] {
        world
            .books
            .handle_channel(&ChannelView { expiry, ..view() });
        world.books.poll_freshness(world.now, NOW_MS);
        world.pay(&mut payer, 0);
        world.turn();
        let status = world.books.status(CHANNEL).unwrap();
        assert_eq!(status.state == "open", serves, "{expiry}: {status:?}");
        assert_eq!(world.limit_bytes() > 0, serves, "{expiry}");
    }
}

#[test]
fn a_clock_that_is_put_back_makes_no_old_header_fresh() {
    let mut world = World::new();
    world.pay(&mut payer(), 0);
    world.turn();
    assert!(world.limit_bytes() > 0);
    // A quarter of forty blocks of 100 ms is a second.
    world.now += Duration::from_millis(1_001);
    world.books.poll_freshness(world.now, NOW_MS - 600_000);
    world.turn();
    assert_eq!(world.limit_bytes(), 0);
    assert!(world.books.frozen(world.now, NOW_MS - 600_000).is_some());
    let newer = Tips {
        service_time_ms: NOW_MS + 1,
        main_time_ms: NOW_MS + 1,
        ..tips(0)
    };
    world.books.handle_tips(newer, world.now);
    world.books.poll_freshness(world.now, NOW_MS);
    world.turn();
    assert!(world.limit_bytes() > 0);
}

#[test]
fn a_closed_channel_is_forgotten_after_a_week_and_does_not_come_back() {
    let mut world = World::new();
    world.pay(&mut payer(), 0);
    world.turn();
    let closed = ChannelView {
        state: ChannelState::Closed,
        ..view()
    };
    world.books.handle_channel(&closed);
    let kept_ms = crate::chain::CLOSED_KEPT_MS;
    // As long as it has a slot or a link it stays.
    world.books.poll_freshness(world.now, NOW_MS + kept_ms);
    world.turn();
    assert_eq!(world.books.known(), 1);
    world.books.handle_disconnected(LINK);
    world
        .books
        .handle_assignments(&assignments(1, SlotState::Retired));
    world.turn();
    world.books.handle_acknowledged(slot_use(1));
    world.turn();
    world
        .books
        .poll_freshness(world.now, NOW_MS + 2 * kept_ms - 1);
    assert_eq!(world.books.known(), 1);
    world.books.poll_freshness(world.now, NOW_MS + 2 * kept_ms);
    let entries = world.books.poll_entries(true, NOW_MS);
    assert!(
        entries
            .iter()
            .any(|entry| entry.forget && entry.channel == CHANNEL)
    );
    world.books.handle_committed(true, world.now);
    assert_eq!(world.books.known(), 0);
    assert!(!world.books.handle_channel(&closed));
    assert_eq!(world.books.known(), 0);
}
