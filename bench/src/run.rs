//! Runs a case: contenders in turn, round after round.

use crate::lane::{Case, Contender, Measurement};
use crate::record::{Peer, Record, Summary, beside, latency};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// More rounds than this add time, not knowledge.
pub const ROUNDS_MAX: u32 = 100;

/// Where and of what a run is made.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Rounds for each contender, at least 1.
    pub rounds: u32,
    /// See [`topnet_machine::machine`].
    pub machine: String,
    /// See [`topnet_machine::commit`].
    pub commit: String,
}

/// Measures `case`. `progress` is told who is next and how many measurements are done; its error
/// ends the run.
pub fn run(
    lane: &str,
    case: Case,
    setting: &Setting,
    mut progress: impl FnMut(&str, u64) -> Result<()>,
) -> Result<Record> {
    let mut contenders: Vec<(String, Contender)> = vec![("topnet".to_owned(), case.ours)];
    contenders.extend(case.peers);
    let mut rounds: Vec<Vec<Measurement>> = vec![Vec::new(); contenders.len()];
    let mut done = 0;
    for round in 1..=setting.rounds {
        for ((name, contender), measured) in contenders.iter_mut().zip(&mut rounds) {
            progress(&format!("{}: {name}, round {round}", case.name), done)?;
            let measurement = contender
                .measure()
                .with_context(|| format!("{}: {name} failed in round {round}", case.name))?;
            measured.push(measurement);
            done += 1;
        }
    }
    let none = || format!("{}: no rounds were asked for", case.name);
    let mut figures = contenders.into_iter().zip(&rounds);
    let (_, own_rounds) = figures.next().with_context(none)?;
    let ours = Summary::of(own_rounds).with_context(none)?;
    let mut peers = BTreeMap::new();
    let mut ratios = BTreeMap::new();
    for ((name, contender), measured) in figures {
        let summary = Summary::of(measured).with_context(none)?;
        ratios.insert(name.clone(), ours.median / summary.median);
        peers.insert(
            name,
            Peer {
                value: summary.median,
                min: summary.min,
                max: summary.max,
                version: contender.version,
                latency: latency(measured),
                beside: beside(measured),
            },
        );
    }
    Ok(Record {
        lane: lane.to_owned(),
        case: case.name,
        metric: case.metric,
        unit: case.unit,
        better: case.better,
        mode: case.mode,
        value: ours.median,
        min: ours.min,
        max: ours.max,
        rounds: own_rounds.len(),
        samples: own_rounds.iter().map(|round| round.samples).sum(),
        cpu_s: own_rounds.iter().map(|round| round.cpu_s).sum(),
        latency: latency(own_rounds),
        beside: beside(own_rounds),
        peers,
        ratios,
        machine: setting.machine.clone(),
        commit: setting.commit.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::Better;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn contenders_take_turns_and_the_record_has_every_field() {
        let order = Rc::new(RefCell::new(String::new()));
        let contender = |name: char, values: [f64; 3]| {
            let order = Rc::clone(&order);
            let mut values = values.into_iter();
            Contender::new(format!("{name} 1.0"), move || {
                order.borrow_mut().push(name);
                Ok(Measurement::new(values.next().unwrap(), 10, 0.5))
            })
        };
        let case = Case {
            name: "letters/write".into(),
            metric: "letters_per_s".into(),
            unit: "1/s".into(),
            better: Better::Higher,
            mode: "one core".into(),
            ours: contender('a', [10.0, 30.0, 20.0]),
            peers: vec![("pen".into(), contender('b', [5.0, 4.0, 3.0]))],
        };
        let setting = Setting {
            rounds: 3,
            machine: "m".into(),
            commit: "c".into(),
        };
        let record = run("letters", case, &setting, |_, _| Ok(())).unwrap();
        assert_eq!(*order.borrow(), "ababab");
        let expected = serde_json::json!({
            "lane": "letters", "case": "letters/write", "metric": "letters_per_s",
            "unit": "1/s", "better": "higher", "mode": "one core",
            "value": 20.0, "min": 10.0, "max": 30.0, "rounds": 3, "samples": 30, "cpu_s": 1.5,
            "peers": {"pen": {"value": 4.0, "min": 3.0, "max": 5.0, "version": "b 1.0"}},
            "ratios": {"pen": 5.0}, "machine": "m", "commit": "c",
        });
        assert_eq!(serde_json::to_value(&record).unwrap(), expected);
    }
}
