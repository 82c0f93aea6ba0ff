//! What GICv2 and GICv3 have in common, so that most checks are written once.

use crate::mmio::{read32, write8, write32};

/// Priorities that checks use: 16 levels, which every GIC has. Lower numbers are more urgent.
pub const USUAL: u8 = 0xa0;
/// An interrupt number of this or above is none.
pub const SPURIOUS: u32 = 1020;

const IGROUPR: u64 = 0x080;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;

fn bit_of<G: Gic>(register: u64, intid: u32) -> (u64, u32) {
    (G::frame(intid) + register + u64::from(intid / 32) * 4, 1 << (intid % 32))
}

fn set<G: Gic>(register: u64, intid: u32) {
    let (address, bit) = bit_of::<G>(register, intid);
    write32(address, bit);
    G::settle(intid);
}

fn get<G: Gic>(register: u64, intid: u32) -> bool {
    let (address, bit) = bit_of::<G>(register, intid);
    read32(address) & bit != 0
}

/// An interrupt controller, seen by the CPU that calls. SGIs and PPIs are that CPU's own.
pub trait Gic: Sized + 'static {
    /// The frame with the registers of an interrupt.
    fn frame(intid: u32) -> u64;
    /// Waits until writes to that frame have their effect, where the architecture lets them take time.
    fn settle(intid: u32);
    /// Forwards interrupts to CPUs, or not.
    fn forward(on: bool);
    /// How many interrupts the distributor has.
    fn interrupts() -> u32;
    /// The CPU interface of this CPU: on, everything let through.
    fn init_cpu();

    fn acknowledge() -> u32;
    fn end(iar: u32);
    fn deactivate(iar: u32);
    fn highest_pending() -> u32;
    fn running_priority() -> u32;
    fn set_mask(priority: u8);
    /// Only the priority's bits from `lowest` up decide about preemption.
    fn set_group_bits(lowest: u32);
    /// Whether `end` leaves the interrupt active.
    fn set_split_end(on: bool);
    /// The group of interrupts that checks use.
    const GROUP: bool;

    fn route(spi: u32, cpu: usize);
    fn send_sgi(sgi: u32, cpu: usize);

    /// The interrupt's number in what `acknowledge` returned.
    fn intid(iar: u32) -> u32;

    fn enable(intid: u32) {
        set::<Self>(ISENABLER, intid);
    }
    fn disable(intid: u32) {
        set::<Self>(ICENABLER, intid);
    }
    fn is_enabled(intid: u32) -> bool {
        get::<Self>(ISENABLER, intid)
    }
    fn pend(intid: u32) {
        set::<Self>(ISPENDR, intid);
    }
    fn unpend(intid: u32) {
        set::<Self>(ICPENDR, intid);
    }
    fn is_pending(intid: u32) -> bool {
        get::<Self>(ISPENDR, intid)
    }
    fn activate(intid: u32) {
        set::<Self>(ISACTIVER, intid);
    }
    fn clear_active(intid: u32) {
        set::<Self>(ICACTIVER, intid);
    }
    fn is_active(intid: u32) -> bool {
        get::<Self>(ISACTIVER, intid)
    }
    fn set_priority(intid: u32, priority: u8) {
        write8(Self::frame(intid) + IPRIORITYR + u64::from(intid), priority);
    }
    fn set_edge(intid: u32, edge: bool) {
        let address = Self::frame(intid) + ICFGR + u64::from(intid / 16) * 4;
        let bit = 2 << (intid % 16 * 2);
        let others = read32(address) & !bit;
        write32(address, others | if edge { bit } else { 0 });
    }

    /// Everything as after a reset, for the 32 interrupts from `first`.
    fn reset_word(first: u32) {
        let frame = Self::frame(first);
        let word = u64::from(first / 32) * 4;
        // Enables of SGIs may be fixed; that they cannot be cleared is no error.
        write32(frame + ICENABLER + word, !0);
        Self::settle(first);
        write32(frame + ICPENDR + word, !0);
        write32(frame + ICACTIVER + word, !0);
        write32(frame + IGROUPR + word, if Self::GROUP { !0 } else { 0 });
        for intid in (first..first + 32).step_by(4) {
            write32(frame + IPRIORITYR + u64::from(intid), u32::from(USUAL) * 0x0101_0101);
        }
        Self::settle(first);
    }
}
