//! Registers that the distributor and the redistributors share: fields for each interrupt,
//! identification, and status.

use super::layout::Field;
use super::routing::{State, group};
use crate::arch::ids::{Group, Intid, Priority, VcpuId};
use crate::engine::{Engine, Injector, Trigger, Wired, WiredConfig};
use crate::frames::machine::Cx;
use crate::frames::mmio::{self, Reg, Rights};
use crate::sync::{AtomicU64, Ordering};

/// The owner of the interrupts in a frame's registers. Fields of all other interrupts are RAZ/WI.
pub(crate) enum Owner<'a> {
    /// The SPIs. Their enable bits are in the state.
    Dist(&'a State),
    /// The private interrupts of a vCPU, regardless of the accessing vCPU.
    Redist(VcpuId),
}

impl Owner<'_> {
    fn irq(&self, intid: Intid) -> Option<Wired> {
        match self {
            Self::Dist(_) => intid.is_spi().then_some(Wired::Spi(intid)),
            Self::Redist(vcpu) => intid.is_private().then_some(Wired::Private(*vcpu, intid)),
        }
    }

    /// Reads one element of a register that begins with INTID `base`. Fields of interrupts that do
    /// not exist read as zero.
    ///
    /// * A pending register also shows an interrupt as pending while its line is asserted (IHI
    ///   0069, 12.9, `GICD_ISPENDR<n>`).
    /// * The clear registers read as the set registers do.
    pub(crate) fn read<E: Engine>(
        &self,
        cx: &Cx<'_, E>,
        field: Field,
        base: u32,
        index: u32,
    ) -> u64 {
        let (count, bits) = shape(field);
        let one = |n| {
            let irq = self.irq(Intid(base + index * count + n))?;
            Some(self.read_one(cx, field, irq)? << (n * bits))
        };
        (0..count).filter_map(one).sum()
    }

    fn read_one<E: Engine>(&self, cx: &Cx<'_, E>, field: Field, irq: Wired) -> Option<u64> {
        let config = || cx.injector.config(irq).ok();
        let value = match field {
            Field::Group => (config()?.group == Group::Group1).into(),
            Field::SetEnable | Field::ClearEnable => match (self, irq) {
                (Self::Dist(state), Wired::Spi(intid)) => state.enabled(intid).into(),
                _ => config()?.enabled.into(),
            },
            Field::SetPending | Field::ClearPending => cx.injector.is_pending(irq).ok()?.into(),
            Field::SetActive | Field::ClearActive => cx.injector.is_active(irq).ok()?.into(),
            Field::Priority => config()?.priority.byte().into(),
            Field::Trigger => match config()?.trigger {
                Trigger::Edge => 0b10,
                Trigger::Level => 0,
            },
        };
        Some(value)
    }

    /// Writes one element. Skips interrupts that do not exist.
    pub(crate) fn write<E: Engine>(
        &self,
        cx: &Cx<'_, E>,
        field: Field,
        base: u32,
        index: u32,
        value: u64,
    ) {
        let (count, bits) = shape(field);
        for n in 0..count {
            if let Some(irq) = self.irq(Intid(base + index * count + n)) {
                let value = value >> (n * bits) & ((1 << bits) - 1);
                self.write_one(cx, field, irq, value);
            }
        }
    }

    fn write_one<E: Engine>(&self, cx: &Cx<'_, E>, field: Field, irq: Wired, value: u64) {
        let injector = cx.injector;
        let bit = value != 0;
        // The engine returns an error only if the interrupt does not exist. Then the write has no
        // effect.
        let _ = match field {
            Field::Group => self.attribute(cx, irq, |c| c.group = group(bit)),
            Field::Priority => self.attribute(cx, irq, |c| c.priority = Priority::new(value as u8)),
            Field::Trigger => configure(cx, irq, |c| {
                c.trigger = if value & 0b10 != 0 { Trigger::Edge } else { Trigger::Level };
            }),
            // Writing 0 to a set or clear register does nothing.
            _ if !bit => Ok(()),
            Field::SetEnable => self.enable(cx, irq, true),
            Field::ClearEnable => self.enable(cx, irq, false),
            Field::SetPending => injector.pulse(irq).map(drop),
            Field::ClearPending => injector.clear_pulse(irq),
            Field::SetActive => injector.set_active(irq, true),
            Field::ClearActive => injector.set_active(irq, false),
        };
    }

    /// Changes an attribute that decides which vCPUs would take an interrupt.
    fn attribute<E: Engine>(
        &self,
        cx: &Cx<'_, E>,
        irq: Wired,
        f: impl Fn(&mut WiredConfig),
    ) -> Outcome {
        configure(cx, irq, f)?;
        if let (Self::Dist(state), Wired::Spi(intid)) = (self, irq) {
            state.attributes_changed(cx, intid);
        }
        Ok(())
    }

    fn enable<E: Engine>(&self, cx: &Cx<'_, E>, irq: Wired, on: bool) -> Outcome {
        match (self, irq) {
            (Self::Dist(state), Wired::Spi(intid)) => {
                state.set_enabled(cx, intid, on);
                Ok(())
            }
            _ => configure(cx, irq, |c| c.enabled = on),
        }
    }
}

