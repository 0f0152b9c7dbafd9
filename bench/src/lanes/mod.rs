//! The lanes. Each is a module of its own.

mod token;

use crate::lane::Lane;

/// Every lane, in the order in which they run.
pub fn all() -> Vec<Box<dyn Lane>> {
    vec![Box::new(token::TokenLane)]
}
