//! Builds a VM's interrupt controller in user space.

use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};
use vgic_core::Vgic;
use vgic_core::engine::Engine;
use vgic_core::gic::{Affinity, Gic, Model, MsiFrame, Setup};
use vgic_core::ids::{Intid, VcpuId};
use vgic_core::its::ItsConfig;
use vgic_core::memory::GuestMemory;

use crate::arch;
use crate::error::kvm;
use crate::lines::Lines;
use crate::msi::MsiInjector;
use crate::runner::Runner;
use crate::signal;
use crate::spi::SpiLine;
use crate::stats::LineStats;
use crate::sysreg::kvm::{self as sysreg, VcpuTraps};
use crate::sysreg::{Traps, Vectors};
use crate::timer::Ppis;
use crate::{Error, fdt};

/// The addresses of GICv2's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GicV2Map {
    /// The distributor (GICD): 4 KiB.
    pub distributor: u64,
    /// The CPU interface (GICC): 8 KiB.
    pub cpu_interface: u64,
    /// The GICv2m frame, if the machine has MSIs.
    pub msi: Option<MsiFrame>,
}

/// The addresses of GICv3's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GicV3Map {
    /// The distributor (GICD): 64 KiB.
    pub distributor: u64,
    /// The redistributors: 128 KiB for each vCPU.
    pub redistributors: u64,
    /// The ITS, if the machine has MSIs.
    pub its: Option<ItsConfig>,
}

/// Returns the affinity that KVM gives to the vCPU with this number.
pub const fn affinity(vcpu: u16) -> Affinity {
    let n = vcpu as u32;
    Affinity(n & 0xf | (n >> 4 & 0xff) << 8 | n >> 12 << 16)
}

/// The configuration of a machine's interrupt controller in user space. [`Machine::build`] turns it
/// into a [`KvmGic`].
#[derive(Clone)]
pub struct Machine {
    setup: Setup,
    vcpus: u16,
    model: Model,
    v2: Option<GicV2Map>,
    v3: Option<(GicV3Map, Arc<dyn GuestMemory>)>,
    ppis: Ppis,
    signal: i32,
}

impl Machine {
    /// Configures a GICv2 with `spis` SPIs and `vcpus` vCPUs (up to 8). A vCPU's number is its
    /// affinity.
    ///
    /// # Errors
    /// [`Error::Setup`]: addresses overlap or are misaligned, or numbers are out of range.
    pub fn gicv2(map: GicV2Map, vcpus: u16, spis: u16) -> Result<Self, Error> {
        // The size of KVM's default address space, in bits.
        let mut setup = Setup::new(40);
        setup.create(Model::V2)?;
        setup.set_spis(spis)?;
        for n in 0..vcpus {
            setup.add_vcpu(Affinity(n.into()))?;
        }
        setup.set_distributor(map.distributor)?;
        setup.set_cpu_interface(map.cpu_interface)?;
        if let Some(frame) = map.msi {
            setup.add_msi_frame(frame)?;
        }
        let (v2, ppis, signal) = (Some(map), Ppis::default(), signal::default());
        Ok(Self { setup, vcpus, model: Model::V2, v2, v3: None, ppis, signal })
    }

    /// Configures a GICv3 with `spis` SPIs and `vcpus` vCPUs. The CPU interface of a GICv3 is a set
    /// of system registers, and stock KVM does not pass accesses to them on to user space.
    /// [`crate::sysreg`] says how they are trapped, at which cost, and which features the guest
    /// loses.
    ///
    /// `memory` contains the guest's instructions and its LPI tables.
    ///
    /// # Errors
    /// [`Error::Setup`]: addresses overlap or are misaligned, or numbers are out of range.
    pub fn gicv3(
        map: GicV3Map,
        vcpus: u16,
        spis: u16,
        memory: Arc<dyn GuestMemory>,
    ) -> Result<Self, Error> {
        let mut setup = Setup::new(40);
        setup.create(Model::V3)?;
        setup.set_spis(spis)?;
        for n in 0..vcpus {
            setup.add_vcpu(affinity(n))?;
        }
        setup.set_distributor(map.distributor)?;
        setup.add_redistributors(map.redistributors, vcpus.into())?;
        if let Some(its) = map.its {
            setup.set_memory(Arc::clone(&memory))?;
            setup.add_its(its)?;
        }
        let (v3, ppis, signal) = (Some((map, memory)), Ppis::default(), signal::default());
        Ok(Self { setup, vcpus, model: Model::V3, v2: None, v3, ppis, signal })
    }

