//! LPIs by INTID: the map, and the radix tree that it is made of.

pub(crate) mod lpis;
pub(crate) mod radix;
