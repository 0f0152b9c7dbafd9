//! Payer and payee together, over a link that breaks and disks that crash, as a seed says.

use super::*;

/// xorshift64*: the same seed gives the same world on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

/// A payer and a payee with their disks, a link that breaks, and a data plane that forwards
/// whatever the credit allows.
struct World {
    random: Random,
    payer: Payer,
    payee: Payee,
    payer_disk: Option<PayerRecord>,
    payee_disk: Option<Vec<u8>>,
    to_payee: Vec<PayerMessage>,
    to_payer: Vec<PayeeMessage>,
    usage: u64,
    boot: u8,
    earlier: u64,
    allocation: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(2).wrapping_add(1));
        let allocation = 25 * (50 + random.below(1_000));
        Self {
            random,
            payer: Payer::new(secret(), payer_terms(allocation), None),
            payee: Payee::new(payee_terms(allocation)),
            payer_disk: None,
            payee_disk: None,
            to_payee: Vec::new(),
            to_payer: Vec::new(),
            usage: 0,
            boot: 1,
            earlier: 0,
            allocation,
        }
    }

    fn used(&self) -> u64 {
        self.earlier + self.usage
    }

    fn reconnect(&mut self) {
        self.to_payee = self.payer.hello().to_vec();
        self.to_payer.clear();
    }

    fn payer_crash(&mut self) {
        let last = self.payer_disk.and_then(|record| record.promise);
        self.payer = Payer::new(secret(), payer_terms(self.allocation), last);
        self.reconnect();
    }

    fn payee_crash(&mut self) {
        let terms = payee_terms(self.allocation);
        self.payee = match &self.payee_disk {
            Some(record) => Payee::from_record(terms, record).unwrap(),
            None => Payee::new(terms),
        };
        self.payee.handle_frozen(false);
        self.reconnect();
    }

    /// The data plane dies; metering reads its last totals from the memory that it still maps,
    /// journals them and meets the next one. (If metering died too before that, what was not
    /// journalled would be the provider's loss, by design.)
    fn dataplane_restart(&mut self) {
        self.payee.handle_slot(slot(self.boot), 0);
        self.payee.handle_slot_over(slot(self.boot), self.usage);
        while let Some(record) = self.payee.poll_record() {
            self.payee_disk = Some(record);
            self.payee.handle_durable();
        }
        self.earlier += self.usage;
        self.usage = 0;
        self.boot += 1;
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0..3 => self.forward(),
            3..5 => self.payee_reads(),
            5..7 => self.payer_reads(),
            7..9 => {
                self.payer.handle_own_bytes(self.used());
                if let Some(unsaved) = self.payer.poll_send() {
                    self.payer_disk = Some(PayerRecord::from_bytes(unsaved.record()).unwrap());
                    self.to_payee.push(unsaved.saved().release());
                }
            }
            9 => {
                self.payee.handle_slot(slot(self.boot), 0);
                self.payee.handle_usage(slot(self.boot), self.usage);
                if let Some(record) = self.payee.poll_record() {
                    // A crash may fall between the write and the word of it.
                    self.payee_disk = Some(record);
                    if self.random.below(20) > 0 {
                        self.payee.handle_durable();
                    } else {
                        self.payee_crash();
                    }
                }
                self.to_payer.push(PayeeMessage::Meter(self.payee.meter()));
            }
            10 => match self.random.below(60) {
                0 => self.payer_crash(),
                1 => self.payee_crash(),
                2 => self.reconnect(),
                3 if self.boot < 50 => self.dataplane_restart(),
                _ => {}
            },
            _ => {}
        }
    }

    fn forward(&mut self) {
        let wanted = self.random.below(3 * UNIT_BYTES);
        let grant = self
            .payee
            .grants()
            .find(|(slot_use, _)| *slot_use == slot(self.boot));
        if let Some((_, Some(grant))) = grant {
            let room = grant.limit_bytes.saturating_sub(self.usage);
            self.usage += wanted.min(room);
        }
    }

    fn payee_reads(&mut self) {
        if self.to_payee.is_empty() {
            return;
        }
        match self.to_payee.remove(0) {
            PayerMessage::Hello { .. } => {
                self.to_payer.push(PayeeMessage::Offer(self.payee.offer()));
            }
            message => {
                if let Err(code) = self.payee.handle_message(&message) {
                    panic!("an honest payer was refused: {code:?} for {message:?}");
                }
                if matches!(message, PayerMessage::Resume(_)) {
                    self.to_payer
                        .push(PayeeMessage::Resume(self.payee.promise()));
                }
            }
        }
    }

    fn payer_reads(&mut self) {
        if !self.to_payer.is_empty() {
            let message = self.to_payer.remove(0);
            self.payer.handle_message(&message).unwrap();
        }
    }

    fn check(&self) {
        let meter = self.payee.meter();
        let status = self.payer.status();
        let owed = self.used().div_ceil(UNIT_BYTES);
        assert!(
            owed <= meter.accepted,
            "forwarded {owed} of {} paid units",
            meter.accepted
        );
        if let Some(claim) = self.payee.claim() {
            let amount = claim.redeemable().unwrap().ntop();
            assert!(amount <= 25 * owed && amount <= self.allocation);
            assert_eq!(amount, 25 * claim.units().unwrap());
        }
        assert!(status.promised.ntop() <= self.allocation);
    }

    /// Everybody is back and talks until nothing is left to say.
    fn settle(&mut self) -> Claim {
        self.reconnect();
        for _ in 0..40 {
            while !self.to_payee.is_empty() {
                self.payee_reads();
            }
            self.payee.handle_slot(slot(self.boot), 0);
            self.payee.handle_usage(slot(self.boot), self.usage);
            persist(&mut self.payee);
            self.to_payer.push(PayeeMessage::Meter(self.payee.meter()));
            while !self.to_payer.is_empty() {
                self.payer_reads();
            }
            self.payer.handle_own_bytes(self.used());
            while let Some(unsaved) = self.payer.poll_send() {
                self.to_payee.push(unsaved.saved().release());
            }
        }
        self.payee.claim().unwrap()
    }
}

#[test]
fn owed_is_redeemed_to_the_unit_in_every_seeded_world() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        world.reconnect();
        for _ in 0..2_000 {
            world.step();
            world.check();
        }
        if world.used() == 0 {
            continue;
        }
        let claim = world.settle();
        let owed = world.used().div_ceil(UNIT_BYTES);
        let meter = world.payee.meter();
        let status = world.payer.status();
        assert_eq!(meter.owed, owed, "seed {seed}");
        assert_eq!(claim.units(), Some(owed), "seed {seed}");
        assert!(meter.accepted <= status.released, "seed {seed}");
        assert!(status.released <= owed + WINDOW, "seed {seed}");
        assert!(claim.is_signed_by(&secret().public_key()));
    }
}
