//! A redistributor, GICR (IHI 0069, 12.11): RD_base and SGI_base. It belongs to its vCPU,
//! regardless of the accessing vCPU.
//!
//! Choices that the architecture leaves open, or leaves to power management:
//!
//! * A redistributor that sleeps forwards nothing. After a reset it is awake, unless the guest
//!   begins with firmware that wakes it ([`Setup::set_firmware`](crate::gic::Setup::set_firmware)).
//!   Kernels that KVM and QEMU boot directly do not write GICR_WAKER, because neither of the two
//!   holds interrupts back for it.
//! * GICR_WAKER.ChildrenAsleep follows ProcessorSleep at once. There is no WakeRequest: interrupts
//!   that are pending for a sleeping vCPU stay pending until it is woken. A redistributor may be
//!   put to sleep while groups are enabled in the CPU interface.
//! * GICR_CTLR.EnableLPIs can be cleared (CES).
//! * GICR_PROPBASER and GICR_PENDBASER ignore writes while EnableLPIs is 1.
//! * The effects of EnableLPIs and GICR_INVALLR can take more than one access: see `left`.

use alloc::sync::Arc;

use super::irq_regs::{IIDR, Owner, Status, id};
use super::layout::{GICR, Gicr};
use super::left::{Left, Switch};
use super::routing::{Flag, State};
use crate::arch::ids::{Intid, VcpuId};
use crate::engine::Engine;
use crate::frames::lpi_tables::{LpiControl, PTZ, Tables};
use crate::frames::machine::{Cx, Machine};
use crate::frames::mmio::{Frame, Reg};
use crate::sync::{AtomicU64, Ordering, update};

/// GICR_CTLR.EnableLPIs.
const ENABLE_LPIS: u64 = 1 << 0;
/// GICR_CTLR.CES: EnableLPIs can be cleared.
const CES: u64 = 1 << 1;
/// GICR_CTLR.IR: GICR_INVLPIR and GICR_INVALLR work.
const IR: u64 = 1 << 2;

/// GICR_CTLR.RWP: a write is still taking effect.
const RWP: u64 = 1 << 3;

/// GICR_WAKER.ProcessorSleep.
const PROCESSOR_SLEEP: u64 = 1 << 1;
/// GICR_WAKER.ChildrenAsleep.
const CHILDREN_ASLEEP: u64 = 1 << 2;

/// GICR_TYPER.PLPIS.
const PLPIS: u64 = 1 << 0;
/// GICR_TYPER.DirectLPI.
const DIRECT_LPI: u64 = 1 << 3;
/// GICR_TYPER.Last.
const LAST: u64 = 1 << 4;

/// The cacheability and shareability fields, bits 58:56 and 11:7, of both table registers.
const ATTRIBUTES: u64 = 0x7 << 56 | 0x1f << 7;
/// The shareability field, bits 11:10.
const SHAREABILITY: u64 = 0x3 << 10;
/// The writable bits of GICR_PROPBASER: attributes, Physical_Address and IDbits.
const PROPBASER: u64 = ATTRIBUTES | 0xf_ffff_ffff_f000 | 0x1f;
/// The writable bits of GICR_PENDBASER: attributes, Physical_Address and PTZ.
const PENDBASER: u64 = ATTRIBUTES | 0xf_ffff_ffff_0000 | PTZ;
/// pINTID of GICR_SETLPIR, GICR_CLRLPIR and GICR_INVLPIR. A write that does not cover it has no
/// effect.
const PINTID: u64 = 0xffff_ffff;

/// GICR_PIDR0.
const PART: u8 = 0x93;

/// The redistributor's state that is not in the engine.
pub(crate) struct Redist {
    vcpu: VcpuId,
    typer: u64,
    state: Arc<State>,
    status: Status,
    propbaser: AtomicU64,
    pendbaser: AtomicU64,
    left: Left,
}

