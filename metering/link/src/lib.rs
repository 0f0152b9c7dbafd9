//! Carries payment messages over QUIC between two keys.
