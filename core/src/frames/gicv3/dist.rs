//! The distributor, GICD (IHI 0069, 12.9), with affinity routing and one security state.

use alloc::sync::Arc;

use super::irq_regs::{IIDR, Owner, Status, id};
use super::layout::{GICD, Gicd};
use super::routing::{State, group};
use crate::arch::ids::{EPPI_BASE, ESPI_BASE, Intid, LPI_BASE, SPI_END, VcpuId};
use crate::engine::{Engine, Error, Injector, Trigger, Wired, WiredConfig};
use crate::frames::machine::{Cx, Machine};
use crate::frames::mmio::{Frame, Reg};

/// GICD_CTLR.ARE, read-as-one: there is no legacy operation.
const ARE: u64 = 1 << 4;
/// GICD_CTLR.DS, read-as-one: there is one security state.
const DS: u64 = 1 << 6;

/// GICD_TYPER.ESPI.
const ESPI: u64 = 1 << 8;
/// GICD_TYPER.MBIS: message-based SPIs.
const MBIS: u64 = 1 << 16;
/// GICD_TYPER.LPIS.
const LPIS: u64 = 1 << 17;
/// GICD_TYPER.A3V: affinity level 3 can be nonzero.
const A3V: u64 = 1 << 24;
/// GICD_TYPER.RSS: affinity level 0 of an SGI's target can be 0 to 255.
const RSS: u64 = 1 << 26;

/// INTID, bits 12:0 of GICD_SETSPI_NSR and GICD_CLRSPI_NSR.
const MESSAGE_INTID: u64 = 0x1fff;

/// GICD_PIDR0.
const PART: u8 = 0x92;

/// The distributor's state that is not in the engine.
pub(crate) struct DistV3 {
    state: Arc<State>,
    status: Status,
    typer: u64,
}

impl DistV3 {
    pub(crate) fn new(machine: &Machine) -> Self {
        Self {
            state: Arc::new(State::new(machine)),
            status: Status::default(),
            typer: typer(machine),
        }
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Configures the interrupts for a reset. PPIs and SPIs are level-sensitive. All interrupts are
    /// in Group 1, as firmware would leave them; if the guest begins with firmware, they are in
    /// Group 0. The architecture leaves both open (IHI 0069, 12.9, `GICD_ICFGR<n>` and
    /// `GICD_IGROUPR<n>`).
    pub(crate) fn reset<I: Injector>(machine: &Machine, injector: &I) -> Result<(), Error> {
        let group = group(!machine.firmware);
        // The engine keeps SGIs edge-triggered.
        let trigger = Trigger::Level;
        let all = (0..machine.vcpus()).flat_map(|vcpu| machine.private(VcpuId(vcpu)));
        all.chain(machine.shared()).try_for_each(|irq| {
            injector.update(irq, |c| WiredConfig { trigger, group, ..c }).map(drop)
        })
    }

    /// Handles a message-based SPI (IHI 0069, 4.5 and 12.9, GICD_SETSPI_NSR). An edge-triggered SPI
    /// becomes pending, and GICD_CLRSPI_NSR makes it not pending. The line of a level-sensitive SPI
    /// is raised, and GICD_CLRSPI_NSR lowers it.
    fn message<E: Engine>(cx: &Cx<'_, E>, value: u64, set: bool) {
        let intid = Intid((value & MESSAGE_INTID) as u32);
        let irq = Wired::Spi(intid);
        // A write with an INTID that is not an existing SPI has no effect.
        let _ = match cx.injector.config(irq).map(|c| c.trigger) {
            Ok(Trigger::Level) => cx.injector.set_level(irq, set),
            Ok(Trigger::Edge) if set => cx.injector.pulse(irq).map(drop),
            Ok(Trigger::Edge) => cx.injector.clear_pulse(irq),
            Err(e) => Err(e),
        };
    }
}

/// GICD_TYPER. CPUNumber is 0, as there is no legacy operation. No1N is 0. num_LPIs is 0: IDbits
/// alone gives the number of LPIs.
fn typer(machine: &Machine) -> u64 {
    // There are 32 * (ITLinesNumber + 1) INTIDs, SGIs and PPIs included. With the most SPIs, the
    // last 32 are not all there.
    let lines = u64::from(machine.spis).div_ceil(32);
    let extended = match u64::from(machine.espis).div_ceil(32) {
        0 => 0,
        n => ESPI | (n - 1) << 27,
    };
    let end = match *machine {
        Machine { lpis: n @ 1.., .. } => LPI_BASE + n,
        Machine { espis: n @ 1.., .. } => ESPI_BASE + u32::from(n),
        Machine { eppis: n @ 1.., .. } => EPPI_BASE + u32::from(n),
        _ => SPI_END,
    };
    // The number of bits of the highest INTID, minus one.
    let id_bits = u64::from((end - 1).ilog2());
    let lpis = if machine.lpis > 0 { LPIS } else { 0 };
    lines | extended | MBIS | lpis | id_bits << 19 | A3V | RSS
}

impl<E: Engine> Frame<Cx<'_, E>> for &DistV3 {
    type Kind = Gicd;
    const LAYOUT: &'static [Reg<Gicd>] = GICD;

    fn read(&mut self, cx: &Cx<'_, E>, kind: Gicd, index: u32) -> u64 {
        match kind {
            // RWP is 0: writes take effect before they are completed.
            Gicd::Ctlr => self.state.ctlr() | ARE | DS,
            Gicd::Typer => self.typer,
            Gicd::Iidr => IIDR,
            Gicd::Statusr => self.status.get(),
            Gicd::Irqs(field, base) => Owner::Dist(&self.state).read(cx, field, base, index),
            Gicd::Router(base) => self.state.route(Intid(base + index)),
            Gicd::Id => id(index, PART),
            Gicd::SetSpi | Gicd::ClrSpi | Gicd::Raz => 0,
        }
    }

    fn write(&mut self, cx: &Cx<'_, E>, kind: Gicd, index: u32, value: u64, mask: u64) {
        match kind {
            Gicd::Ctlr => self.state.set_ctlr(cx, value),
            Gicd::Statusr => self.status.clear(value),
            Gicd::SetSpi => DistV3::message(cx, value, true),
            Gicd::ClrSpi => DistV3::message(cx, value, false),
            Gicd::Irqs(field, base) => {
                Owner::Dist(&self.state).write(cx, field, base, index, value);
            }
            Gicd::Router(base) => self.state.set_route(cx, Intid(base + index), value, mask),
            Gicd::Typer | Gicd::Iidr | Gicd::Id | Gicd::Raz => {}
        }
    }

    fn reserved(&mut self, _cx: &Cx<'_, E>, offset: u32, write: bool) {
        self.status.record(GICD, offset, write);
    }
}
