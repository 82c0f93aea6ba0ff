//! Pending bits: the words, and the reference-counted blocks of them that LPIs share.

pub(crate) mod block;
pub(crate) mod word;
