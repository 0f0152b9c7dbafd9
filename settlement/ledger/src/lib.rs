//! Applies transactions to balances, channels and escrow.
