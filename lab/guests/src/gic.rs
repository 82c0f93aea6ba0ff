//! The common interface of GICv2 and GICv3, for the checks of both.

use crate::mmio::{read32, write8, write32};

/// The usual priority. Checks use 16 levels, which every GIC has. Lower numbers are more urgent.
pub const USUAL: u8 = 0xa0;
/// INTIDs from this one to 8191 stand for no interrupt.
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

/// An interrupt controller, as the calling CPU sees it. SGIs and PPIs are that CPU's own.
pub trait Gic: Sized + 'static {
    /// Returns the frame with the registers of an interrupt.
    fn frame(intid: u32) -> u64;
    /// Waits until writes to that frame take effect, where the architecture allows a delay.
    fn settle(intid: u32);
    /// Enables or disables the forwarding of interrupts to CPUs.
    fn forward(on: bool);
    /// Returns the number of interrupts of the distributor.
    fn interrupts() -> u32;
    /// Enables this CPU's CPU interface, with all priorities unmasked.
    fn init_cpu();

    fn acknowledge() -> u32;
    fn end(iar: u32);
    fn deactivate(iar: u32);
    fn highest_pending() -> u32;
    fn running_priority() -> u32;
    fn set_mask(priority: u8);
    /// Only the priority bits from `lowest` up decide preemption.
    fn set_group_bits(lowest: u32);
    /// Sets whether `end` leaves the interrupt active.
    fn set_split_end(on: bool);
    /// The group of the checks' interrupts.
    const GROUP: bool;

    fn route(spi: u32, cpu: usize);
    fn send_sgi(sgi: u32, cpu: usize);

    /// Returns the INTID in a value of `acknowledge`.
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

    /// Resets the state of the 32 interrupts from `first`.
    fn reset_word(first: u32) {
        let frame = Self::frame(first);
        let word = u64::from(first / 32) * 4;
        // The enables of SGIs may be fixed. It is no error that they cannot be cleared.
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
