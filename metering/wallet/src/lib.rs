//! Opens a channel and pays for what it counted itself.
