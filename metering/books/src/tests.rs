//! The order of things: what must be on disk before what may happen.

use std::{
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use topnet_account::{Address, Amount, ChannelId, Hash};
use topnet_api::{Assignment, Assignments, ChainName, ChannelState, ChannelView, SlotState};
use topnet_channel::{
    Meter, Offer, PROTOCOL_VERSION, PayeeMessage, Payer, PayerMessage, PayerTerms, RefusalCode,
    SecretKey, SlotUse, Token,
};
use topnet_unit::{
    Attachment, Balance, BootId, CreditTable, Handover, Header, Slot, UNIT_BYTES, UsageTable,
};

use crate::{
    Books, Greeting, LogHead, NewLine, Output, REFUSALS_PER_LINK_MAX, Stored, Tips, facts::Served,
};

const CHANNEL: ChannelId = ChannelId([9; 32]);
const PAYEE: Address = Address([5; 32]);
const SLOT: Slot = Slot {
    index: 3,
    generation: 1,
};
const LINK: u64 = 1;
const NOW_MS: u64 = 1_000_000;

struct World {
    books: Books,
    usage: UsageTable,
    credit: CreditTable,
    now: Instant,
    stored: Option<Stored>,
}

fn secret() -> SecretKey {
    SecretKey::from_seed([3; 32]).unwrap()
}

fn offer() -> Offer {
    let unit_price = Amount::from_ntop(7);
    Offer {
        version: PROTOCOL_VERSION,
        unit_price,
        epsilon_ppm: 0,
        window_max: 64,
    }
}

fn served() -> Served {
    Served {
        service: ChainName::vpn(),
        payee: Some(PAYEE),
        close_window_blocks_min: 10,
        write_off_units_max: 1,
    }
}

fn view() -> ChannelView {
    ChannelView {
        id: CHANNEL,
        chain: ChainName::vpn(),
        payer: Address([2; 32]),
        payee: PAYEE,
        signer: secret().public_key(),
        allocation: Amount::from_ntop(1_000),
        paid: Amount::ZERO,
        close_window: 40,
        expiry: u64::MAX,
        state: ChannelState::Open,
    }
}

fn tips(age_ms: u64) -> Tips {
    let time_ms = NOW_MS - age_ms;
    Tips {
        service_height: 1_000,
        service_time_ms: time_ms,
        main_time_ms: time_ms,
        block_interval_ms: 100,
    }
}

fn tables(boot: u8) -> (Attachment, UsageTable, CreditTable) {
    let header = Header {
        boot: BootId([boot; 16]),
        slots: 8,
        workers: 1,
        records: 8,
    };
    let (handover, usage, credit, _) = Handover::in_memory(header).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    handover.send(&ours).unwrap();
    (Attachment::receive(&theirs).unwrap(), usage, credit)
}

fn slot_use(boot: u8) -> SlotUse {
    SlotUse {
        boot: BootId([boot; 16]),
        slot: SLOT,
    }
}

fn assignments(boot: u8, state: SlotState) -> Assignments {
    let assignment = Assignment {
        channel: CHANNEL,
        slot: SLOT.index,
        generation: SLOT.generation,
        base_bytes: 0,
        state,
    };
    Assignments {
        boot: BootId([boot; 16]).to_string(),
        slots: vec![assignment],
    }
}

impl World {
    /// One channel with a slot, which has said hello, and nothing paid.
    fn new() -> Self {
        let (attachment, usage, credit) = tables(1);
        let books = Books::restore(served(), offer(), Vec::new()).unwrap();
        let mut world = Self {
            books,
            usage,
            credit,
            now: Instant::now(),
            stored: None,
        };
        assert!(world.books.handle_channel(&view()));
        world.books.handle_tips(tips(0), world.now);
        world.books.poll_freshness(world.now, NOW_MS);
        world.books.handle_attached(attachment);
        world
            .books
            .handle_assignments(&assignments(1, SlotState::Live));
        let greeting = world
            .books
            .handle_hello(LINK, CHANNEL, secret().public_key());
        assert_eq!(greeting, Greeting::Welcome);
        world
    }

    /// A turn without what came before it; gives what is to be done.
    fn turn(&mut self) -> Vec<Output> {
        self.books.poll_usage(true);
        let entries = self.books.poll_entries(true, NOW_MS);
        for entry in &entries {
            let stored = self.stored.take();
            self.stored = Some(Stored {
                channel: entry.channel,
                facts: entry
                    .facts
                    .or(stored.as_ref().map(|stored| stored.facts))
                    .unwrap(),
                record: entry
                    .record
                    .clone()
                    .or(stored.as_ref().and_then(|stored| stored.record.clone())),
                log: log_after(stored.and_then(|stored| stored.log), entry.line),
            });
        }
        self.books.handle_committed(!entries.is_empty(), self.now);
        std::iter::from_fn(|| self.books.poll_output()).collect()
    }

    /// The payer's end pays as far as it will, having seen `units`.
    fn pay(&mut self, payer: &mut Payer, units: u64) {
        payer.handle_own_bytes(units * UNIT_BYTES);
        let meter = Meter {
            owed: units,
            ..Meter::default()
        };
        payer.handle_message(&PayeeMessage::Meter(meter)).unwrap();
        while let Some(unsaved) = payer.poll_send() {
            self.say(LINK, &unsaved.saved().release());
        }
    }

    /// A payer's message, proved where that is needed.
    fn say(&mut self, link: u64, message: &PayerMessage) {
        if let Some(unproved) = self.books.handle_payer(link, message) {
            self.books.handle_proof(link, unproved.prove());
        }
    }

    fn limit_bytes(&self) -> u64 {
        self.credit.balance(SLOT).limit_bytes
    }
}

/// What a journal holds of the log after an entry.
fn log_after(before: Option<LogHead>, line: Option<NewLine>) -> Option<LogHead> {
    let Some(new) = line else { return before };
    let mut head = before.unwrap_or_default();
    assert_eq!(head.units, new.line.units_before);
    assert_eq!(head.tree.append(&new.line), new.peak);
    assert_eq!(head.tree.size(), new.lines);
    head.units = new.line.units;
    Some(head)
}

fn payer() -> Payer {
    let terms = PayerTerms {
        channel: CHANNEL,
        allocation: Amount::from_ntop(1_000),
        unit_price_max: Amount::from_ntop(7),
        window_max: 64,
    };
    let mut payer = Payer::new(secret(), terms, None);
    let _ = payer.hello();
    payer.handle_message(&PayeeMessage::Offer(offer())).unwrap();
    payer.handle_message(&PayeeMessage::Resume(None)).unwrap();
    payer
}

fn replies(outputs: &[Output]) -> Vec<PayeeMessage> {
    let reply = |output: &Output| match output {
        Output::Reply(LINK, message) => Some(*message),
        _ => None,
    };
    outputs.iter().filter_map(reply).collect()
}

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
    let attach = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        handover.send(&ours).unwrap();
        Attachment::receive(&theirs).unwrap()
    };
    world.books.handle_attached(attach());
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
    world.books.handle_attached(attach());
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
fn a_payer_that_is_refused_again_and_again_loses_its_link() {
    let mut world = World::new();
    world.turn();
    let token = |index| {
        PayerMessage::Token(Token {
            channel: CHANNEL,
            seq: 1,
            index,
            preimage: [1; 32],
            own_bytes: 0,
        })
    };
    for refusals in 1..=REFUSALS_PER_LINK_MAX {
        world.say(LINK, &token(1));
        let outputs = world.turn();
        assert!(replies(&outputs).contains(&PayeeMessage::Refused(RefusalCode::StaleVoucher)));
        let ends = outputs.contains(&Output::End(LINK));
        assert_eq!(ends, refusals == REFUSALS_PER_LINK_MAX);
    }
    assert_eq!(world.books.connected(), 0);
    world.say(LINK, &token(1));
    assert_eq!(world.turn(), []);
    assert_eq!(
        world.books.counters().refusals,
        u64::from(REFUSALS_PER_LINK_MAX)
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
