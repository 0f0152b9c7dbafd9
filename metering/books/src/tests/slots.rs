//! Slots and tables that come, go and die.

use super::*;

/// Invariant 9: last totals journalled before the slot is acknowledged.
#[test]
fn a_retired_slot_is_acknowledged_after_its_last_totals_are_committed() {
    let mut world = World::new();
    world.pay(&mut payer(), 0);
    world.turn();
    world.usage.add(SLOT.index, 700, 1);
    world
        .books
        .handle_assignments(&assignments(1, SlotState::Retired));
    assert_eq!(world.limit_bytes(), 0);
    assert_eq!(world.books.poll_output(), None);
    assert!(world.turn().contains(&Output::Acknowledge(slot_use(1))));
    let status = world.books.status(CHANNEL).unwrap();
    assert_eq!((status.metered_bytes, status.owed_units), (700, 1));
    // The list still names it: it is acknowledged again, and counted once.
    world
        .books
        .handle_assignments(&assignments(1, SlotState::Retired));
    assert!(world.turn().contains(&Output::Acknowledge(slot_use(1))));
    world.books.handle_acknowledged(slot_use(1));
    world.turn();
    assert_eq!(world.books.status(CHANNEL).unwrap().metered_bytes, 700);
}

#[test]
fn a_dead_data_planes_tables_are_read_to_the_end() {
    let mut world = World::new();
    world.pay(&mut payer(), 0);
    world.turn();
    world.usage.add(SLOT.index, 700, 1);
    let (attachment, usage, credit) = tables(2);
    world.books.handle_attached(attachment);
    world
        .books
        .handle_assignments(&assignments(2, SlotState::Live));
    world.turn();
    assert_eq!(world.limit_bytes(), 0, "the dead one's credit is closed");
    assert_eq!(world.books.status(CHANNEL).unwrap().metered_bytes, 700);
    assert_eq!(
        credit.balance(SLOT).limit_bytes,
        UNIT_BYTES - 700,
        "the rest goes on"
    );
    usage.add(SLOT.index, 100, 1);
    world.turn();
    assert_eq!(world.books.status(CHANNEL).unwrap().metered_bytes, 800);
}

#[test]
fn bytes_beyond_what_was_paid_show_also_where_only_the_last_word_tells_of_them() {
    let mut world = World::new();
    world.pay(&mut payer(), 0);
    world.turn();
    world.usage.add(SLOT.index, UNIT_BYTES + 5, 1);
    world
        .books
        .handle_assignments(&assignments(1, SlotState::Retired));
    world.turn();
    assert_eq!(world.books.status(CHANNEL).unwrap().unpaid_bytes, 5);
}

#[test]
fn the_service_log_names_the_run_that_counted_and_not_the_next() {
    let mut world = World::new();
    world.pay(&mut payer(), 0);
    world.turn();
    world.usage.add(SLOT.index, 700, 1);
    let (attachment, ..) = tables(2);
    world.books.handle_attached(attachment);
    world
        .books
        .handle_assignments(&assignments(2, SlotState::Live));
    let entries = world.books.poll_entries(true, NOW_MS);
    let line = entries[0].line.as_ref().unwrap().line;
    assert_eq!(
        SlotUse {
            boot: line.boot,
            slot: line.slot
        },
        slot_use(1)
    );
}

#[test]
fn both_dead_at_once_lose_what_no_record_held_and_bill_nothing_twice() {
    let mut world = World::new();
    world.pay(&mut payer(), 0);
    world.usage.add(SLOT.index, 700, 1);
    world.turn();
    world.usage.add(SLOT.index, 50, 1);
    let stored = world.stored.take().unwrap();
    let mut books = Books::restore(served(), offer(), vec![stored]).unwrap();
    let (attachment, _, credit) = tables(2);
    books.handle_attached(attachment);
    books.handle_assignments(&assignments(2, SlotState::Live));
    books.handle_channel(&view());
    books.handle_tips(tips(0), world.now);
    books.poll_freshness(world.now, NOW_MS);
    assert!(!books.poll_entries(true, NOW_MS).is_empty());
    books.handle_committed(true, world.now);
    assert_eq!(books.status(CHANNEL).unwrap().metered_bytes, 700);
    assert_eq!(credit.balance(SLOT).limit_bytes, UNIT_BYTES - 700);
}

