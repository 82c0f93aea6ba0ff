//! Counters of one vCPU. Without the feature `counters`, the counting is compiled out.

/// Counts of the events on behalf of one vCPU since the engine was created.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VcpuCounters {
    /// Injections that made an interrupt for the vCPU pending.
    pub injected: u64,
    /// Injections that found the interrupt already pending.
    pub coalesced: u64,
    /// Kicks of the vCPU.
    pub kicks: u64,
    /// Guest entries ([`crate::engine::Vcpu::flush`]).
    pub entries: u64,
    /// Interrupts that the guest acknowledged.
    pub delivered: u64,
    /// Interrupts handed over to another vCPU.
    pub handed_over: u64,
}

/// Selects one of the counters.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "counters"), allow(dead_code))]
pub(crate) enum Counter {
    Injected,
    Coalesced,
    Kicks,
    Entries,
    Delivered,
    HandedOver,
}

#[cfg(feature = "counters")]
mod imp {
    use super::{Counter, VcpuCounters};
    use crate::sync::{AtomicU64, CachePadded, Ordering};

    pub(crate) struct Counters(CachePadded<[AtomicU64; 6]>);

    impl Counters {
        pub(crate) fn new() -> Self {
            Self(CachePadded::new(core::array::from_fn(|_| AtomicU64::new(0))))
        }

        /// Adds `n` to a counter.
        pub(crate) fn add(&self, counter: Counter, n: u64) {
            // Relaxed: a statistic; nothing is published through it.
            self.0[counter as usize].fetch_add(n, Ordering::Relaxed);
        }

        pub(crate) fn get(&self) -> VcpuCounters {
            // Relaxed: a statistic; nothing is published through it.
            let get = |counter: Counter| self.0[counter as usize].load(Ordering::Relaxed);
            VcpuCounters {
                injected: get(Counter::Injected),
                coalesced: get(Counter::Coalesced),
                kicks: get(Counter::Kicks),
                entries: get(Counter::Entries),
                delivered: get(Counter::Delivered),
                handed_over: get(Counter::HandedOver),
            }
        }
    }
}

#[cfg(not(feature = "counters"))]
mod imp {
    use super::Counter;

    pub(crate) struct Counters(());

    impl Counters {
        pub(crate) fn new() -> Self {
            Self(())
        }

        #[inline(always)]
        pub(crate) fn add(&self, _counter: Counter, _n: u64) {}
    }
}

pub(crate) use imp::Counters;
