//! Cuts bytes into billing units and shares the counts between processes.
