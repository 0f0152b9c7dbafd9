//! The books against tables of their own: what must be on disk before what may happen.

mod claims;
mod credit;
mod freshness;
mod payers;
mod slots;

use std::time::{Duration, Instant};

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
    Books, Greeting, LINK_COST, LogHead, NewLine, Output, PATIENCE_MAX, REFUSAL_COST, Stored,
    TELLING_INTERVAL_PER_LINK, Tips, facts::Served,
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
        backed: Amount::from_ntop(1_000),
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
    (handover.attach().unwrap(), usage, credit)
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
        Self::hearing(&view())
    }

    /// The same with what the chain says of the channel.
    fn hearing(view: &ChannelView) -> Self {
        let (attachment, usage, credit) = tables(1);
        let books = Books::restore(served(), offer(), Vec::new()).unwrap();
        let mut world = Self {
            books,
            usage,
            credit,
            now: Instant::now(),
            stored: None,
        };
        assert!(world.books.handle_channel(view));
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
