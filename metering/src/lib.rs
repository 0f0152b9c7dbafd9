//! Turns counted units into paid units and raises credit.
