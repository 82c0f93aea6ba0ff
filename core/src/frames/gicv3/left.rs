//! The unfinished work of a redistributor. The amount grows with the number of LPIs that the guest
//! has mapped, or with the size of its tables, so it is done in pieces.
//!
//! * GICR_CTLR.EnableLPIs is cleared: from now on MSIs have no effect. LPIs of this redistributor
//!   are cleared, and LPIs that no ITS has mapped are unmapped. The guest reads GICR_CTLR.RWP as 1
//!   until this is done.
//! * GICR_CTLR.EnableLPIs is set: MSIs have an effect as soon as all LPIs are cleared.
//!   Configurations are read again, and the pending table is read. The guest sees no sign of this
//!   work: an LPI that is pending in the table becomes pending when its bit is read.
//! * GICR_SETLPIR is written while retired objects take up the room: the LPI is mapped and made
//!   pending later. The guest sees no sign of this work.
//! * GICR_INVALLR is written: configurations are read again. The guest reads GICR_SYNCR.Busy as 1
//!   until this is done.
//!
//! See IHI 0069, 12.11. Software waits for RWP after it has cleared EnableLPIs, and before it sets
//! EnableLPIs again or writes the addresses of tables.
//!
//! Each access to the redistributor's registers does a piece of the work, and so does a host that
//! calls [`GicBus::work`](crate::gic::GicBus::work) for the guest. The unfinished work is recorded
//! as a few numbers: nothing is locked, pinned or borrowed between two pieces. One thread works at
//! a time; others wait for the end of a piece.

use crate::arch::ids::{Intid, LPI_BASE, VcpuId};
use crate::engine::Engine;
use crate::frames::lpi_tables::{LpiControl, Tables, work};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

/// LPIs are being cleared.
const CLEARING: u64 = 1 << 0;
/// EnableLPIs has been set, but some LPIs have yet to be cleared.
const ENABLING: u64 = 1 << 1;
/// Configurations are being read.
const CONFIGURING: u64 = 1 << 2;
/// The pending table is being read.
const READING: u64 = 1 << 3;

/// LPIs that the guest has set through GICR_SETLPIR wait to be made pending.
const SETTING: u64 = 1 << 4;

/// The value of `unread` when the pending table has been read completely.
const ALL_READ: u32 = u32::MAX;

/// The unfinished work, in the order in which it is done.
#[derive(Clone, Copy, Default)]
struct Rest {
    /// The first LPI that may have to be cleared.
    clear: Option<Intid>,
    /// Whether LPIs are to be enabled.
    enable: bool,
    /// The first LPI that needs its configuration read.
    configure: Option<Intid>,
    /// The first LPI that needs its bit of the pending table read.
    read: Option<u32>,
    /// Whether LPIs that the guest has set wait to be made pending.
    set: bool,
}

/// The unfinished work of a redistributor.
pub(super) struct Left {
    rest: Mutex<Rest>,
    /// Flags for the parts of `rest`, for readers that do not take the lock. Written under the
    /// lock.
    busy: AtomicU64,
    /// [`Rest::read`], or [`ALL_READ`]. Read and written as `busy` is.
    unread: AtomicU64,
}

/// The redistributor's side of [`Left::work`].
pub(super) trait Switch {
    /// Lets LPIs through from now on. Returns whether there is a pending table to be read.
    fn enable(&self) -> bool;
    /// The addresses of the tables.
    fn tables(&self) -> Tables;
}

impl Left {
    pub(super) fn new() -> Self {
        Self {
            rest: Mutex::new(Rest::default()),
            busy: AtomicU64::new(0),
            unread: AtomicU64::new(ALL_READ.into()),
        }
    }

    fn busy(&self) -> u64 {
        // Acquire: pairs with `note`. A thread that sees a piece of work finished sees its effects.
        self.busy.load(Ordering::Acquire)
    }

