//! One TOML file that configures every process.
