//! The lock that arm_vgic leaves to its user: test-and-test-and-set, inlined as far as the
//! interface allows. There are no interrupts to save and no preemption to disable, so the lock's
//! context costs nothing.

use core::panic::Location;
use core::sync::atomic::{AtomicBool, Ordering};

use ax_sync::interface::{AcquireResult, ContextOps, ContextState, LockMetadata, SpinOps};

const NOTHING: ContextState = ContextState::new(0, 0);

struct Context;

#[ax_crate_interface::impl_interface]
impl ContextOps for Context {
    fn enter(_context: u8) -> ContextState {
        NOTHING
    }
    fn exit(_context: u8, _state: ContextState) {}
    fn irq_return_preempt_enter() -> usize {
        0
    }
    fn irq_return_preempt_exit(_state: usize) {}
    fn hardirq_enter() {}
    fn hardirq_exit() {}
}

struct Spin;

#[ax_crate_interface::impl_interface]
impl SpinOps for Spin {
    fn acquire(
        locked: &AtomicBool,
        _metadata: &LockMetadata,
        _lock_addr: usize,
        _context: u8,
        _subclass: u32,
        _caller: &'static Location<'static>,
    ) -> ContextState {
        // Acquire: pairs with the Release of `release`.
        while locked
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            while locked.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
        }
        NOTHING
    }

    fn try_acquire(
        locked: &AtomicBool,
        _metadata: &LockMetadata,
        _lock_addr: usize,
        _context: u8,
        _subclass: u32,
        _caller: &'static Location<'static>,
    ) -> AcquireResult {
        // Acquire: pairs with the Release of `release`.
        let taken =
            locked.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        AcquireResult::new(taken, NOTHING)
    }

    fn release(locked: &AtomicBool, _lock_addr: usize, _context: u8, _state: ContextState) {
        // Release: pairs with the Acquire of `acquire`.
        locked.store(false, Ordering::Release);
    }

    fn force_release(locked: &AtomicBool, _lock_addr: usize, _context: u8) {
        // Release: pairs with the Acquire of `acquire`.
        locked.store(false, Ordering::Release);
    }

    fn is_locked(locked: &AtomicBool) -> bool {
        locked.load(Ordering::Relaxed)
    }
}
