//! Reference tracing: reports when a reference is taken or given back, its kind, and the code
//! location.
//!
//! Compiled out unless the feature `trace` is on. Mapping references (`Get`, `Put`), mailbox
//! references (`Post`, `Unpost`) and owner references (`Own`, `Disown`) have separate events, so
//! that each kind can be checked for symmetry.

use crate::arch::ids::Intid;
use crate::lockfree::irq::Irq;

/// The kind of a reference event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Trace {
    /// A counted reference was taken.
    Get,
    /// A counted reference was given back.
    Put,
    /// A route began to keep an interrupt's memory.
    Keep,
    /// A route no longer keeps an interrupt's memory.
    Unkeep,
    /// A mailbox's reference was taken.
    Post,
    /// A mailbox's reference was given back.
    Unpost,
    /// A vCPU's reference was taken.
    Own,
    /// A vCPU's reference was given back.
    Disown,
}

/// One event. If a reference ends because it leaves its scope, `site` is in the code that ends it.
#[derive(Clone, Copy, Debug)]
pub struct TraceEvent {
    /// The kind of the event.
    pub kind: Trace,
    /// The interrupt that is referenced.
    pub intid: Intid,
    /// The code location of the event.
    pub site: &'static core::panic::Location<'static>,
}

/// Receives every event, on the thread on which it happens. The tracer must not call the engine.
pub trait Tracer: Send + Sync + 'static {
    /// Receives one event.
    fn event(&self, event: &TraceEvent);
}

#[cfg(feature = "trace")]
#[track_caller]
pub(crate) fn trace(kind: Trace, irq: &Irq) {
    if let Some(tracer) = &irq.dispatcher().tracer {
        tracer.event(&TraceEvent {
            kind,
            intid: irq.intid(),
            site: core::panic::Location::caller(),
        });
    }
}

#[cfg(not(feature = "trace"))]
#[inline(always)]
pub(crate) fn trace(_kind: Trace, _irq: &Irq) {}
