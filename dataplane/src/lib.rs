//! Forwards sessions' packets, counts them and stops at the credit limit.
