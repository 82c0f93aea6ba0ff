//! What an engine asks of its host.

use crate::arch::ids::{Group, Priority, VcpuId};
use crate::engine::Wired;

/// The host's way to make a vCPU look at its interrupts.
///
/// After `kick(v)` returns, the thread of vCPU `v` must come back to [`Vcpu::flush`](super::Vcpu::flush) without any
/// further event: if it is in the guest it leaves it, if it sleeps it wakes, and if it is about to
/// do either it does not. A kick is a token: one that arrives early is not lost
/// ([`crate::host::wait::WaitCell`] is such a token). Nor may it be left to a thread that has kicked the same vCPU before: that one
/// may have been preempted before it did what it has to.
///
/// Any thread may call it; it must not block, and must not call the engine back. Nothing is reclaimed while it runs, and
/// others who make interrupts pending for the same vCPU rely on it.
pub trait Kick: Send + Sync + 'static {
    /// Kicks one vCPU.
    fn kick(&self, vcpu: VcpuId);

    /// Whether this host wants [offers](Kick::offer) instead of kicks where an offer will do. Asked once, when the engine is made.
    fn wants_offers(&self) -> bool {
        false
    }

    /// An enabled interrupt has been posted to a vCPU, is forwarded to it, and looks pending. For a host that
    /// [wants](Kick::wants_offers) to know: one whose guest acknowledges by accesses that trap, and that therefore only has to see
    /// to it that the guest is interrupted ([`crate::host::line::LineCell`]). The vCPU comes back to [`Vcpu::flush`](super::Vcpu::flush) before the guest's acknowledge.
    ///
    /// Called for each post of such an interrupt, whether or not something was posted before, and again when something about one
    /// changes that has been posted and not been seen yet. What concerns nobody but a guest that acknowledges (a line has
    /// fallen, an interrupt has been disabled) is then not told at all: it is seen at the latest with the acknowledge. What others wait for
    /// (an interrupt moves to another vCPU, state is read) is still a kick.
    fn offer(&self, vcpu: VcpuId, group: Group, priority: Priority) {
        let _ = (group, priority);
        self.kick(vcpu);
    }

    /// Waits until `done`, which vCPU `vcpu` brings about when it leaves the guest; it has been kicked. Called by who reads or writes
    /// the active state of an interrupt that is in that vCPU's list registers, and never by injections, entries and exits.
    ///
    /// May return before `done`, if the calling thread has to stop. A register of pending state is then answered as it was when `vcpu` entered the guest. An
    /// interrupt that was pending or active then is answered as active: a guest that waits for it to be handled asks again. What is written is written, and
    /// takes effect before `vcpu` enters the guest once more.
    ///
    /// The default looks again and again: with the feature `std` it lets other threads run in between, then sleeps for up to a millisecond
    /// between looks, so that a real-time thread does not keep that vCPU's thread off its CPU. It does not return before `done`. A host that would rather be
    /// told sleeps until [`Kick::exited`].
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

    /// vCPU `vcpu` has left its guest, and somebody [waits](Kick::wait_for_exit) for that: everybody whose wait began before is done. Called by the vCPU's thread, and only if
    /// somebody waits; like a kick, it must not block, and must not call the engine back. Does nothing by default.
    fn exited(&self, vcpu: VcpuId) {
        let _ = vcpu;
    }

    /// The level of the input of an interrupt that has been [mapped](super::Injector::map_phys) to a physical one and is
    /// level-sensitive. The engine asks when the guest has ended the interrupt: nobody else saw the line fall, as the
    /// guest deactivates the physical interrupt without an exit. It may ask more than once: a host that sets the level at the same time
    /// changes its answer first. `None`, the default: as it was set last.
    fn input_level(&self, irq: Wired) -> Option<bool> {
        let _ = irq;
        None
    }

    /// ITS number `its` has worked off a part of its command queue, and has more to do. `true`: the host calls
    /// [`Its::work`](crate::its::Its::work) soon (through a handle that it must not keep for ever, as that keeps the controller, which keeps the host), from
    /// any thread, but not from here, and the vCPU whose guest gave the commands comes back to its
    /// guest. `false`, the default: the commands are gone on with before it does.
    fn commands_left(&self, its: usize) -> bool {
        let _ = its;
        false
    }

    /// An access to the redistributor of vCPU `vcpu` has begun something that takes longer than one access may: LPIs are cleared, configured or read from a pending table. The next
    /// accesses to its registers go on with it. A host that would rather not leave it to the guest calls [`GicBus::work`](crate::gic::GicBus::work) until that returns
    /// false, from any thread, but not from here.
    ///
    /// At the bound on dead objects, a piece waits for unmapped LPIs that lie in vCPUs' mailboxes. So a vCPU's own thread enters and
    /// exits ([`GicCpu::enter`](crate::gic::GicCpu::enter)) between two calls, and another thread calls again later, not in a loop. Does nothing by default.
    fn lpis_left(&self, vcpu: VcpuId) {
        let _ = vcpu;
    }

    /// Deactivates a physical interrupt, because the virtual one that is tied to it was deactivated where no hardware does that:
    /// without a list register, by a write to its active state, or at a software CPU interface ([`crate::gic::GicCpu`]). Does nothing by
    /// default.
    fn deactivate_phys(&self, pintid: u16) {
        let _ = pintid;
    }
}
