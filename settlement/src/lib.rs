//! Submits claims and closes, and answers for the chains.
