//! Measures topnet beside its peers.
