//! Pays one unit with one hash: vouchers, tokens and both ends of the payment protocol.
