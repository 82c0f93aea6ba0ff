//! What a redistributor has left to do: work that grows with what the guest has mapped, or with its tables, done in pieces.
//!
//! | the guest writes | and then | it sees |
//! |---|---|---|
//! | GICR_CTLR.EnableLPIs := 0 | MSIs have no effect from then on. LPIs of this redistributor are cleared, and those that no ITS has mapped are unmapped | GICR_CTLR.RWP is 1 until that is done |
//! | GICR_CTLR.EnableLPIs := 1 | MSIs have an effect, as soon as all is cleared. Configurations are read anew, and the pending table is read | nothing: what is pending there comes when it is read |
//! | GICR_SETLPIR, while what is dead takes up the room | the LPI is mapped and made pending | nothing: it comes then |
//! | GICR_INVALLR | configurations are read anew | GICR_SYNCR.Busy is 1 until that is done |
//!
//! (IHI 0069, 12.11. Software waits for RWP after it has cleared EnableLPIs, and before it sets it again or writes the addresses of tables.)
//!
//! A piece is done by each access to the redistributor's registers, and by whoever goes on for the guest
//! ([`GicBus::work`](crate::gic::GicBus::work)). What is left is a few numbers: nothing is locked, pinned or borrowed between two pieces. One thread is at it at a time; others wait for a piece.

use crate::arch::ids::{Intid, LPI_BASE, VcpuId};
use crate::engine::Engine;
use crate::frames::lpi_tables::{LpiControl, Tables, work};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

/// LPIs are being cleared.
const CLEARING: u64 = 1 << 0;
/// EnableLPIs has been set, but something is still to be cleared.
const ENABLING: u64 = 1 << 1;
/// Configurations are being read.
const CONFIGURING: u64 = 1 << 2;
/// The pending table is being read.
const READING: u64 = 1 << 3;

/// LPIs that the guest has set wait to be made pending.
const SETTING: u64 = 1 << 4;

/// Nothing of the pending table is left to be read.
const ALL_READ: u32 = u32::MAX;

/// What is left, in the order in which it is done.
#[derive(Clone, Copy, Default)]
struct Rest {
    /// The first LPI that may have to be cleared.
    clear: Option<Intid>,
    /// LPIs are to be enabled.
    enable: bool,
    /// The first LPI whose configuration is to be read.
    configure: Option<Intid>,
    /// The first LPI whose bit of the pending table is to be read.
    read: Option<u32>,
    /// LPIs wait that the guest has set.
    set: bool,
}

/// What a redistributor has left to do.
pub(super) struct Left {
    rest: Mutex<Rest>,
    /// What there is of that, for who only looks. Written by who holds the lock.
    busy: AtomicU64,
    /// [`Rest::read`], or [`ALL_READ`]. As `busy`.
    unread: AtomicU64,
}

/// What [`Left::work`] does through its redistributor.
pub(super) trait Switch {
    /// LPIs are let through from now on. Returns whether there is a pending table to be read.
    fn enable(&self) -> bool;
    /// Where the tables are.
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
        // Acquire: pairs with `note`: who sees that something is done sees what was done.
        self.busy.load(Ordering::Acquire)
    }

    /// GICR_CTLR.RWP.
    pub(super) fn is_clearing(&self) -> bool {
        self.busy() & CLEARING != 0
    }

    /// EnableLPIs has been set, and takes effect when all is cleared.
    pub(super) fn is_enabling(&self) -> bool {
        self.busy() & ENABLING != 0
    }

    /// GICR_SYNCR.Busy.
    pub(super) fn is_configuring(&self) -> bool {
        self.busy() & CONFIGURING != 0
    }

    /// Whether anything is left.
    pub(super) fn is_any(&self) -> bool {
        self.busy() != 0
    }

    /// First INTID whose bit in the pending table has not been read.
    pub(super) fn unread(&self) -> u32 {
        // Acquire: as `busy`.
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
        // Release: pairs with `busy` and `unread`. Swaps, as all changes of these words are.
        self.unread.swap(rest.read.unwrap_or(ALL_READ).into(), Ordering::AcqRel);
        self.busy.swap(busy, Ordering::AcqRel);
    }

    fn change(&self, f: impl FnOnce(&mut Rest)) {
        let mut rest = self.rest.lock();
        f(&mut rest);
        self.note(&rest);
    }

    /// EnableLPIs is set. `enabled`: whether it is, as of now.
    pub(super) fn enable(&self, enabled: impl Fn() -> bool) {
        self.change(|rest| rest.enable |= !enabled());
    }

    /// EnableLPIs is cleared. `disable` shuts LPIs out if they were let through, and returns whether they were.
    pub(super) fn disable(&self, disable: impl FnOnce() -> bool) {
        self.change(|rest| {
            rest.enable = false;
            if disable() {
                *rest = Rest { clear: Some(Intid(LPI_BASE)), ..Rest::default() };
            }
        });
    }

    /// All configurations are to be read.
    pub(super) fn configure(&self) {
        self.change(|rest| rest.configure = Some(Intid(LPI_BASE)));
    }

    /// An LPI that the guest has set waits for the memory of the dead.
    pub(super) fn set(&self) {
        self.change(|rest| rest.set = true);
    }

    /// Does a part of it, of bounded length.
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
