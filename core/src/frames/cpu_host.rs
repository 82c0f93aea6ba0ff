//! The interface between the registers of a CPU interface and their vCPU.
//!
//! GICC and `ICC_*_EL1` are written against this trait, not against a handle. A host that keeps its
//! own list registers performs its guest's accesses with the same code.

use crate::arch::cpuif::{CpuInterface, Deactivation};
use crate::arch::ids::{Intid, VcpuId};
use crate::arch::lr::ListRegisters;
use crate::engine::{Injector, Wired};
use crate::frames::machine::Machine;

/// The vCPU that a CPU interface belongs to.
pub(crate) trait CpuHost {
    /// The handle through which SGIs are sent.
    type Injector: Injector;

    /// The vCPU's number.
    fn id(&self) -> VcpuId;

    /// The machine that the vCPU is in.
    fn machine(&self) -> &Machine;

    /// The handle through which SGIs are sent.
    fn injector(&self) -> &Self::Injector;

    /// The software CPU interface.
    fn cpu_interface(&mut self) -> &mut CpuInterface;

    /// Deactivates an interrupt that is active at this vCPU without a list register. Returns
    /// whether it was active.
    fn deactivate_here(&mut self, intid: Intid) -> bool;

    /// Deactivates the physical interrupt of a hardware-mapped interrupt after the virtual one has
    /// been deactivated. Does nothing if there is no physical interrupt. A CPU interface in
    /// hardware needs no software for this.
    fn end_phys(&self, done: Option<Deactivation>);

    /// Deactivates an interrupt wherever it is active, after a write to a DIR register. `listed` is
    /// the INTID in the list register: for GICv2's SGIs it includes the source.
    fn deactivate(&mut self, listed: Intid, intid: Intid) {
        if let Some(done) = self.cpu_interface().deactivate(listed) {
            return self.end_phys(Some(done));
        }
        if !self.deactivate_here(intid) && intid.is_spi() {
            // An SPI may be active at another vCPU (IHI 0069, 4.1; IHI 0048B, 3.2.1). If it does
            // not exist, the write has no effect.
            let _ = self.injector().set_active(Wired::Spi(intid), false);
        }
    }

    /// Completes a write to an EOIR register that the CPU interface has performed.
    fn ended(&mut self, intid: Intid, done: Option<Deactivation>) {
        // The interrupt has no list register. The CPU interface only counts such ends; the INTID is
        // known here.
        if self.cpu_interface().take_eoi_count() != 0 {
            self.deactivate_here(intid);
        }
        self.end_phys(done);
    }
}
