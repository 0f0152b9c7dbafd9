//! Messages between processes and to Dapps.