#[test]
fn finishing_waits_until_no_burst_can_be_under_way() {
    let mut world = World::new();
    world.pay(&mut payer(), 0);
    world.turn();
    assert!(world.books.handle_finish(CHANNEL));
    let finished = Output::Finished(CHANNEL);
    assert!(!world.turn().contains(&finished));
    assert_eq!(world.limit_bytes(), 0);
    // A burst that was decided upon before.
    world.usage.add(SLOT.index, 900, 1);
    world.now += Duration::from_millis(50);
    assert!(!world.turn().contains(&finished));
    world.now += Duration::from_millis(60);
    let outputs: Vec<Output> = (0..3).flat_map(|_| world.turn()).collect();
    assert!(outputs.contains(&finished));
    let last = world.books.final_claim(CHANNEL).unwrap();
    assert_eq!(last.status.metered_bytes, 900);
    assert_eq!(last.claim.unwrap().index, 1);
}

/// After a restart the data plane goes on with the credit that it has. A last claim before its
/// tables are attached would leave out what it still forwards.
#[test]
fn finishing_waits_for_the_tables_of_a_data_plane_that_may_still_count() {
    let mut world = World::new();
    let header = Header {
        boot: BootId([7; 16]),
        slots: 8,
        workers: 1,
        records: 8,
    };
    let (handover, usage, _, _) = Handover::in_memory(header).unwrap();
    world.books.handle_attached(handover.attach().unwrap());
    world
        .books
        .handle_assignments(&assignments(7, SlotState::Live));
    world.pay(&mut payer(), 0);
    world.turn();

    let stored = world.stored.clone().unwrap();
    world.books = Books::restore(served(), offer(), vec![stored]).unwrap();
    assert!(world.books.handle_finish(CHANNEL));
    let finished = Output::Finished(CHANNEL);
    for _ in 0..4 {
        world.now += Duration::from_millis(200);
        assert!(!world.turn().contains(&finished));
    }
    usage.add(SLOT.index, 700, 1);
    world.books.handle_attached(handover.attach().unwrap());
    assert!(!world.turn().contains(&finished));
    // A burst that was decided upon before the credit was closed.
    usage.add(SLOT.index, 50, 1);
    world.now += Duration::from_millis(200);
    let outputs: Vec<Output> = (0..3).flat_map(|_| world.turn()).collect();
    assert!(outputs.contains(&finished));
    let last = world.books.final_claim(CHANNEL).unwrap();
    assert_eq!(last.status.metered_bytes, 750);

    // One that never comes back is not waited for.
    let stored = world.stored.clone().unwrap();
    world.books = Books::restore(served(), offer(), vec![stored]).unwrap();
    assert!(world.books.handle_finish(CHANNEL));
    world.turn();
    world.now += Duration::from_secs(6);
    world.turn();
    world.now += Duration::from_secs(1);
    assert!(world.turn().contains(&finished));
}

#[test]
fn a_slot_that_nobody_knows_is_looked_up_and_given_back() {
    let mut world = World::new();
    world.turn();
    let unknown = ChannelId([1; 32]);
    for (state, expected) in [
        (SlotState::Live, Output::LookUp(unknown)),
        (
            SlotState::Retired,
            Output::Acknowledge(SlotUse {
                slot: Slot {
                    index: 4,
                    generation: 1,
                },
                ..slot_use(1)
            }),
        ),
    ] {
        let mut list = assignments(1, SlotState::Live);
        list.slots.push(Assignment {
            channel: unknown,
            slot: 4,
            generation: 1,
            base_bytes: 0,
            state,
        });
        world.books.handle_assignments(&list);
        assert!(world.turn().contains(&expected));
    }
    // Indices outside the tables are not believed.
    let mut list = assignments(1, SlotState::Live);
    list.slots[0].slot = 8;
    world.books.handle_assignments(&list);
    world.turn();
}
