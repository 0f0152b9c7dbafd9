//! Everybody tries to get more than is due, one after the other, and one honest client is served
//! all the while.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use topnet_account::{Amount, ChannelId, PublicKey};
use topnet_channel::{Offer, PROTOCOL_VERSION, PayeeTerms, RefusalCode, SecretKey};
use topnet_unit::units_owed;

use crate::{
    hostile::{
        claims::{self, Material},
        inside,
        payee::{Loot, overstate},
        payer::{self, Forger, Forgery, Key, Target, say},
    },
    report::{Cheat, Report, WINDOW_UNITS_MAX},
    topology::PROVIDER,
};

use super::{
    STILL_WAIT, TRANSFER_WAIT,
    lab::{Lab, Opened, number, paying_status, text},
    outage::Victim,
};

/// Units that the honest channel can pay for.
const ALLOCATION_UNITS: u64 = 1024;
/// History enough for the widest window.
const HISTORY_BYTES: u64 = 40 << 20;
/// What is downloaded while the provider overstates: less than the window, because nobody gives
/// credit meanwhile.
const OVERSTATED_BYTES: u64 = 24 << 20;
/// How often the provider claims what it forwarded.
const CLAIMED_TIMES: u64 = 3;
/// What the honest client downloads while others forge.
const MEANWHILE_BYTES: u64 = 96 << 20;
const RATE_BYTES_PER_S: u64 = 6 << 20;
/// How long the wallet is watched after the last byte.
const WATCHED_FOR: Duration = Duration::from_secs(2);
/// A channel is frozen for a moment where blocks come late, and its payer must wait after many
/// refusals; neither is an answer to a forgery.
const UNHEARD_TRIES: u32 = 25;
const UNHEARD_PAUSE: Duration = Duration::from_millis(400);
const MILLION: u128 = 1_000_000;

/// Whose promises the wallet is asked for, and where.
struct Payment {
    target: Target,
    offer: Offer,
}

