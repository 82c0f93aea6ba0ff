//! GICv3: a distributor, a redistributor for each CPU, and a CPU interface of system registers.
//! There is one security state, and all interrupts are in group 1.

use crate::gic::Gic;
use crate::mmio::{isb, read32, read64, write32, write64};
use crate::{mrs, msr, smp};

pub const GICD: u64 = 0x0800_0000;
const GICR: u64 = 0x080a_0000;
const GICR_STRIDE: u64 = 0x2_0000;
const SGI_FRAME: u64 = 0x1_0000;

const GICD_CTLR: u64 = GICD;
const GICD_TYPER: u64 = GICD + 4;
const GICD_IROUTER: u64 = GICD + 0x6000;
const GICR_CTLR: u64 = 0;
const GICR_TYPER: u64 = 8;
const GICR_WAKER: u64 = 0x14;
const GICR_PROPBASER: u64 = 0x70;
const GICR_PENDBASER: u64 = 0x78;
const RWP: u32 = 1 << 31;
const GICR_RWP: u32 = 1 << 3;
const ENABLE_LPIS: u32 = 1;
const ARE: u32 = 1 << 4;
const GROUP1: u32 = 1 << 1;
const WAKER_SLEEP: u32 = 1 << 1;
const WAKER_ASLEEP: u32 = 1 << 2;
/// IROUTER: any CPU.
const ANY: u64 = 1 << 31;
const TYPER_NO_ANY: u32 = 1 << 25;
const TYPER_LPIS: u32 = 1 << 17;

pub struct GicV3;

/// Returns the address of the calling CPU's redistributor.
pub fn redistributor() -> u64 {
    GICR + smp::cpu() as u64 * GICR_STRIDE
}

impl Gic for GicV3 {
    const GROUP: bool = true;

    fn frame(intid: u32) -> u64 {
        if intid < 32 { redistributor() + SGI_FRAME } else { GICD }
    }
    fn settle(intid: u32) {
        if intid < 32 {
            while read32(redistributor() + GICR_CTLR) & GICR_RWP != 0 {}
        } else {
            while read32(GICD_CTLR) & RWP != 0 {}
        }
    }
    fn forward(on: bool) {
        write32(GICD_CTLR, ARE | if on { GROUP1 } else { 0 });
        Self::settle(32);
    }
    fn interrupts() -> u32 {
        ((read32(GICD_TYPER) & 0x1f) + 1) * 32
    }
    fn init_cpu() {
        // CPU 0 relies on the environment that started it, as a kernel without firmware may. KVM
        // and QEMU never hold its interrupts back.
        if crate::smp::cpu() != 0 {
            let waker = redistributor() + GICR_WAKER;
            write32(waker, read32(waker) & !WAKER_SLEEP);
            while read32(waker) & WAKER_ASLEEP != 0 {}
        }
        msr!("S3_0_C12_C12_5", mrs!("S3_0_C12_C12_5") | 1); // ICC_SRE_EL1.SRE
        isb();
        msr!("S3_0_C4_C6_0", 0xff); // ICC_PMR_EL1
        msr!("S3_0_C12_C12_3", 0); // ICC_BPR1_EL1
        msr!("S3_0_C12_C12_4", 0); // ICC_CTLR_EL1
        msr!("S3_0_C12_C12_7", 1); // ICC_IGRPEN1_EL1
        isb();
    }
    fn acknowledge() -> u32 {
        let iar = mrs!("S3_0_C12_C12_0"); // ICC_IAR1_EL1
        crate::mmio::dsb();
        iar as u32
    }
    fn end(iar: u32) {
        msr!("S3_0_C12_C12_1", iar.into()); // ICC_EOIR1_EL1
        isb();
    }
    fn deactivate(iar: u32) {
        msr!("S3_0_C12_C11_1", iar.into()); // ICC_DIR_EL1
        isb();
    }
    fn highest_pending() -> u32 {
        mrs!("S3_0_C12_C12_2") as u32 // ICC_HPPIR1_EL1
    }
    fn running_priority() -> u32 {
        mrs!("S3_0_C12_C11_3") as u32 // ICC_RPR_EL1
    }
    fn set_mask(priority: u8) {
        msr!("S3_0_C4_C6_0", priority.into());
        isb();
    }
    fn set_group_bits(lowest: u32) {
        msr!("S3_0_C12_C12_3", lowest.into());
        isb();
    }
    fn set_split_end(on: bool) {
        msr!("S3_0_C12_C12_4", u64::from(on) << 1);
        isb();
    }
    fn route(spi: u32, cpu: usize) {
        write64(GICD_IROUTER + u64::from(spi) * 8, cpu as u64);
    }
    fn send_sgi(sgi: u32, cpu: usize) {
        send_list(sgi, 1 << cpu);
    }
    fn intid(iar: u32) -> u32 {
        iar & 0xff_ffff
    }
}

/// Sends an SGI to CPUs by their numbers.
pub fn send_list(sgi: u32, cpus: u16) {
    send(u64::from(sgi) << 24 | u64::from(cpus));
}

/// Sends an SGI to all other CPUs.
pub fn send_others(sgi: u32) {
    send(1 << 40 | u64::from(sgi) << 24);
}

/// Writes ICC_SGI1R_EL1, for target lists that no `send_*` function makes.
pub fn send(value: u64) {
    crate::mmio::dsb();
    msr!("S3_0_C12_C11_5", value);
    isb();
}

/// Reads the active priorities of group 1.
pub fn active_priorities() -> u64 {
    mrs!("S3_0_C12_C9_0") // ICC_AP1R0_EL1
}

/// Reads ICC_CTLR_EL1.
pub fn control() -> u64 {
    mrs!("S3_0_C12_C12_4")
}

/// Reads ICC_SRE_EL1.
pub fn system_registers() -> u64 {
    mrs!("S3_0_C12_C12_5")
}

/// Writes ICC_IGRPEN1_EL1: whether this CPU takes interrupts of group 1.
pub fn set_group_enable(on: bool) {
    msr!("S3_0_C12_C12_7", u64::from(on));
    isb();
}

/// Routes an SPI to any CPU. Returns false if this GIC cannot.
pub fn route_any(spi: u32) -> bool {
    if read32(GICD_TYPER) & TYPER_NO_ANY != 0 {
        return false;
    }
    write64(GICD_IROUTER + u64::from(spi) * 8, ANY);
    true
}

/// Reads GICR_TYPER of the calling CPU.
pub fn typer() -> u64 {
    read64(redistributor() + GICR_TYPER)
}

pub fn has_lpis() -> bool {
    read32(GICD_TYPER) & TYPER_LPIS != 0
}

/// Gives this CPU's redistributor its tables, and enables LPIs.
pub fn enable_lpis(properties: u64, id_bits: u64, pending: u64) {
    let base = redistributor();
    // Inner shareable, write-back.
    write64(base + GICR_PROPBASER, properties | id_bits - 1 | 1 << 10 | 7 << 7);
    // PTZ: the table is zero.
    write64(base + GICR_PENDBASER, pending | 1 << 62 | 1 << 10 | 7 << 7);
    crate::mmio::dsb();
    write32(base + GICR_CTLR, read32(base + GICR_CTLR) | ENABLE_LPIS);
    GicV3::settle(0);
}