/// A redistributor and the context of an access, for [`Left::work`].
struct Worker<'a, 'c, E: Engine>(&'a Redist, &'a Cx<'c, E>);

impl<E: Engine> Switch for Worker<'_, '_, E> {
    fn enable(&self) -> bool {
        let Self(redist, cx) = self;
        redist.set(cx, Flag::Lpis, true);
        redist.tables().pendbaser & PTZ == 0
    }

    fn tables(&self) -> Tables {
        self.0.tables()
    }
}

impl Redist {
    /// Creates the redistributor of a vCPU that exists. `last`: it ends a region of redistributors.
    pub(crate) fn new(machine: &Machine, vcpu: VcpuId, last: bool, state: &Arc<State>) -> Self {
        Self {
            vcpu,
            typer: typer(machine, vcpu, last),
            state: Arc::clone(state),
            status: Status::default(),
            propbaser: AtomicU64::new(0),
            pendbaser: AtomicU64::new(0),
            left: Left::new(),
        }
    }

    fn set<E: Engine>(&self, cx: &Cx<'_, E>, flag: Flag, on: bool) {
        self.state.set_flag(cx.machine, cx.injector, self.vcpu, flag, on);
    }

    /// GICR_CTLR.EnableLPIs.
    pub(crate) fn has_lpis(&self) -> bool {
        self.state.flag(self.vcpu, Flag::Lpis)
    }

    /// The addresses of the redistributor's LPI tables.
    pub(crate) fn tables(&self) -> Tables {
        // Relaxed: the guest writes these registers before it enables LPIs. A vCPU that writes them
        // at that time races with the vCPU that enables LPIs.
        let [propbaser, pendbaser] =
            [&self.propbaser, &self.pendbaser].map(|base| base.load(Ordering::Relaxed));
        Tables { vcpu: self.vcpu, propbaser, pendbaser, unread: self.left.unread() }
    }

    /// Writes GICR_CTLR.EnableLPIs.
    fn enable_lpis<E: Engine>(&self, cx: &Cx<'_, E>, enable: bool) {
        if enable {
            return self.left.enable(|| self.has_lpis());
        }
        self.left.disable(|| {
            let had = self.has_lpis();
            self.set(cx, Flag::Lpis, false);
            had
        });
    }

    /// Does a piece of the unfinished work, of bounded length. Returns whether any work is
    /// unfinished.
    pub(crate) fn work<E: Engine>(&self, cx: &Cx<'_, E>) -> bool {
        if let Some(lpis) = cx.lpis {
            self.left.work(self.vcpu, lpis, &Worker(self, cx));
        }
        self.left.is_any()
    }

    /// Reads GICR_CTLR.
    fn ctlr(&self) -> u64 {
        let enabled = self.has_lpis() || self.left.is_enabling();
        let rwp = if self.left.is_clearing() { RWP } else { 0 };
        CES | IR | rwp | if enabled { ENABLE_LPIS } else { 0 }
    }

    /// Handles a write that names an LPI. It has no effect unless LPIs are enabled (12.11).
    fn direct<E: Engine, T>(
        &self,
        cx: &Cx<'_, E>,
        value: u64,
        mask: u64,
        f: fn(&LpiControl<E>, Tables, Intid) -> T,
    ) -> Option<T> {
        let lpis = cx.lpis.filter(|_| mask & PINTID == PINTID && self.has_lpis())?;
        Some(f(lpis, self.tables(), Intid((value & PINTID) as u32)))
    }

    /// Writes GICR_PROPBASER or GICR_PENDBASER. The reserved shareability 0b11 is stored as 0.
    fn set_base<E: Engine>(&self, cx: &Cx<'_, E>, base: &AtomicU64, value: u64, mask: u64) {
        if cx.lpis.is_none() || self.has_lpis() || self.left.is_enabling() {
            return;
        }
        let merge = |old| {
            let new: u64 = old & !mask | value & mask;
            if new & SHAREABILITY == SHAREABILITY { new & !SHAREABILITY } else { new }
        };
        update(base, merge);
    }
}

/// GICR_TYPER. CommonLPIAff is 0: all redistributors share one LPI configuration table.
fn typer(machine: &Machine, vcpu: VcpuId, last: bool) -> u64 {
    let affinity = machine.affinities.get(vcpu.index()).map_or(0, |a| a.0);
    // PPInum: 0, 1 or 2 for PPIs up to 31, 1087 or 1119.
    let ppis = u64::from(machine.eppis).div_ceil(32);
    let mut value = u64::from(affinity) << 32 | ppis << 27 | u64::from(vcpu.0) << 8;
    if machine.lpis > 0 {
        value |= PLPIS;
    }
    if machine.has_direct_lpis() {
        value |= DIRECT_LPI;
    }
    if last {
        value |= LAST;
    }
    value
}

impl<E: Engine> Frame<Cx<'_, E>> for &Redist {
    type Kind = Gicr;
    const LAYOUT: &'static [Reg<Gicr>] = GICR;

    fn read(&mut self, cx: &Cx<'_, E>, kind: Gicr, index: u32) -> u64 {
        match kind {
            // UWP is 0: writes take effect before they are completed.
            Gicr::Ctlr if cx.machine.lpis == 0 => 0,
            Gicr::Ctlr => self.ctlr(),
            Gicr::Syncr => self.left.is_configuring().into(),
            Gicr::Iidr => IIDR,
            Gicr::Typer => self.typer,
            Gicr::Statusr => self.status.get(),
            Gicr::Waker if self.state.flag(self.vcpu, Flag::Awake) => 0,
            Gicr::Waker => PROCESSOR_SLEEP | CHILDREN_ASLEEP,
            // Relaxed: a thread that uses these addresses first reads, with Acquire, that LPIs are
            // enabled.
            Gicr::Propbaser => self.propbaser.load(Ordering::Relaxed),
            // PTZ is write-only.
            Gicr::Pendbaser => self.pendbaser.load(Ordering::Relaxed) & !PTZ,
            Gicr::Irqs(field, base) => Owner::Redist(self.vcpu).read(cx, field, base, index),
            Gicr::Id => id(index, PART),
            Gicr::Setlpir | Gicr::Clrlpir | Gicr::Invlpir | Gicr::Invallr | Gicr::Raz => 0,
        }
    }

    fn write(&mut self, cx: &Cx<'_, E>, kind: Gicr, index: u32, value: u64, mask: u64) {
        match kind {
            Gicr::Ctlr if cx.machine.lpis == 0 => {}
            Gicr::Ctlr => self.enable_lpis(cx, value & ENABLE_LPIS != 0),
            Gicr::Setlpir | Gicr::Clrlpir if !cx.machine.has_direct_lpis() => {}
            Gicr::Setlpir => {
                if self.direct(cx, value, mask, LpiControl::set) == Some(true) {
                    self.left.set();
                }
            }
            Gicr::Clrlpir => self.direct(cx, value, mask, LpiControl::clear).unwrap_or(()),
            Gicr::Invlpir => self.direct(cx, value, mask, LpiControl::invalidate).unwrap_or(()),
            Gicr::Invallr if self.has_lpis() => self.left.configure(),
            Gicr::Invallr => {}
            Gicr::Statusr => self.status.clear(value),
            Gicr::Waker => self.set(cx, Flag::Awake, value & PROCESSOR_SLEEP == 0),
            Gicr::Propbaser => self.set_base(cx, &self.propbaser, value, mask & PROPBASER),
            Gicr::Pendbaser => self.set_base(cx, &self.pendbaser, value, mask & PENDBASER),
            Gicr::Irqs(field, base) => {
                Owner::Redist(self.vcpu).write(cx, field, base, index, value);
            }
            Gicr::Iidr | Gicr::Typer | Gicr::Syncr | Gicr::Id | Gicr::Raz => {}
        }
    }

    fn reserved(&mut self, _cx: &Cx<'_, E>, offset: u32, write: bool) {
        self.status.record(GICR, offset, write);
    }
}
