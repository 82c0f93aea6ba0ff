//! LPIs by INTID: a radix tree, and what is kept in it.

pub(crate) mod lpis;
pub(crate) mod radix;
