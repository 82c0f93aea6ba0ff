//! What the registers of a CPU interface need of the vCPU that they belong to.
//!
//! GICC and `ICC_*_EL1` are written against this trait, not against a handle. A host whose list registers are its own
//! performs its guest's accesses with the same code.

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

    /// Deactivates an interrupt that this vCPU has active without a list register. Returns whether it has.
    fn deactivate_here(&mut self, intid: Intid) -> bool;

    /// Ends the physical interrupt of a virtual one that has been deactivated, if it has one. A CPU interface in hardware does that by itself.
    fn end_phys(&self, done: Option<Deactivation>);

    /// Deactivates an interrupt wherever it is active, after a write to a DIR register. A list register knows it as `listed`: GICv2's SGIs have their sources there.
    fn deactivate(&mut self, listed: Intid, intid: Intid) {
        if let Some(done) = self.cpu_interface().deactivate(listed) {
            return self.end_phys(Some(done));
        }
        if !self.deactivate_here(intid) && intid.is_spi() {
            // An SPI may be active at another vCPU (IHI 0069, 4.1; IHI 0048B, 3.2.1). If it does not exist, nothing follows.
            let _ = self.injector().set_active(Wired::Spi(intid), false);
        }
    }

    /// Completes a write to an EOIR register that the CPU interface has performed.
    fn ended(&mut self, intid: Intid, done: Option<Deactivation>) {
        // The interrupt has no list register. The CPU interface only counts such ends; here its INTID is known.
        if self.cpu_interface().take_eoi_count() != 0 {
            self.deactivate_here(intid);
        }
        self.end_phys(done);
    }
}