type Outcome = Result<(), crate::engine::Error>;

fn configure<E: Engine>(cx: &Cx<'_, E>, irq: Wired, f: impl Fn(&mut WiredConfig)) -> Outcome {
    let changed = |mut config| {
        f(&mut config);
        config
    };
    cx.injector.update(irq, changed).map(drop)
}

/// Returns the number of interrupts in an element of a register, and the number of bits for each.
const fn shape(field: Field) -> (u32, u32) {
    match field {
        Field::Priority => (1, 8),
        Field::Trigger => (16, 2),
        _ => (32, 1),
    }
}

/// GICD_IIDR and GICR_IIDR: product 0x56, variant and revision 0, implementer Arm (0x43b). Guests
/// know this value from every virtual controller (IHI 0069, 12.9).
pub(crate) const IIDR: u64 = 0x5600_043b;

/// GICD_PIDR4 to GICD_CIDR3, and GICR_PIDR4 to GICR_CIDR3, in the order of their offsets.
/// PIDR2.ArchRev is 3: GICv3. `part` is PIDR0, which distinguishes the frames (IHI 0069, 12.9 and
/// 12.11, identification registers).
pub(crate) fn id(index: u32, part: u8) -> u64 {
    const REGISTERS: [u8; 12] = [0x44, 0, 0, 0, 0, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];
    match index {
        4 => part.into(),
        n => REGISTERS.get(n as usize).copied().unwrap_or(0).into(),
    }
}

/// GICD_STATUSR or GICR_STATUSR: the kinds of invalid accesses so far (IHI 0069, 12.9). An access
/// that is refused, or too narrow for its register, is not recorded.
#[derive(Default)]
pub(crate) struct Status(AtomicU64);

impl Status {
    /// A read of an offset that has no register.
    const RRD: u64 = 1 << 0;
    /// A write to an offset that has no register.
    const WRD: u64 = 1 << 1;
    /// A read of a write-only register.
    const RWOD: u64 = 1 << 2;
    /// A write to a read-only register.
    const WROD: u64 = 1 << 3;

    pub(crate) fn get(&self) -> u64 {
        // Relaxed, here and below: nothing else depends on this value.
        self.0.load(Ordering::Relaxed)
    }

    /// Clears the bits that are 1 in `bits`.
    pub(crate) fn clear(&self, bits: u64) {
        self.0.fetch_and(!bits, Ordering::Relaxed);
    }

    /// Records an access without effect.
    pub(crate) fn record<K>(&self, layout: &[Reg<K>], offset: u32, write: bool) {
        let bit = match (mmio::find(layout, offset).map(|reg| reg.rights), write) {
            (None, false) => Self::RRD,
            (None, true) => Self::WRD,
            (Some(Rights::WriteOnly), false) => Self::RWOD,
            (Some(Rights::ReadOnly), true) => Self::WROD,
            (Some(_), _) => return,
        };
        self.0.fetch_or(bit, Ordering::Relaxed);
    }
}
