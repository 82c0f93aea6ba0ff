//! The host of an engine: the callbacks through which an engine reaches the VMM.

use crate::arch::ids::{Group, Priority, VcpuId};
use crate::engine::Wired;

/// The host of an engine. Its main duty is to make a vCPU look at its interrupts.
///
/// After `kick(v)` returns, the thread of vCPU `v` must come back to
/// [`Vcpu::flush`](super::Vcpu::flush) without any further event. If it is in the guest, it leaves;
/// if it sleeps, it wakes; if it is about to do either, it does not. A kick is a token: one that
/// arrives early is not lost ([`WaitCell`](crate::host::wait::WaitCell) is such a token). A host
/// must not leave a kick to another thread that has kicked the same vCPU before: that thread may
/// have been preempted before it carried out its kick.
///
/// Any thread may call these functions. They must not call the engine. All but
/// [`Kick::wait_for_exit`] must not block: nothing is reclaimed while one of them runs, and other
/// threads that make interrupts pending for the same vCPU rely on a kick.
pub trait Kick: Send + Sync + 'static {
    /// Kicks one vCPU.
    fn kick(&self, vcpu: VcpuId);

    /// Whether this host takes [hints](Kick::offer) in place of kicks where a hint suffices. The
    /// engine asks once, when it is made.
    fn wants_offers(&self) -> bool {
        false
    }

    /// A hint: an enabled interrupt has been posted to a vCPU, is forwarded to it, and looks
    /// pending.
    ///
    /// It is for hosts that [take hints](Kick::wants_offers), because their guests acknowledge by
    /// accesses that trap. Such a host only has to interrupt the guest
    /// ([`LineCell`](crate::host::line::LineCell)). The vCPU comes back to
    /// [`Vcpu::flush`](super::Vcpu::flush) before the guest's acknowledge.
    ///
    /// The engine gives a hint for each post of such an interrupt, whether or not another one was
    /// posted before, and again when a posted interrupt changes before its vCPU has seen it. A
    /// change that only matters to a guest that acknowledges (a line falls, an interrupt is
    /// disabled) causes no call: the vCPU sees it with the acknowledge at the latest. A change that
    /// other threads wait for (an interrupt moves to another vCPU, its state is read) is still a
    /// kick.
    ///
    /// The default kicks.
    fn offer(&self, vcpu: VcpuId, group: Group, priority: Priority) {
        let _ = (group, priority);
        self.kick(vcpu);
    }

    /// Waits until `done` returns true, as it does when vCPU `vcpu`, which has been kicked, leaves
    /// the guest.
    ///
    /// A thread calls this to read the pending or the active state of an interrupt in that vCPU's
    /// list registers, or to write the active state. Injections, entries and exits never do.
    ///
    /// It may return early if the calling thread has to stop. A register of pending state then
    /// reads as it was when `vcpu` entered the guest. An interrupt that was pending or active then
    /// reads as active: a guest that waits for it to be handled asks again. Written state takes
    /// effect before `vcpu` enters the guest again.
    ///
    /// The default polls, and does not return before `done`. With the feature `std` it yields
    /// between polls, and then sleeps for up to a millisecond, so that a real-time thread does not
    /// keep that vCPU's thread off its CPU. A host can sleep until [`Kick::exited`] instead.
    fn wait_for_exit(&self, vcpu: VcpuId, done: &dyn Fn() -> bool) {
        let _ = vcpu;
        #[cfg(feature = "std")]
        let mut patience = crate::host::wait::Patience::default();
        while !done() {
            #[cfg(feature = "std")]
            patience.pause();
            #[cfg(not(feature = "std"))]
            core::hint::spin_loop();
        }
    }

    /// vCPU `vcpu` has left its guest, and threads [wait](Kick::wait_for_exit) for that. All waits
    /// that began before are over.
    ///
    /// The vCPU's thread calls this, and only if a thread waits. It must not block, and must not
    /// call the engine. The default does nothing.
    fn exited(&self, vcpu: VcpuId) {
        let _ = vcpu;
    }

    /// Returns the level of the input of a level-sensitive interrupt that is
    /// [mapped](super::Injector::map_phys) to a physical one.
    ///
    /// The engine asks when the guest has ended the interrupt: no other code sees the line fall,
    /// because the guest deactivates the physical interrupt without an exit. It may ask more than
    /// once. A host that sets the level at the same time changes its answer first. `None`, the
    /// default, means the level that was set last.
    fn input_level(&self, irq: Wired) -> Option<bool> {
        let _ = irq;
        None
    }

    /// ITS number `its` has executed a part of its command queue, and has more commands. Returns
    /// whether the host continues the work.
    ///
    /// If `true`, the host calls [`Its::work`](crate::its::Its::work) soon, from any thread, but
    /// not from inside this callback, and the vCPU returns to its guest at once. Do not store the
    /// handle: the controller owns the host, so that would be a reference cycle. If `false` (the
    /// default), the vCPU executes more commands before it returns.
    fn commands_left(&self, its: usize) -> bool {
        let _ = its;
        false
    }

    /// An access to the redistributor of vCPU `vcpu` has begun work that takes longer than one
    /// access may: LPIs are cleared, configured, or read from a pending table.
    ///
    /// The next accesses to its registers continue the work. A host can do so instead: it calls
    /// [`GicBus::work`](crate::gic::GicBus::work) until that returns false, from any thread, but
    /// not from inside this callback.
    ///
    /// At the bound on retired objects, a piece of the work waits for unmapped LPIs in vCPUs'
    /// mailboxes. So a vCPU's own thread enters and exits
    /// ([`GicCpu::enter`](crate::gic::GicCpu::enter)) between two calls, and any other thread calls
    /// again later, not in a loop. The default does nothing.
    fn lpis_left(&self, vcpu: VcpuId) {
        let _ = vcpu;
    }

    /// Deactivates a physical interrupt, because the virtual one that is mapped to it has been
    /// deactivated without hardware: outside a list register, by a write to its active state, or at
    /// a software CPU interface ([`GicCpu`](crate::gic::GicCpu)). The default does nothing.
    fn deactivate_phys(&self, pintid: u16) {
        let _ = pintid;
    }
}
