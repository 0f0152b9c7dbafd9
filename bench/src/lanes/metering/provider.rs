//! A provider put together from the other processes: model data plane, payee, payers.

use std::time::Duration;

use anyhow::Result;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use topnet_api::ChannelStatus;

use super::{
    payee, payers, plane,
    plane::{Offered, Timed},
    process::{Another, Role},
};
use crate::{lanes::Setup, place::Place};

/// Longer than any preparation takes.
const PATIENCE: Duration = Duration::from_secs(180);

/// All processes of a provider. They end when it is dropped.
pub struct Provider {
    setup: Setup,
    // Before the directories, so that nobody writes there any more.
    payers: Option<Another>,
    payee: Another,
    plane: Another,
    /// Where payers connect.
    pub ready: payee::Ready,
    _sockets: TempDir,
    _journal: TempDir,
}

/// A measurement: the data plane's answer, and what the others did meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// What passed.
    pub plane: plane::Answer,
    /// What the payee did.
    pub payee: payee::Status,
    /// What the payers did, if there are any.
    pub payers: payers::Status,
}

impl Phase {
    /// Units a second.
    pub fn units_per_s(&self) -> f64 {
        self.plane.units as f64 / self.plane.elapsed_s
    }

    /// `amount` for each unit that passed.
    pub fn per_unit(&self, amount: f64) -> f64 {
        amount / self.plane.units.max(1) as f64
    }
}

impl Provider {
    /// Starts data plane and payee with `channels` channels. `feed_units` of each are paid from
    /// within the payee.
    pub fn start(
        setup: &Setup,
        channels: u32,
        timed: Timed,
        place: Place,
        feed_units: Option<u64>,
    ) -> Result<Provider> {
        Self::start_with_idle(setup, [channels, 0], timed, place, feed_units)
    }

    /// As [`start`](Self::start), with so many more channels that are open and have no slot.
    pub fn start_with_idle(
        setup: &Setup,
        [channels, idle_channels]: [u32; 2],
        timed: Timed,
        place: Place,
        feed_units: Option<u64>,
    ) -> Result<Provider> {
        let (sockets, journal) = (Place::Memory.directory()?, place.directory()?);
        let tables = sockets.path().join("tables");
        let needs = plane::Needs {
            channels,
            tables: tables.clone(),
            timed,
        };
        let mut plane = Another::start(&setup.program, Role::Plane, &needs)?;
        plane.hear::<()>(&setup.interrupt, PATIENCE)?;
        let needs = payee::Needs {
            channels,
            idle_channels,
            tables: Some(tables),
            journal: journal.path().to_owned(),
            feed_units,
        };
        let mut payee = Another::start(&setup.program, Role::Payee, &needs)?;
        let ready = payee.hear(&setup.interrupt, PATIENCE)?;
        Ok(Provider {
            setup: setup.clone(),
            payers: None,
            payee,
            plane,
            ready,
            _sockets: sockets,
            _journal: journal,
        })
    }

    /// Connects payers, one for each of the first channels. Gives how many seconds it took.
    pub fn connect(&mut self, payers: u32, paying: payers::Paying) -> Result<f64> {
        let needs = payers::Needs {
            address: self.ready.address,
            identity: self.ready.identity,
            payers,
            paying,
        };
        let payers = Another::start(&self.setup.program, Role::Payers, &needs)?;
        self.payers
            .insert(payers)
            .hear(&self.setup.interrupt, PATIENCE)
    }

    /// Ends the payers as `kill -9` does.
    pub fn kill_payers(&mut self) {
        self.payers = None;
    }

    /// Lets every slot pass so many units, so that every window is open.
    pub fn warm_up(&mut self, units: u64, seconds_max: f64) -> Result<()> {
        let question = plane::Question::WarmUp { units, seconds_max };
        let answer: Result<plane::Answer> =
            self.plane.ask(&self.setup.interrupt, PATIENCE, &question);
        // If the others gave up, that is the reason.
        self.statuses()?;
        answer.map(|_| ())
    }

    /// Forwards what is offered, and says what it took.
    pub fn phase(&mut self, offered: Offered, seconds: f64) -> Result<Phase> {
        // The last credit arrives.
        self.setup.interrupt.sleep(self.setup.size.rest())?;
        let (payee, payers) = self.statuses()?;
        self.offer(offered, seconds)?;
        let plane = self.answer()?;
        let (payee_after, payers_after) = self.statuses()?;
        Ok(Phase {
            plane,
            payee: payee_after.since(payee),
            payers: payers_after.since(payers),
        })
    }

    /// Begins to forward without waiting for the end.
    pub fn offer(&mut self, offered: Offered, seconds: f64) -> Result<()> {
        self.plane.tell(&plane::Question::Run { offered, seconds })
    }

    /// The end of what [`offer`](Self::offer) began.
    pub fn answer(&mut self) -> Result<plane::Answer> {
        self.plane.hear(&self.setup.interrupt, PATIENCE)
    }

    /// How the payee stands.
    pub fn payee(&mut self) -> Result<payee::Status> {
        self.ask_payee(payee::Question::Status)
    }

    /// How a channel stands with the payee.
    pub fn channel(&mut self, number: u32) -> Result<ChannelStatus> {
        self.ask_payee(payee::Question::Channel(number))
    }

    fn statuses(&mut self) -> Result<(payee::Status, payers::Status)> {
        let payee = self.payee()?;
        let payers = match &mut self.payers {
            Some(payers) => payers.ask(&self.setup.interrupt, PATIENCE, &payers::Question)?,
            None => payers::Status::default(),
        };
        Ok((payee, payers))
    }

    fn ask_payee<A: DeserializeOwned>(&mut self, question: payee::Question) -> Result<A> {
        self.payee.ask(&self.setup.interrupt, PATIENCE, &question)
    }
}
