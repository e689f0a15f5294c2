//! Promises of the voters' agreement.
