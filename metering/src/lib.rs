//! Turns counted units into paid units and raises credit.
//!
//! | question | module |
//! |---|---|
//! | who owes what, who may have how much | `topnet-books`, over `topnet-channel`'s `Payee` |
//! | what survives a crash | [`journal`] |
//! | who used what when | `topnet-log`, written by the [`journal`] |
//! | where that is kept | `topnet-archive`, driven by [`archive`] |
//! | the thread that owns books and journal | [`keeper`], reached by [`event`]s |
//! | how payers reach it | [`payments`] |
//! | how the data plane and the chains reach it | [`dataplane`], [`settlement`] |
//! | what other processes may ask | [`service`] |
//!
//! One thread owns the books and the journal and takes turns: hear what happened, read what
//! was counted, write and sync one batch, and only then raise credit and answer. Everything
//! else is a task that passes messages to it through bounded queues, so a flood at the payment
//! port fills a queue and stalls nothing.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod archive;
pub mod dataplane;
pub mod event;
pub mod journal;
pub mod keeper;
pub mod payments;
pub mod run;
pub mod service;
pub mod settlement;
