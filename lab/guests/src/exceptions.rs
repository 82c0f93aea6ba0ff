//! Exception vectors. Interrupts go to the payload's handler; any other exception ends the machine.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::{mmio, mrs, msr, println, psci, smp};

// An interrupt may arrive in any code, so all registers that a function may change are saved,
// including floating point. ELR and SPSR are saved too, since a handler may allow a more urgent
// interrupt.
global_asm!(
    r#"
    .macro entry to, kind
    .balign 0x80
    sub     sp, sp, #800
    stp     x0, x1, [sp]
    mov     x0, #\kind
    b       \to
    .endm

    .section .vectors, "ax"
    .global vectors
    .balign 0x800
vectors:
    entry   unexpected, 0
    entry   unexpected, 1
    entry   unexpected, 2
    entry   unexpected, 3
    entry   unexpected, 4           // EL1: synchronous
    entry   interrupt, 5            // EL1: IRQ
    entry   unexpected, 6           // EL1: FIQ
    entry   unexpected, 7           // EL1: SError
    entry   unexpected, 8
    entry   unexpected, 9
    entry   unexpected, 10
    entry   unexpected, 11
    entry   unexpected, 12
    entry   unexpected, 13
    entry   unexpected, 14
    entry   unexpected, 15

unexpected:
    bl      report_unexpected
    b       .

interrupt:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x29, [sp, #144]
    mrs     x0, elr_el1
    mrs     x1, spsr_el1
    stp     x30, x0, [sp, #160]
    mrs     x2, fpsr
    stp     x1, x2, [sp, #176]
    stp     q0, q1, [sp, #192]
    stp     q2, q3, [sp, #224]
    stp     q4, q5, [sp, #256]
    stp     q6, q7, [sp, #288]
    stp     q16, q17, [sp, #320]
    stp     q18, q19, [sp, #352]
    stp     q20, q21, [sp, #384]
    stp     q22, q23, [sp, #416]
    stp     q24, q25, [sp, #448]
    stp     q26, q27, [sp, #480]
    stp     q28, q29, [sp, #512]
    stp     q30, q31, [sp, #544]
    stp     q8, q9, [sp, #576]
    stp     q10, q11, [sp, #608]
    stp     q12, q13, [sp, #640]
    stp     q14, q15, [sp, #672]
    bl      handle_interrupt
    msr     daifset, #2
    ldp     q14, q15, [sp, #672]
    ldp     q12, q13, [sp, #640]
    ldp     q10, q11, [sp, #608]
    ldp     q8, q9, [sp, #576]
    ldp     q30, q31, [sp, #544]
    ldp     q28, q29, [sp, #512]
    ldp     q26, q27, [sp, #480]
    ldp     q24, q25, [sp, #448]
    ldp     q22, q23, [sp, #416]
    ldp     q20, q21, [sp, #384]
    ldp     q18, q19, [sp, #352]
    ldp     q16, q17, [sp, #320]
    ldp     q6, q7, [sp, #288]
    ldp     q4, q5, [sp, #256]
    ldp     q2, q3, [sp, #224]
    ldp     q0, q1, [sp, #192]
    ldp     x1, x2, [sp, #176]
    msr     fpsr, x2
    ldp     x30, x0, [sp, #160]
    msr     elr_el1, x0
    msr     spsr_el1, x1
    ldp     x18, x29, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp]
    add     sp, sp, #800
    eret
"#
);

/// The function for interrupts. It runs on the CPU that takes one, with interrupts masked.
pub type Handler = fn();

static HANDLER: AtomicUsize = AtomicUsize::new(0);

/// Installs a handler that panics. An interrupt is an error until a payload sets its handler.
pub fn init() {
    set_handler(none);
}

/// Sets the handler of all CPUs.
pub fn set_handler(handler: Handler) {
    HANDLER.store(handler as usize, Relaxed);
    mmio::dsb();
}

fn none() {
    panic!("an interrupt where none may come");
}

#[unsafe(no_mangle)]
extern "C" fn handle_interrupt() {
    let handler = HANDLER.load(Relaxed);
    // SAFETY: only `set_handler` stores there.
    let handler: Handler = unsafe { core::mem::transmute(handler) };
    handler();
}

#[unsafe(no_mangle)]
extern "C" fn report_unexpected(vector: u64) -> ! {
    println!(
        "FAIL exception: cpu {} vector {vector} esr {:#x} elr {:#x} far {:#x}",
        smp::cpu(),
        mrs!("esr_el1"),
        mrs!("elr_el1"),
        mrs!("far_el1"),
    );
    psci::system_off()
}

/// Unmasks interrupts.
pub fn unmask() {
    msr!("daif", mrs!("daif") & !(1 << 7));
}

/// Masks interrupts.
pub fn mask() {
    msr!("daif", mrs!("daif") | 1 << 7);
    mmio::isb();
}

/// Runs `what` with interrupts masked, and then restores the previous mask.
pub fn masked<T>(what: impl FnOnce() -> T) -> T {
    let before = mrs!("daif");
    mask();
    let result = what();
    msr!("daif", before);
    result
}

/// Sleeps until an interrupt is signaled, masked or not.
pub fn wait() {
    // SAFETY: these instructions only wait.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}
