//! Runs the whole product in three network namespaces and reconciles it.
