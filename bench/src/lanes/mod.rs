//! The lanes. Each is a module of its own.

mod forward;
mod token;

use crate::lane::Lane;
use topnet_lab::interrupt::Interrupt;

/// Every lane, in the order in which they run. What waits in them asks `interrupt`.
pub fn all(interrupt: &Interrupt) -> Vec<Box<dyn Lane>> {
    vec![
        Box::new(token::TokenLane),
        Box::new(forward::ForwardLane::new(interrupt.clone())),
    ]
}
