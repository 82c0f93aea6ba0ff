//! Performs accesses for the oracle on two CPUs, and reports their results: MMIO of all widths, and
//! the system registers of the CPU interface. Interrupts stay masked: asserted ones are read from
//! ISR_EL1, and an acknowledge is an ordinary access.
//!
//! The payload talks to the oracle through stdin and stdout of the emulator ([`lab_guests::wire`],
//! [`lab_guests::semihosting`]).

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use lab_guests::mmio::{self, read32, write32};
use lab_guests::semihosting::{File, Mode};
use lab_guests::wire::{
    Kind, MAX_BATCH, OPERATION_SIZE, Operation, Outcome, PMR, RESET, RESULT_SIZE,
};
use lab_guests::{mrs, msr, psci, smp};

// An access that faults is skipped. x17 is then 1, and x16 is lost. Each stub reads into x0, or
// writes x0, and returns.
global_asm!(
    r#"
    .section .vectors, "ax"
    .balign 0x800
    .global skipping_vectors
skipping_vectors:
    .rept 4
    .balign 0x80
    b       .
    .endr
    .balign 0x80                    // EL1: synchronous
    mrs     x16, elr_el1
    add     x16, x16, #4
    msr     elr_el1, x16
    mov     x17, #1
    eret
    .rept 11
    .balign 0x80
    b       .
    .endr

    .section .text.stubs, "ax"
    .balign 8
    .global register_reads, register_writes
register_reads:                     // MRS X0, S3_0_C12_Cm_op2
    .set n, 0
    .rept 128
    .inst   0xd538c000 + (n << 5)
    ret
    .set n, n + 1
    .endr
    .inst   0xd5384600              // ICC_PMR_EL1
    ret
register_writes:
    .set n, 0
    .rept 128
    .inst   0xd518c000 + (n << 5)
    ret
    .set n, n + 1
    .endr
    .inst   0xd5184600
    ret
"#
);

unsafe extern "C" {
    fn skipping_vectors();
    fn register_reads();
    fn register_writes();
}

/// Memory that the two CPUs use in turn: CPU 0 gives CPU 1 a request, and waits for it.
struct Turns<T>(UnsafeCell<T>);

// SAFETY: see above; `smp` orders the accesses of one CPU before those of the other.
unsafe impl<T> Sync for Turns<T> {}

impl<T> Turns<T> {
    /// # Safety
    /// Only the CPU that has the turn may call this, and only one reference may exist at a time.
    #[allow(clippy::mut_from_ref)]
    unsafe fn get(&self) -> &mut T {
        // SAFETY: guaranteed by the caller.
        unsafe { &mut *self.0.get() }
    }
}

const NOTHING: Operation =
    Operation { kind: Kind::Clear, cpu: 0, width: 0, register: 0, address: 0, value: 0 };
static REQUEST: Turns<Operation> = Turns(UnsafeCell::new(NOTHING));
static ANSWER: Turns<(u64, bool, u8)> = Turns(UnsafeCell::new((0, false, 0)));
static BATCH: Turns<[u8; MAX_BATCH * OPERATION_SIZE]> =
    Turns(UnsafeCell::new([0; MAX_BATCH * OPERATION_SIZE]));
static RESULTS: Turns<[u8; MAX_BATCH * RESULT_SIZE]> =
    Turns(UnsafeCell::new([0; MAX_BATCH * RESULT_SIZE]));

#[unsafe(no_mangle)]
fn payload() -> ! {
    smp::start(|_| ());
    smp::on_each(set_up);
    sources::set_up();
    let (Some(input), Some(output)) =
        (File::open(b"/dev/stdin\0", Mode::Read), File::open(b"/dev/stdout\0", Mode::Write))
    else {
        panic!("no semihosting");
    };
    output.write(&RESET.to_le_bytes());
    // SAFETY: only CPU 0 uses them.
    let (batch, results) = unsafe { (BATCH.get(), RESULTS.get()) };
    loop {
        let mut count = [0; 4];
        // The input ends when the oracle ends.
        if !input.read(&mut count) {
            psci::system_off();
        }
        let count = u32::from_le_bytes(count);
        if count == RESET {
            input.close();
            output.close();
            psci::system_reset();
        }
        let count = count as usize;
        assert!(count <= MAX_BATCH, "a batch of {count} operations");
        if !input.read(&mut batch[..count * OPERATION_SIZE]) {
            psci::system_off();
        }
        let operations = batch.chunks_exact(OPERATION_SIZE);
        for (bytes, slot) in operations.zip(results.chunks_exact_mut(RESULT_SIZE)).take(count) {
            let bytes = bytes.first_chunk().expect("chunks of that size");
            let operation = Operation::decode(bytes).expect("an operation");
            slot.copy_from_slice(&perform(operation).encode());
        }
        if !output.write(&results[..count * RESULT_SIZE]) {
            psci::system_off();
        }
    }
}

fn set_up(_: u64) {
    msr!("vbar_el1", skipping_vectors as *const () as u64);
    sources::lower();
    // The cycle counter's overflow may interrupt, and PMCR_EL0.E enables it.
    msr!("pmintenset_el1", 1 << 31);
    msr!("pmcr_el0", 1);
    msr!("cntp_cval_el0", 0);
    msr!("cntv_cval_el0", 0);
    mmio::isb();
}

