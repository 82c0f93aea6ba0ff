//! The host's side of a machine on one thread. Kicks are remembered. A vCPU that is waited for
//! leaves the guest at once.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use vgic_core::Vgic;
use vgic_core::engine::Kick;
use vgic_core::gic::GicCpu;
use vgic_core::ids::VcpuId;

/// A vCPU, shared by its own thread and by the steps that wait for it.
pub(crate) type Cpu = Rc<RefCell<GicCpu<Vgic>>>;

thread_local! {
    static CPUS: RefCell<Vec<Cpu>> = const { RefCell::new(Vec::new()) };
    static KICKED: Cell<u16> = const { Cell::new(0) };
    static WAITS: Cell<usize> = const { Cell::new(0) };
}

pub(crate) struct Host;

impl Kick for Host {
    fn kick(&self, vcpu: VcpuId) {
        KICKED.set(KICKED.get() | 1 << vcpu.0);
    }

    fn wait_for_exit(&self, vcpu: VcpuId, done: &dyn Fn() -> bool) {
        assert!(is_kicked(vcpu.index()), "waits for vCPU {}, which was not kicked", vcpu.0);
        CPUS.with_borrow(|cpus| {
            let cpu = cpus[vcpu.index()].try_borrow_mut();
            cpu.expect("waits for a vCPU that waits").exit();
        });
        assert!(done(), "waits for vCPU {}, which has left the guest", vcpu.0);
        WAITS.set(WAITS.get() + 1);
    }
}

/// Whether a vCPU has been kicked since it was last entered.
pub(crate) fn is_kicked(vcpu: usize) -> bool {
    KICKED.get() & 1 << vcpu != 0
}

/// Clears a vCPU's kick, because the vCPU is entered.
pub(crate) fn take_kick(vcpu: usize) {
    KICKED.set(KICKED.get() & !(1 << vcpu));
}

/// Sets the vCPUs of the machine that this thread runs now, and resets the kicks and the count of
/// waits.
pub(crate) fn set_cpus(cpus: Vec<Cpu>) {
    KICKED.set(0);
    WAITS.set(0);
    drop(CPUS.replace(cpus));
}

/// The number of times that a vCPU of this machine was waited for.
pub(crate) fn waits() -> usize {
    WAITS.get()
}
