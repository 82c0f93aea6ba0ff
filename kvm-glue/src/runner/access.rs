//! Performs the accesses that a guest exited for.

use vgic_core::gic::{GicCpu, SysReg};
use vgic_core::{MmioError, Vgic};

use super::Devices;
use crate::stats::RunStats;
use crate::sysreg::Icc;

/// Offset of `GICC_IAR` and its value without an interrupt, for the count of spurious acknowledges.
const GICC_IAR: u64 = 0xc;
const SPURIOUS: u32 = 1023;

/// The result of an access.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The interrupt controller performed the access.
    Frame,
    /// A device performed the access.
    Device,
    /// The exit was not an access.
    Nothing,
    Abort,
}

/// The parts of a runner that an access needs.
pub(super) struct Guest<'a> {
    pub(super) cpu: &'a mut GicCpu<Vgic>,
    pub(super) on: &'a mut bool,
    pub(super) stats: &'a mut RunStats,
    pub(super) cpu_interface: Option<u64>,
    /// Whether the IRQ line was high while the guest ran.
    pub(super) line: bool,
}

impl Guest<'_> {
    /// Prepares for an access: powers the engine's side of the vCPU on, since the guest is running,
    /// and lets the CPU interface take in the queued mail.
    pub(super) fn prepare(&mut self) {
        if !*self.on {
            *self.on = true;
            self.cpu.power_on();
        }
        if self.cpu.has_mail() {
            self.cpu.enter();
        }
    }

    /// Maps the controller's result to an outcome. Returns `None` if the address is not one of its
    /// own.
    fn gic(&mut self, result: Result<(), MmioError>) -> Option<Outcome> {
        match result {
            Ok(()) => {
                self.stats.gic_exits += 1;
                Some(Outcome::Frame)
            }
            Err(MmioError::Unmapped(_)) => {
                // A device may take long or take locks; no other thread should wait for this vCPU
                // in the meantime.
                self.cpu.exit();
                self.stats.device_exits += 1;
                None
            }
            Err(_) => {
                self.stats.gic_exits += 1;
                Some(Outcome::Abort)
            }
        }
    }

    pub(super) fn read(
        &mut self,
        address: u64,
        data: &mut [u8],
        devices: &mut impl Devices,
    ) -> Outcome {
        self.prepare();
        let result = self.cpu.read(address, data);
        if let Some(outcome) = self.gic(result) {
            if self.cpu_interface.is_some_and(|base| address == base + GICC_IAR)
                && let Ok(value) = <[u8; 4]>::try_from(&*data)
            {
                let empty = u32::from_le_bytes(value) == SPURIOUS;
                self.stats.acknowledges += 1;
                self.stats.empty += u64::from(empty);
                self.stats.spurious += u64::from(empty && self.line);
            }
            return outcome;
        }
        let found = devices.read(self.cpu.id(), address, data);
        if found { Outcome::Device } else { Outcome::Abort }
    }

    pub(super) fn write(
        &mut self,
        address: u64,
        data: &[u8],
        devices: &mut impl Devices,
    ) -> Outcome {
        self.prepare();
        let result = self.cpu.write(address, data);
        if let Some(outcome) = self.gic(result) {
            return outcome;
        }
        let found = devices.write(self.cpu.id(), address, data);
        if found { Outcome::Device } else { Outcome::Abort }
    }
}

/// Accesses to the system registers of the CPU interface.
impl Icc for Guest<'_> {
    fn read(&mut self, reg: SysReg) -> Option<u64> {
        let value = self.cpu.icc_read(reg)?;
        self.stats.gic_exits += 1;
        if matches!(reg, SysReg::ICC_IAR0_EL1 | SysReg::ICC_IAR1_EL1) {
            let empty = value == u64::from(SPURIOUS);
            self.stats.acknowledges += 1;
            self.stats.empty += u64::from(empty);
            self.stats.spurious += u64::from(empty && self.line);
        }
        Some(value)
    }

    fn write(&mut self, reg: SysReg, value: u64) -> Option<()> {
        self.cpu.icc_write(reg, value)?;
        self.stats.gic_exits += 1;
        Some(())
    }
}
