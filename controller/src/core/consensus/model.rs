//! Exhaustive check on small bounds.
