//! Counters of one vCPU. Without the feature `counters`, nothing of this is compiled in.

/// What happened on behalf of one vCPU since the engine was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VcpuCounters {
    /// Injections that made an interrupt for it pending.
    pub injected: u64,
    /// Injections that found it pending already.
    pub coalesced: u64,
    /// Kicks.
    pub kicks: u64,
    /// Entries ([`crate::engine::Vcpu::flush`]).
    pub entries: u64,
    /// Interrupts that the guest acknowledged.
    pub delivered: u64,
    /// Interrupts given to another vCPU.
    pub handed_over: u64,
}

/// Which counter.
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

        /// Counts an event.
        pub(crate) fn add(&self, counter: Counter, n: u64) {
            // Relaxed: a statistic; nothing is published through it.
            self.0[counter as usize].fetch_add(n, Ordering::Relaxed);
        }

        pub(crate) fn get(&self) -> VcpuCounters {
            // Relaxed: as above.
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
