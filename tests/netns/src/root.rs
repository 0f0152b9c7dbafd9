//! Tests that need root ask here whether they may run.

/// Set by the runner of tests (`cargo xtask test`) for the test binaries it starts elevated.
pub const ROOT_TESTS_ENV: &str = "TOPNET_ROOT_TESTS";

/// True if this test run may make namespaces. Otherwise says so on standard output, and the test
/// returns: `if !root_tests() { return; }`.
///
/// Such tests live in files named `tests/root_*.rs`; the runner counts them as skipped where it
/// may not elevate.
pub fn root_tests() -> bool {
    let granted = std::env::var_os(ROOT_TESTS_ENV).is_some_and(|value| value == "1");
    if !granted {
        println!("skipped: needs root");
    }
    granted
}
