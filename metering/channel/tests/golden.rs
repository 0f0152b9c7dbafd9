//! Every byte that is signed, sent or stored by the payment path, against `golden.txt`. These
//! bytes are in channels, on disks and in claims: a line changes only together with a version or
//! a domain. (The claim's own bytes are the ledger's, and golden there.)
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use topnet_account::{Amount, ChannelId, PublicKey, Signature};
use topnet_channel::{
    Meter, Offer, PROTOCOL_VERSION, Payee, PayeeMessage, PayeeTerms, Payer, PayerMessage,
    PayerRecord, PayerTerms, Promise, RefusalCode, Roll, SecretKey, SignedVoucher, SlotUse, Token,
    TokenChain, Voucher, record_channel,
};
use topnet_unit::{BootId, Slot, UNIT_BYTES};

const CHANNEL: ChannelId = ChannelId([0xc1; 32]);
const PRICE: Amount = Amount::from_ntop(25);

#[test]
fn bytes_are_what_they_were() {
    let mut actual = String::new();
    for (name, bytes) in vectors() {
        writeln!(actual, "{name} {}", hex(&bytes)).unwrap();
    }
    let golden = include_str!("golden.txt");
    if actual != golden {
        for (actual, golden) in actual.lines().zip(golden.lines()) {
            assert_eq!(actual, golden);
        }
        panic!("golden.txt has other lines than there are vectors:\n{actual}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn secret() -> SecretKey {
    SecretKey::from_seed([0x5e; 32]).unwrap()
}

fn first() -> Voucher {
    Voucher {
        channel: CHANNEL,
        seq: 1,
        cumulative_amount: Amount::ZERO,
        cumulative_units: 0,
        unit_price: PRICE,
        tokens: 4,
        root: [0; 32],
    }
}

/// Follows `first` after three of its tokens.
fn second() -> Voucher {
    Voucher {
        seq: 2,
        cumulative_amount: Amount::from_ntop(75),
        cumulative_units: 3,
        unit_price: Amount::from_ntop(30),
        tokens: 256,
        ..first()
    }
}

fn token(voucher: &Voucher, index: u16) -> Token {
    Token {
        channel: CHANNEL,
        seq: voucher.seq,
        index,
        preimage: preimage(voucher, index),
        own_bytes: 0x0102_0304_0506_0708,
    }
}

fn preimage(voucher: &Voucher, index: u16) -> [u8; 32] {
    voucher.chain(&secret()).preimage(index).unwrap()
}

fn promise(voucher: &Voucher, index: u16) -> Promise {
    Promise {
        voucher: voucher.sign(&secret()),
        index,
        preimage: preimage(voucher, index),
    }
}

fn roll(voucher: &Voucher, retired: Option<(&Voucher, u16)>) -> Roll {
    Roll {
        voucher: voucher.sign(&secret()),
        retired_index: retired.map_or(0, |(_, index)| index),
        retired_preimage: retired.map_or([0; 32], |(old, index)| preimage(old, index)),
    }
}

fn offer() -> Offer {
    Offer {
        version: PROTOCOL_VERSION,
        unit_price: PRICE,
        epsilon_ppm: 5_000,
        window_max: 64,
    }
}

type Vectors = Vec<(String, Vec<u8>)>;

fn vectors() -> Vectors {
    let mut vectors = Vec::new();
    vouchers(&mut vectors);
    chains(&mut vectors);
    payer_messages(&mut vectors);
    payee_messages(&mut vectors);
    payee_records(&mut vectors);
    payer_records(&mut vectors);
    vectors
}

fn vouchers(vectors: &mut Vectors) {
    for (name, voucher) in [("first", first()), ("second", second())] {
        let signed = voucher.sign(&secret());
        let bytes = signed.to_bytes();
        assert_eq!(SignedVoucher::from_bytes(&bytes), Ok(signed));
        assert!(signed.is_signed_by(&secret().public_key()));
        let mut add = |part: &str, bytes: &[u8]| {
            vectors.push((format!("voucher.{name}.{part}"), bytes.to_vec()));
        };
        add("signed_bytes", &signed.voucher.signed_bytes());
        add("signature", signed.signature.as_ref());
        add("sent", &bytes);
        add("salt", &voucher.salt());
    }
}

/// `w[0]` to `w[n]`: of a seed and a salt that are plain, and as a key and a voucher give them.
fn chains(vectors: &mut Vectors) {
    let plain = TokenChain::new([0x5e; 32], &[0x5a; 16], 4);
    let of_voucher = first().chain(&secret());
    for (name, chain) in [("plain", &plain), ("of_first", &of_voucher)] {
        for index in 0..=4 {
            let link = chain.preimage(index).unwrap();
            vectors.push((format!("chain.{name}.w{index}"), link.to_vec()));
        }
        assert_eq!(chain.preimage(5), None);
    }
    // The longest chain, by its ends.
    let longest = second().chain(&secret());
    for index in [0, 1, 255, 256] {
        let link = longest.preimage(index).unwrap();
        vectors.push((format!("chain.of_second.w{index}"), link.to_vec()));
    }
}

fn payer_messages(vectors: &mut Vectors) {
    let messages = [
        (
            "hello",
            PayerMessage::Hello {
                version: PROTOCOL_VERSION,
                channel: CHANNEL,
            },
        ),
        ("resume.nothing", PayerMessage::Resume(None)),
        ("resume", PayerMessage::Resume(Some(promise(&first(), 3)))),
        ("roll.first", PayerMessage::Roll(roll(&first(), None))),
        (
            "roll",
            PayerMessage::Roll(roll(&second(), Some((&first(), 3)))),
        ),
        ("token", PayerMessage::Token(token(&first(), 2))),
    ];
    for (name, message) in messages {
        let bytes = message.to_bytes();
        assert_eq!(PayerMessage::from_bytes(&bytes), Ok(message), "{name}");
        vectors.push((format!("payer.{name}"), bytes));
    }
}

fn payee_messages(vectors: &mut Vectors) {
    let meter = Meter {
        channel_bytes: 3 * UNIT_BYTES + 1,
        owed: 4,
        accepted: 6,
        credit_bytes: 3 * UNIT_BYTES - 1,
    };
    let mut messages = vec![
        ("offer".to_owned(), PayeeMessage::Offer(offer())),
        ("resume.nothing".to_owned(), PayeeMessage::Resume(None)),
        (
            "resume".to_owned(),
            PayeeMessage::Resume(Some(promise(&second(), 256))),
        ),
        ("meter".to_owned(), PayeeMessage::Meter(meter)),
    ];
    let refused = |code| (format!("refused.{code:?}"), PayeeMessage::Refused(code));
    messages.extend(refusals().map(refused));
    for (name, message) in messages {
        let bytes = message.to_bytes();
        assert_eq!(PayeeMessage::from_bytes(&bytes), Ok(message), "{name}");
        vectors.push((format!("payee.{name}"), bytes));
    }
}

/// All of them: every byte that decodes to one.
fn refusals() -> impl Iterator<Item = RefusalCode> {
    let refused = PayeeMessage::Refused(RefusalCode::Version).to_bytes()[0];
    (0..=u8::MAX).filter_map(
        move |code| match PayeeMessage::from_bytes(&[refused, code]) {
            Ok(PayeeMessage::Refused(code)) => Some(code),
            _ => None,
        },
    )
}

fn payee() -> Payee {
    Payee::new(terms())
}

fn terms() -> PayeeTerms {
    PayeeTerms {
        channel: CHANNEL,
        signer: secret().public_key(),
        allocation: Amount::from_ntop(1_000_000),
        offer: offer(),
    }
}

fn slot_use(boot: u8, index: u32, generation: u32) -> SlotUse {
    SlotUse {
        boot: BootId([boot; 16]),
        slot: Slot { index, generation },
    }
}

/// Two slots, one of them over, a third forgotten, a write-off, and two vouchers of which the
/// newer one begins beyond what is owed.
fn used_and_paid() -> Payee {
    let mut payee = payee();
    let (forgotten, over, live) = (slot_use(1, 9, 1), slot_use(1, 3, 2), slot_use(2, 4, 1));
    assert!(payee.handle_slot(forgotten, 0));
    payee.handle_slot_over(forgotten, 7);
    payee.handle_slot_forgotten(forgotten);
    assert!(payee.handle_slot(over, 1_000));
    assert!(payee.handle_slot(live, 0x0102_0304));
    payee.handle_slot_over(over, 1_000 + 2 * UNIT_BYTES);
    payee.handle_usage(live, 0x0102_0304 + 5);
    payee.handle_write_off(1);
    take(&mut payee, PayerMessage::Roll(roll(&first(), None)));
    take(&mut payee, PayerMessage::Token(token(&first(), 2)));
    let next = roll(&second(), Some((&first(), 3)));
    take(&mut payee, PayerMessage::Roll(next));
    take(&mut payee, PayerMessage::Token(token(&second(), 9)));
    payee
}

fn take(payee: &mut Payee, message: PayerMessage) {
    payee.handle_message(&message).unwrap();
}

fn payee_records(vectors: &mut Vectors) {
    let mut finished = used_and_paid();
    finished.handle_finish();
    let mut broken = payee();
    let use_of = |index| slot_use(3, index, 1);
    for index in [1, 2] {
        assert!(broken.handle_slot(use_of(index), 0));
        broken.handle_usage(use_of(index), u64::MAX);
    }
    let cases = [
        ("new", payee()),
        ("used_and_paid", used_and_paid()),
        ("finished", finished),
        ("broken", broken),
    ];
    for (name, mut payee) in cases {
        let record = payee.poll_record().unwrap();
        payee.handle_durable();
        assert_eq!(record_channel(&record), Ok(CHANNEL));
        let restored = Payee::from_record(terms(), &record).unwrap();
        assert_eq!(restored.meter(), payee.meter(), "{name}");
        assert_eq!(restored.claim(), payee.claim(), "{name}");
        vectors.push((format!("payee_record.{name}"), record));
        if let Some(claim) = payee.claim() {
            let mut bytes = claim.voucher.to_bytes().to_vec();
            bytes.extend(claim.index.to_le_bytes());
            bytes.extend(claim.preimage);
            vectors.push((format!("payee_record.{name}.claim"), bytes));
        }
    }
}

fn payer_records(vectors: &mut Vectors) {
    let terms = PayerTerms {
        channel: CHANNEL,
        allocation: Amount::from_ntop(1_000_000),
        unit_price_max: PRICE,
        window_max: 8,
    };
    let mut payer = Payer::new(secret(), terms, None);
    let _ = payer.hello();
    payer.handle_own_bytes(0x0102_0304);
    payer.handle_message(&PayeeMessage::Offer(offer())).unwrap();
    payer.handle_message(&PayeeMessage::Resume(None)).unwrap();
    for name in ["rolled", "paid"] {
        let unsaved = payer.poll_send().unwrap();
        let record = unsaved.record().to_vec();
        let read = PayerRecord::from_bytes(&record).unwrap();
        assert_eq!(read.promise, payer.promise(), "{name}");
        assert_eq!(read.own_bytes, 0x0102_0304, "{name}");
        vectors.push((format!("payer_record.{name}"), record));
        vectors.push((
            format!("payer_record.{name}.message"),
            unsaved.saved().release().to_bytes(),
        ));
    }
    // Nothing promised yet: no payer writes that, and a reader knows it all the same.
    let nothing = [&[1][..], &[0; 8], &[0]].concat();
    let read = PayerRecord::from_bytes(&nothing).unwrap();
    assert_eq!((read.promise, read.own_bytes), (None, 0));
    vectors.push(("payer_record.nothing".to_owned(), nothing));
}

/// Keys and signatures are those of RFC 8032: its first test vector.
#[test]
fn a_key_signs_as_the_standard_says() {
    let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let signature = "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b";
    let bytes = |hex: &str| -> Vec<u8> {
        (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
            .collect()
    };
    let secret = SecretKey::from_seed(bytes(seed).try_into().unwrap()).unwrap();
    assert_eq!(
        secret.public_key(),
        PublicKey(bytes(key).try_into().unwrap())
    );
    assert_eq!(
        secret.sign(b""),
        Signature(bytes(signature).try_into().unwrap())
    );
}
