//! Pending bits: the words, and the reference-counted blocks of words that LPIs share.

pub(crate) mod block;
pub(crate) mod word;