fn perform(operation: Operation) -> Outcome {
    let cpu = usize::from(operation.cpu);
    // SAFETY: CPU 0 has the turn until `on`, and again after it.
    let (value, faulted, own) = unsafe {
        *REQUEST.get() = operation;
        smp::on(cpu, one, 0);
        *ANSWER.get()
    };
    smp::on(1 - cpu, look, 0);
    // SAFETY: as above.
    let (.., other) = unsafe { *ANSWER.get() };
    let asserted = if cpu == 0 { [own, other] } else { [other, own] };
    Outcome { value, asserted, faulted }
}

fn look(_: u64) {
    mmio::isb();
    // SAFETY: this CPU has the turn.
    unsafe { *ANSWER.get() = (0, false, mrs!("isr_el1") as u8) };
}

fn one(_: u64) {
    // SAFETY: this CPU has the turn.
    let operation = unsafe { *REQUEST.get() };
    let Operation { kind, width, register, address, value, .. } = operation;
    mmio::dsb();
    let (value, faulted) = match kind {
        Kind::Read => read(width, address),
        Kind::Write => write(width, address, value),
        Kind::ReadRegister => call(stub(register_reads as *const (), register), 0),
        Kind::WriteRegister => (0, call(stub(register_writes as *const (), register), value).1),
        Kind::Line => (0, !sources::set(address as u32, value != 0)),
        Kind::Clear => {
            // SAFETY: the oracle names memory of its own.
            unsafe { core::ptr::write_bytes(address as *mut u64, 0, value as usize / 8) };
            (0, false)
        }
    };
    mmio::dsb();
    mmio::isb();
    // SAFETY: this CPU has the turn.
    unsafe { *ANSWER.get() = (value, faulted, mrs!("isr_el1") as u8) };
}

fn stub(table: *const (), register: u8) -> u64 {
    assert!(register <= PMR);
    table as u64 + u64::from(register) * 8
}

/// Calls a stub with `value` in x0. Returns the final x0, and whether the stub faulted.
fn call(stub: u64, value: u64) -> (u64, bool) {
    let (result, faulted): (u64, u64);
    // SAFETY: a stub changes no other registers.
    unsafe {
        asm!("mov x17, xzr", "blr {stub}", stub = in(reg) stub, inout("x0") value => result,
             out("x16") _, out("x17") faulted, out("x30") _, options(nostack));
    }
    (result, faulted != 0)
}

macro_rules! access {
    ($instruction:literal, $address:expr, $value:expr) => {{
        let (result, faulted): (u64, u64);
        // SAFETY: the address is a device's, or in memory that the oracle says is its own.
        unsafe {
            asm!("mov x17, xzr", concat!($instruction, ", [{a}]"), a = in(reg) $address,
                 inout("x0") $value => result, out("x16") _, out("x17") faulted, options(nostack));
        }
        (result, faulted != 0)
    }};
}

fn read(width: u8, address: u64) -> (u64, bool) {
    match width {
        1 => access!("ldrb w0", address, 0_u64),
        2 => access!("ldrh w0", address, 0_u64),
        4 => access!("ldr w0", address, 0_u64),
        _ => access!("ldr x0", address, 0_u64),
    }
}

fn write(width: u8, address: u64, value: u64) -> (u64, bool) {
    let (_, faulted) = match width {
        1 => access!("strb w0", address, value),
        2 => access!("strh w0", address, value),
        4 => access!("str w0", address, value),
        _ => access!("str x0", address, value),
    };
    (0, faulted)
}

/// The sources of level inputs: devices with an interrupt that is always pending, and masked in the
/// device or not.
mod sources {
    use super::{mmio, msr, read32, write32};

    const UART: u64 = 0x0900_0000;
    const RTC: u64 = 0x0901_0000;
    const GPIO: u64 = 0x0903_0000;

    /// Lowers all lines, for PPIs those of the calling CPU. A reset of the machine does not reset
    /// all devices.
    pub(super) fn lower() {
        for intid in [23, 27, 30, 33, 34, 39] {
            set(intid, false);
        }
    }

    /// Sets up the devices. Call it on CPU 0.
    pub(super) fn set_up() {
        // The transmit interrupt stays raised after a sent byte.
        write32(UART + 0x30, 1 | 1 << 8);
        write32(UART, 0);
        assert!(read32(UART + 0x3c) & 1 << 5 != 0, "UARTRIS");
        // Set the alarm to now. If the time has already passed, try again.
        while read32(RTC + 0x14) == 0 {
            write32(RTC + 4, read32(RTC));
        }
        // Pin 0 is low, and interrupts on a low level.
        write32(GPIO + 0x404, 1);
        write32(GPIO + 0x40c, 0);
        assert!(read32(GPIO + 0x414) & 1 != 0, "GPIORIS");
    }

    /// Raises or lowers a line, for a PPI that of the calling CPU. Returns false if there is no
    /// such line.
    pub(super) fn set(intid: u32, high: bool) -> bool {
        match intid {
            33 => write32(UART + 0x38, u32::from(high) << 5),
            34 => write32(RTC + 0x10, high.into()),
            39 => write32(GPIO + 0x410, high.into()),
            23 if high => msr!("pmovsset_el0", 1 << 31),
            23 => msr!("pmovsclr_el0", 1 << 31),
            27 => msr!("cntv_ctl_el0", high.into()),
            30 => msr!("cntp_ctl_el0", high.into()),
            _ => return false,
        }
        mmio::isb();
        true
    }
}
