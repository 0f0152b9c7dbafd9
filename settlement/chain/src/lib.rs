//! Runs ledgers under BFT consensus.
