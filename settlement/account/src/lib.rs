//! Amounts, addresses, keys and ids that money is named by.