    /// Sets the PPIs of the timers and the PMU, instead of those of [`Ppis::default`].
    /// [`Machine::build`] refuses an INTID that is not a PPI.
    pub fn set_ppis(&mut self, ppis: Ppis) {
        self.ppis = ppis;
    }

    /// Sets the signal that takes vCPUs out of their guests, instead of `SIGRTMIN`. The library
    /// installs its own handler for the signal in the whole process, and each thread that attaches
    /// a vCPU unblocks the signal. A real-time signal cannot be sent while `RLIMIT_SIGPENDING`
    /// signals of the process's user are queued; the sender waits until it can.
    pub fn set_kick_signal(&mut self, number: i32) {
        self.signal = number;
    }

    /// Returns the core's configuration, for settings without a method here: bounds, and the number
    /// of list registers.
    pub fn setup(&mut self) -> &mut Setup {
        &mut self.setup
    }

    /// Checks whether the kernel and the host support this library. [`Machine::build`] performs the
    /// same check; a VMM calls this function to find out earlier.
    ///
    /// # Errors
    /// [`Error::WrongArchitecture`], [`Error::Capability`].
    pub fn check_host(vm: &VmFd) -> Result<(), Error> {
        if let Some(host) = arch::NOT_ARM64 {
            return Err(Error::WrongArchitecture(host));
        }
        if vm.check_extension_raw(arch::CAP_ARM_USER_IRQ.into()) == 0 {
            return Err(Error::Capability {
                name: "KVM_CAP_ARM_USER_IRQ",
                number: arch::CAP_ARM_USER_IRQ,
                since: "Linux 4.12",
            });
        }
        Ok(())
    }

    /// Creates the interrupt controller of `vm`. The VM must have no interrupt controller in the
    /// kernel.
    ///
    /// # Errors
    /// Those of [`Machine::check_host`], and for a GICv3 those of
    /// [`crate::sysreg::kvm::breakpoints`]; [`Error::Setup`] if the configuration is incomplete;
    /// [`Error::NotPpi`]; [`Error::Signal`].
    pub fn build(self, vm: &Arc<VmFd>) -> Result<KvmGic, Error> {
        Self::check_host(vm)?;
        self.ppis.check()?;
        let breakpoints = match self.model {
            Model::V2 => 0,
            Model::V3 => sysreg::breakpoints(vm)?,
        };
        let vectors = Arc::new(Vectors::new());
        signal::install(self.signal)?;
        let lines = Arc::new(Lines::with_signal(self.vcpus, Arc::clone(vm), self.signal));
        let gic = self.setup.init(Arc::clone(&lines) as Arc<dyn vgic_core::engine::Kick>)?;
        Ok(KvmGic { gic, lines, breakpoints, vectors, machine: Arc::new(self) })
    }
}

/// The interrupt controller of a VM, in user space. A handle that is cheap to clone.
#[derive(Clone)]
pub struct KvmGic {
    gic: Gic<Vgic>,
    lines: Arc<Lines>,
    /// The number of breakpoints of each vCPU, for a GICv3.
    breakpoints: usize,
    vectors: Arc<Vectors>,
    machine: Arc<Machine>,
}

impl KvmGic {
    /// Returns the controller: the engine and its frames.
    pub fn gic(&self) -> &Gic<Vgic> {
        &self.gic
    }

    /// Returns the vCPUs' lines.
    pub fn lines(&self) -> &Arc<Lines> {
        &self.lines
    }

    /// Returns the address of a GICv2's GICC.
    pub(crate) fn cpu_interface(&self) -> Option<u64> {
        self.machine.v2.map(|map| map.cpu_interface)
    }

    /// Returns new traps for a vCPU of a GICv3.
    pub(crate) fn traps(&self) -> Option<VcpuTraps> {
        let (_, memory) = self.machine.v3.as_ref()?;
        let traps = Traps::new(self.breakpoints, Arc::clone(&self.vectors));
        Some(VcpuTraps::new(traps, Arc::clone(memory)))
    }

    pub(crate) fn ppis(&self) -> Ppis {
        self.machine.ppis
    }