    /// GICR_CTLR.RWP.
    pub(super) fn is_clearing(&self) -> bool {
        self.busy() & CLEARING != 0
    }

    /// Whether EnableLPIs has been set, and takes effect when all LPIs are cleared.
    pub(super) fn is_enabling(&self) -> bool {
        self.busy() & ENABLING != 0
    }

    /// GICR_SYNCR.Busy.
    pub(super) fn is_configuring(&self) -> bool {
        self.busy() & CONFIGURING != 0
    }

    /// Whether any work is unfinished.
    pub(super) fn is_any(&self) -> bool {
        self.busy() != 0
    }

    /// The first INTID that has not been read in the pending table.
    pub(super) fn unread(&self) -> u32 {
        // Acquire: as in `busy`.
        self.unread.load(Ordering::Acquire) as u32
    }

    fn note(&self, rest: &Rest) {
        let flags = [
            (rest.clear.is_some(), CLEARING),
            (rest.enable, ENABLING),
            (rest.configure.is_some(), CONFIGURING),
            (rest.read.is_some(), READING),
            (rest.set, SETTING),
        ];
        let busy = flags.iter().filter(|(set, _)| *set).fold(0, |busy, (_, flag)| busy | flag);
        // Release: pairs with `busy` and `unread`. These are swaps, as are all changes of these
        // words.
        self.unread.swap(rest.read.unwrap_or(ALL_READ).into(), Ordering::AcqRel);
        self.busy.swap(busy, Ordering::AcqRel);
    }

    fn change(&self, f: impl FnOnce(&mut Rest)) {
        let mut rest = self.rest.lock();
        f(&mut rest);
        self.note(&rest);
    }

    /// EnableLPIs is set. `enabled` returns whether LPIs are already let through.
    pub(super) fn enable(&self, enabled: impl Fn() -> bool) {
        self.change(|rest| rest.enable |= !enabled());
    }

    /// EnableLPIs is cleared. `disable` shuts LPIs out, and returns whether they were let through
    /// before.
    pub(super) fn disable(&self, disable: impl FnOnce() -> bool) {
        self.change(|rest| {
            rest.enable = false;
            if disable() {
                *rest = Rest { clear: Some(Intid(LPI_BASE)), ..Rest::default() };
            }
        });
    }

    /// All configurations have to be read.
    pub(super) fn configure(&self) {
        self.change(|rest| rest.configure = Some(Intid(LPI_BASE)));
    }

    /// An LPI that the guest has set waits until retired objects have been freed.
    pub(super) fn set(&self) {
        self.change(|rest| rest.set = true);
    }

    /// Does a piece of the unfinished work, of bounded length.
    pub(super) fn work<E: Engine>(&self, vcpu: VcpuId, lpis: &LpiControl<E>, to: &impl Switch) {
        if !self.is_any() {
            return;
        }
        let mut rest: MutexGuard<'_, Rest> = self.rest.lock();
        let mut left = work::MOST;
        while left > 0 {
            let done = if let Some(first) = rest.clear {
                let (done, next) = lpis.clear_some(vcpu, first, left);
                rest.clear = next;
                done
            } else if rest.enable {
                let reads = to.enable();
                let (configure, read) = (Some(Intid(LPI_BASE)), reads.then_some(LPI_BASE));
                *rest = Rest { configure, read, set: rest.set, ..Rest::default() };
                work::LOOK
            } else if let Some(first) = rest.configure {
                let (done, next) = lpis.configure_some(to.tables(), first, left);
                rest.configure = next;
                done
            } else if let Some(first) = rest.read {
                let (done, next) = lpis.read_some(to.tables(), first, left);
                rest.read = next;
                done
            } else if rest.set {
                let (done, more) = lpis.set_late(to.tables(), left);
                rest.set = more;
                done
            } else {
                break;
            };
            left = left.saturating_sub(done.max(1));
        }
        self.note(&rest);
    }
}
