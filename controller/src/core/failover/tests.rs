//! Promises of fail-over.