impl Lab<'_> {
    pub(super) fn cheats(&mut self, report: &mut Report) -> Result<Opened> {
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        let payment = self.payment()?;
        self.overstating_provider(&channel, &payment, report)?;
        let forger = self.forger(&channel, &payment)?;
        let download = self.begin_download(MEANWHILE_BYTES)?;
        self.forging_payer(&forger, &payment, report)?;
        self.false_claims(&forger, report)?;
        ensure!(download.bytes() > 0, "the honest client was not served");
        self.finish_download(download, report)?;
        self.payer_closes(&channel, report)?;
        Ok(channel)
    }

    fn payment(&self) -> Result<Payment> {
        let offer = self.client_asks(&["offers"])?[0].clone();
        let key: PublicKey = serde_json::from_value(offer["payment"]["key"].clone())?;
        let address = text(&offer["payment"]["address"]).context("no payment address")?;
        let of = |name: &str| number(&offer[name]).with_context(|| format!("no {name}"));
        Ok(Payment {
            target: Target {
                address: address.parse()?,
                key,
            },
            offer: Offer {
                version: PROTOCOL_VERSION,
                unit_price: Amount::from_ntop(of("unit_price")?),
                epsilon_ppm: u32::try_from(of("epsilon_ppm")?)?,
                window_max: of("window_units_max")?,
            },
        })
    }

    /// A listener with the offer's own key takes metering's place and claims three times what was
    /// forwarded. The wallet and its counts are the real ones.
    fn overstating_provider(
        &mut self,
        channel: &Opened,
        payment: &Payment,
        report: &mut Report,
    ) -> Result<()> {
        let interrupt = self.options.interrupt;
        let history = self.begin_download(HISTORY_BYTES)?;
        self.finish_download(history, report)?;
        interrupt.wait("the window is paid", STILL_WAIT, || {
            let status = paying_status(&self.wallet.status_file())?;
            let [released, owed] =
                ["released_units", "owed_units"].map(|name| number(&status[name]));
            Ok((released.zip(owed)).filter(|(r, o)| *r == *o + WINDOW_UNITS_MAX))
        })?;
        self.topology.limit_origin(RATE_BYTES_PER_S)?;
        self.say("putting a provider that overstates in metering's place");
        self.process(Victim::Metering)?.stop();
        let terms = PayeeTerms {
            channel: parse_channel(&channel.id)?,
            signer: self.wallet.secret()?.public_key(),
            allocation: payment
                .offer
                .unit_price
                .checked_mul(ALLOCATION_UNITS)
                .context("too much")?,
            offer: payment.offer,
        };
        let secret = self.provider.secret("payment")?;
        let loot = Loot::default();
        let watched = thread::scope(|scope| {
            let _end = EndWhenDropped(&loot.ended);
            let claimed = || self.watch.bytes() * CLAIMED_TIMES;
            let (namespace, loot, secret) = (&self.topology.provider, &loot, &secret);
            let address = payment.target.address;
            let hostile = scope.spawn(move || {
                inside(namespace, overstate(address, secret, terms, &claimed, loot))
            });
            let watched = self.watch_the_wallet(payment, loot, report);
            loot.ended.store(true, Ordering::Relaxed);
            let ended = hostile
                .join()
                .map_err(|_| anyhow!("the overstater broke"))?;
            ended.and(watched)
        })?;
        let taken = loot.accepted_units.load(Ordering::Relaxed);
        report.cheats.push(Cheat {
            who: "a provider".into(),
            tried: format!("to claim {CLAIMED_TIMES} times what it forwarded"),
            answer: format!(
                "it told {} units and got {taken}; the wallet saw {} and released {} at most, and \
                 {} that the meter is above its own count",
                loot.told_units.load(Ordering::Relaxed),
                watched.seen,
                watched.released,
                if watched.complained {
                    "says"
                } else {
                    "does not say"
                },
            ),
            refused: watched.complained && watched.within && taken <= watched.bound,
        });
        self.revive(Victim::Metering, &channel.id)?;
        self.provider.wait_all_answer(&self.topology, interrupt)
    }

    /// Downloads, and holds what the wallet releases against what the lab itself reads of the
    /// tunnel's counters.
    fn watch_the_wallet(
        &self,
        payment: &Payment,
        loot: &Loot,
        report: &mut Report,
    ) -> Result<Watched> {
        let interrupt = self.options.interrupt;
        interrupt.wait(
            "the wallet hears the overstated meter",
            TRANSFER_WAIT,
            || Ok((loot.told_units.load(Ordering::Relaxed) > 0).then_some(())),
        )?;
        let mut download = self.begin_download(OVERSTATED_BYTES)?;
        let mut watched = Watched {
            within: true,
            ..Watched::default()
        };
        let mut since = None;
        interrupt.wait("the wallet was watched", TRANSFER_WAIT, || {
            self.look_at_the_wallet(payment, loot, &mut watched)?;
            if since.is_none() && download.transfer.ended()? {
                since = Some(std::time::Instant::now());
            }
            Ok(since
                .filter(|since| since.elapsed() >= WATCHED_FOR)
                .map(drop))
        })?;
        self.finish_download(download, report)?;
        Ok(watched)
    }

    fn look_at_the_wallet(
        &self,
        payment: &Payment,
        loot: &Loot,
        watched: &mut Watched,
    ) -> Result<()> {
        // What was released is read first: both bounds only rise.
        let status = paying_status(&self.wallet.status_file())?;
        let told = loot.told_units.load(Ordering::Relaxed);
        let tunnel = self.tunnel.as_ref().context("no tunnel")?;
        let interrupt = self.options.interrupt;
        let (received, sent) = tunnel.transfer_ways(&self.topology.client, interrupt)?;
        let epsilon = u128::from(payment.offer.epsilon_ppm);
        let tolerated = (u128::from(received) * epsilon).div_ceil(MILLION);
        let seen = units_owed(sent + received + u64::try_from(tolerated)?, 0);
        let released = number(&status["released_units"]).context("no released units")?;
        // Until it has spoken the wallet rests on what the honest provider told before.
        if told > 0 {
            let bound = told.min(seen) + WINDOW_UNITS_MAX;
            watched.within &= released <= bound;
            watched.bound = bound;
        }
        watched.seen = seen;
        watched.released = watched.released.max(released);
        watched.complained |= status["meter_above_own"] == true;
        Ok(())
    }

    /// The second client's channel, which is open like any other.
    fn forger(&self, channel: &Opened, payment: &Payment) -> Result<Forger> {
        self.say("opening a channel for a payer that forges");
        let wallet = self.forger.as_ref().context("there is no forger")?;
        let (id, _) = self.open_channel(wallet, payer::ALLOCATION_UNITS)?;
        Ok(Forger {
            secret: wallet.secret()?,
            stranger: SecretKey::from_seed([0x5a; 32]).context("no key")?,
            channel: parse_channel(&id)?,
            other: parse_channel(&channel.id)?,
            offer: payment.offer,
        })
    }

    /// Forged, replayed, stale and equivocating promises at the real payment port; after each
    /// group an honest step, which is taken.
    fn forging_payer(&self, forger: &Forger, payment: &Payment, report: &mut Report) -> Result<()> {
        self.say("forging, replaying and equivocating");
        let steps = [
            (forger.on_an_empty_channel(), forger.pays_one(), 1),
            (forger.after_one(), forger.rolls(), 1),
            (forger.after_the_roll(), forger.pays_another(), 2),
        ];
        for (forgeries, honest, accepted) in steps {
            for forgery in forgeries {
                let cheat = self.forgery(forger, payment, &forgery)?;
                report.cheats.push(cheat);
            }
            self.say_until_heard(payment, &forger.secret, &honest, None)?;
            let interrupt = self.options.interrupt;
            interrupt.wait("the honest step is taken", STILL_WAIT, || {
                Ok((self.accepted_of(forger) == accepted).then_some(()))
            })?;
        }
        Ok(())
    }

    fn forgery(&self, forger: &Forger, payment: &Payment, forgery: &Forgery) -> Result<Cheat> {
        let secret = match forgery.key {
            Key::Own => &forger.secret,
            Key::Stranger => &forger.stranger,
        };
        let before = self.accepted_of(forger);
        let frames = &forgery.frames;
        let answer = self.say_until_heard(payment, secret, frames, forgery.expected)?;
        let after = self.accepted_of(forger);
        let words = match answer {
            Some(code) => format!("{code:?}"),
            None => "nothing changes".to_owned(),
        };
        Ok(Cheat {
            who: "a payer".into(),
            tried: forgery.tried.into(),
            refused: answer == forgery.expected && after == before,
            answer: format!("{words}, {after} units accepted before and after"),
        })
    }

    fn say_until_heard(
        &self,
        payment: &Payment,
        secret: &SecretKey,
        frames: &[Vec<u8>],
        expected: Option<RefusalCode>,
    ) -> Result<Option<RefusalCode>> {
        let mut answer = None;
        for _ in 0..UNHEARD_TRIES {
            let said = say(payment.target, secret, frames, expected.is_some());
            answer = inside(&self.topology.client, said)?;
            if !matches!(answer, Some(RefusalCode::Frozen | RefusalCode::TooOften)) {
                break;
            }
            self.options.interrupt.sleep(UNHEARD_PAUSE)?;
        }
        Ok(answer)
    }

    /// What metering says that it was paid on the forger's channel; nothing until it knows it.
    fn accepted_of(&self, forger: &Forger) -> u64 {
        self.accepted_units(&forger.channel.to_string())
            .unwrap_or(0)
    }

    /// Claims that are false in one thing each, at the public RPC.
    fn false_claims(&self, forger: &Forger, report: &mut Report) -> Result<()> {
        self.say("submitting false claims");
        let url = format!("http://{PROVIDER}:8545");
        let client = &self.topology.client;
        let payee = self.provider.secret("payee")?;
        let material = Material {
            chain: inside(client, claims::service_genesis(&url))?,
            voucher: forger.voucher(1, 0),
            forger: &forger.secret,
            payee: &payee,
            other: forger.other,
        };
        for (tried, transaction, expected) in material.false_claims() {
            let before = self.on_chain(forger)?;
            let answer = inside(client, claims::submit(&url, &transaction))?;
            let unchanged = self.on_chain(forger)? == before;
            report.cheats.push(Cheat {
                who: "a claim".into(),
                tried: tried.into(),
                refused: answer.as_deref() == Some(expected) && unchanged,
                answer: format!(
                    "{}, on chain {}",
                    answer.as_deref().unwrap_or("taken"),
                    if unchanged {
                        "nothing changes"
                    } else {
                        "SOMETHING CHANGES"
                    }
                ),
            });
        }
        Ok(())
    }

    /// Both channels and the payee's account as the service chain has them.
    fn on_chain(&self, forger: &Forger) -> Result<[Value; 3]> {
        let channel = |id: ChannelId| -> Result<Value> {
            Ok(self.channel(&id.to_string())?["chain"].clone())
        };
        let payee = ["account", &self.provider.payee, "--chain", "vpn"];
        Ok([
            channel(forger.channel)?,
            channel(forger.other)?,
            self.client_asks(&payee)?,
        ])
    }
}

/// What the wallet did while a provider overstated.
#[derive(Debug, Default)]
struct Watched {
    /// Units by the lab's own reading of the tunnel.
    seen: u64,
    /// The most that it released.
    released: u64,
    /// The most that it may have released in the end.
    bound: u64,
    /// It was never beyond its bound.
    within: bool,
    /// It said that the meter is above its own count.
    complained: bool,
}

/// Ends the overstater whatever becomes of the lab.
struct EndWhenDropped<'a>(&'a AtomicBool);

impl Drop for EndWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn parse_channel(id: &str) -> Result<ChannelId> {
    id.parse().map_err(|_| anyhow!("{id} is no channel id"))
}