    /// Attaches a vCPU to the calling thread. The vCPU must have been initialized
    /// (`KVM_ARM_VCPU_INIT`), with `KVM_ARM_VCPU_POWER_OFF` if the guest is to power it on.
    ///
    /// # Errors
    /// On an error, the caller gets the vCPU back.
    ///
    /// * [`Error::AlreadyAttached`]: the vCPU has a runner.
    /// * [`Error::ThreadInUse`]: the calling thread has a runner.
    /// * [`Error::SignalMask`]: the kick signal cannot be unblocked in the calling thread.
    /// * [`Error::Engine`]: the engine has no such vCPU.
    /// * [`Error::CpuLine`]: the VM has an interrupt controller in the kernel, or no vCPU of that
    ///   number.
    /// * [`Error::Kvm`]: the vCPU has not been initialized.
    pub fn attach(&self, id: VcpuId, vcpu: VcpuFd) -> Result<Runner, (Error, VcpuFd)> {
        let cpu = match self.gic.cpu(id) {
            Ok(cpu) => cpu,
            Err(vgic_core::engine::Error::VcpuInUse(id)) => {
                return Err((Error::AlreadyAttached(id), vcpu));
            }
            Err(e) => return Err((e.into(), vcpu)),
        };
        match arch::is_off(&vcpu).map_err(kvm("asking for a vCPU's power state")) {
            Ok(off) => Runner::new(self, cpu, vcpu, !off),
            Err(e) => Err((e, vcpu)),
        }
    }

    /// Returns the line of an SPI.
    ///
    /// # Errors
    /// [`Error::Engine`]: the SPI does not exist, or no participant slot is free.
    pub fn spi(&self, intid: Intid) -> Result<SpiLine, Error> {
        SpiLine::new(self.gic.engine().injector()?, intid)
    }

    /// Returns a handle for a thread that sends MSIs.
    ///
    /// # Errors
    /// [`Error::Engine`]: no participant slot is free.
    pub fn msi_injector(&self) -> Result<MsiInjector, Error> {
        let frames = self.machine.v2.and_then(|map| map.msi);
        let mut injector = MsiInjector::new(self.gic.engine().injector()?, frames.as_slice());
        (0..).map_while(|n| self.gic.its(n)).for_each(|its| injector.add_its(&its));
        Ok(injector)
    }

    /// Returns the counts of one vCPU's lines.
    pub fn line_stats(&self, vcpu: VcpuId) -> LineStats {
        self.lines.stats(vcpu)
    }

    /// Returns the number of vCPUs.
    pub fn vcpus(&self) -> u16 {
        self.machine.vcpus
    }

    /// Writes the nodes of the interrupt controller and the timer. The writer must be inside the
    /// device tree's root node.
    ///
    /// # Errors
    /// [`Error::Fdt`].
    pub fn write_fdt(
        &self,
        fdt: &mut vm_fdt::FdtWriter,
        phandles: fdt::Phandles,
    ) -> Result<(), Error> {
        if let Some(map) = self.machine.v2 {
            fdt::gicv2(fdt, &map, phandles)?;
        }
        if let Some((map, _)) = &self.machine.v3 {
            let redistributors = (map.redistributors, u64::from(self.machine.vcpus) << 17);
            let its = map.its.map(|its| its.base);
            fdt::gicv3(fdt, map.distributor, redistributors, its, phandles)?;
        }
        fdt::timer(fdt, self.machine.ppis, self.machine.vcpus, phandles.gic)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vgic_core::gic::SetupError;

    const MAP: GicV2Map = GicV2Map {
        distributor: 0x0800_0000,
        cpu_interface: 0x0801_0000,
        msi: Some(MsiFrame { base: 0x0802_0000, first: 64, count: 32 }),
    };

    #[test]
    fn overlapping_frames_are_refused() {
        let overlap = |map| match Machine::gicv2(map, 1, 64) {
            Err(Error::Setup(SetupError::Overlap { base, other })) => (base, other),
            other => panic!("{:?}", other.err()),
        };
        let map = GicV2Map { cpu_interface: 0x0800_0000, ..MAP };
        assert_eq!(overlap(map), (0x0800_0000, 0x0800_0000));
        let msi = Some(MsiFrame { base: 0x0801_1000, first: 64, count: 32 });
        assert_eq!(overlap(GicV2Map { msi, ..MAP }), (0x0801_1000, 0x0801_0000));
    }

    #[test]
    fn too_many_vcpus_are_refused() {
        assert!(Machine::gicv2(MAP, 8, 64).is_ok());
        assert!(matches!(
            Machine::gicv2(MAP, 9, 64),
            Err(Error::Setup(SetupError::TooManyVcpus(8)))
        ));
    }

    #[test]
    #[cfg(not(target_arch = "aarch64"))]
    fn another_architecture_says_so() {
        let Ok(kvm) = crate::error::open_kvm() else { return };
        let Ok(vm) = kvm.create_vm() else { return };
        let refused = Machine::gicv2(MAP, 1, 64).unwrap().build(&Arc::new(vm));
        assert!(matches!(refused, Err(Error::WrongArchitecture("x86_64"))));
    }
}
