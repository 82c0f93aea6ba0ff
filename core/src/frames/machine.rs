//! The machine that the frames are in: its vCPUs, interrupts and addresses.

use alloc::boxed::Box;

use crate::arch::ids::{EPPI_BASE, ESPI_BASE, Intid, PRIVATE_END, PRIVATE_INTIDS, VcpuId};
use crate::engine::{Engine, Wired};
use crate::frames::lpi_tables::LpiControl;

/// A vCPU's affinity: Aff3.Aff2.Aff1.Aff0, as in MPIDR_EL1, with Aff3 in bits 31:24 (the form of
/// GICR_TYPER bits 63:32; IHI 0069, 12.11).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Affinity(pub u32);

impl Affinity {
    /// Converts the fields of MPIDR_EL1: Aff3 in bits 39:32, Aff2 to Aff0 in bits 23:0. Ignores the
    /// other bits.
    pub const fn from_mpidr(mpidr: u64) -> Self {
        Self((mpidr & 0xff_ffff) as u32 | ((mpidr >> 32) as u32 & 0xff) << 24)
    }

    /// Returns the fields as in MPIDR_EL1, with the other bits 0. This is also the form of
    /// GICD_IROUTER.
    pub const fn mpidr(self) -> u64 {
        (self.0 & 0xff_ffff) as u64 | ((self.0 >> 24) as u64) << 32
    }
}

/// A GICv2m frame: MSIs as SPIs (Arm Server Base System Architecture, appendix E). These SPIs are
/// edge-triggered after a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsiFrame {
    /// The address of the frame's 4 KiB.
    pub base: u64,
    /// The first SPI of the frame, as an INTID.
    pub first: u16,
    /// The number of SPIs.
    pub count: u16,
}

/// The properties of the machine that the frames depend on.
pub(crate) struct Machine {
    /// The numbers of SPIs, of extended SPIs, and of extended PPIs of each vCPU.
    pub(crate) spis: u16,
    pub(crate) espis: u16,
    pub(crate) eppis: u16,
    /// The number of LPIs, from INTID 8192 up. 0 if there are none.
    pub(crate) lpis: u32,
    /// The number of ITSs.
    pub(crate) itss: usize,
    /// The affinity of each vCPU.
    pub(crate) affinities: Box<[Affinity]>,
    /// The address of each vCPU's RD_base.
    pub(crate) redists: Box<[u64]>,
    /// Whether the guest begins with firmware
    /// ([`Setup::set_firmware`](crate::gic::Setup::set_firmware)).
    pub(crate) firmware: bool,
}

impl Machine {
    /// Whether guests make LPIs pending through GICR_SETLPIR: if there are LPIs but no ITS.
    pub(crate) fn has_direct_lpis(&self) -> bool {
        self.lpis > 0 && self.itss == 0
    }

    pub(crate) fn vcpus(&self) -> u16 {
        self.affinities.len() as u16
    }

    /// The SGIs and PPIs of a vCPU, extended ones included.
    pub(crate) fn private(&self, vcpu: VcpuId) -> impl Iterator<Item = Wired> + use<> {
        let extended = EPPI_BASE..EPPI_BASE + u32::from(self.eppis);
        (0..PRIVATE_END).chain(extended).map(move |n| Wired::Private(vcpu, Intid(n)))
    }

    /// The SPIs, extended ones included.
    pub(crate) fn shared(&self) -> impl Iterator<Item = Wired> + use<> {
        let some = |base: u32, n: u16| base..base + u32::from(n);
        let spis = some(PRIVATE_INTIDS, self.spis).chain(some(ESPI_BASE, self.espis));
        spis.map(|n| Wired::Spi(Intid(n)))
    }

    /// The wired interrupts that a vCPU can have.
    pub(crate) fn wired(&self, vcpu: VcpuId) -> impl Iterator<Item = Wired> + use<> {
        self.private(vcpu).chain(self.shared())
    }

    /// The vCPU with an affinity.
    pub(crate) fn vcpu(&self, affinity: Affinity) -> Option<VcpuId> {
        self.affinities.iter().position(|&a| a == affinity).map(|n| VcpuId(n as u16))
    }
}

/// The context of an access: the accessing vCPU, and the handles of the engine.
pub(crate) struct Cx<'a, E: Engine> {
    pub(crate) machine: &'a Machine,
    pub(crate) injector: &'a E::Injector,
    /// `None` if the machine has no LPIs.
    pub(crate) lpis: Option<&'a LpiControl<E>>,
    pub(crate) vcpu: VcpuId,
}
