//! A vCPU: the loop of its thread, as on a host, and the behavior of its guest.

use std::mem;
use std::sync::Arc;

use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::*;
use vgic_core::ids::*;

use crate::host::{Host, Rng};

/// One vCPU: the loop of its thread, and its guest.
pub(crate) struct Guest<E: Engine> {
    pub(crate) vcpu: E::Vcpu,
    pub(crate) cpu: CpuInterface,
    id: usize,
    host: Arc<Host>,
    pub(crate) rng: Rng,
    /// An interrupt that the guest has taken, but not ended before the last exit.
    held: Option<Intid>,
    /// The vCPU does not wait for a kick: something is pending, or the guest has just done
    /// something.
    busy: bool,
    /// The guest leaves only when it has taken and ended everything, and logs the interrupts that
    /// it takes.
    pub(crate) diligent: bool,
    pub(crate) log: Vec<Intid>,
}

impl<E: Engine> Guest<E> {
    pub(crate) fn new(id: usize, vcpu: E::Vcpu, cpu: CpuInterface, host: Arc<Host>) -> Self {
        let rng = Rng::new(id as u64);
        Self { vcpu, cpu, id, host, rng, held: None, busy: false, diligent: false, log: Vec::new() }
    }

    /// Enters the guest if there is a reason to. Returns whether there was one.
    pub(crate) fn turn(&mut self) -> bool {
        let go = self.host.take_kick(self.id) || self.busy;
        if go {
            self.enter();
        }
        go
    }

    /// Does one entry and exit.
    pub(crate) fn enter(&mut self) {
        let flushed = self.vcpu.flush(&mut self.cpu);
        let acted = self.run_guest();
        self.vcpu.fold(&mut self.cpu);
        self.busy = flushed.pending > 0 || acted;
        self.host.has_exited(self.id);
    }

    /// Powers the vCPU off, if its guest has nothing active. Returns whether it did.
    pub(crate) fn close(&mut self) -> bool {
        if self.held.is_some() {
            return false;
        }
        self.vcpu.close(&mut self.cpu);
        // A vCPU that is powered on again is kicked if there is something for it. Mail that it has
        // while it is off was there before.
        self.busy = self.vcpu.has_mail();
        true
    }

    /// Runs the guest until there is nothing to do. Returns the interrupts that it took, in that
    /// order.
    pub(crate) fn serve(&mut self) -> Vec<Intid> {
        let diligent = mem::replace(&mut self.diligent, true);
        while self.turn() {}
        self.diligent = diligent;
        mem::take(&mut self.log)
    }

    /// Runs the guest between an entry and an exit. Returns whether it did anything.
    fn run_guest(&mut self) -> bool {
        let mut acted = false;
        if let Some(intid) = self.held.take() {
            self.end(intid);
            acted = true;
        }
        let habit = if self.diligent { u32::MAX } else { self.rng.below(8) };
        if habit < 2 {
            self.rng.dawdle();
        }
        while habit != 0
            && let Some(intid) = self.take()
        {
            acted = true;
            if habit < 4 {
                self.rng.dawdle();
            }
            if habit == 1 {
                self.held = Some(intid);
                break;
            }
            self.end(intid);
        }
        if habit < 4 {
            self.rng.dawdle();
        }
        acted
    }

    fn take(&mut self) -> Option<Intid> {
        let intid = self.cpu.iar1();
        if intid == Intid(SPURIOUS) {
            return None;
        }
        self.host.has_taken(self.id, intid);
        if self.diligent {
            self.log.push(intid);
        }
        Some(intid)
    }

    fn end(&mut self, intid: Intid) {
        self.host.is_ended(self.id, intid);
        let _ = self.cpu.eoir1(intid);
    }
}

/// Runs each vCPU for as long as it was kicked or has something to do.
pub(crate) fn settle<E: Engine>(guests: &mut [Guest<E>]) {
    // `count` does not short-circuit: every vCPU takes its turn.
    while guests.iter_mut().map(Guest::turn).filter(|&went| went).count() > 0 {}
    for guest in guests {
        assert!(!guest.vcpu.has_mail(), "vCPU {} was not kicked for its mail", guest.id);
    }
}
