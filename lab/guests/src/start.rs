//! The first instructions: an arm64 Image header, then a stack, and the call of Rust code.

use core::arch::global_asm;

use crate::{exceptions, fdt, mmu, smp, uart};

// The header follows Linux's boot protocol, so boot loaders load a payload like Linux: at 0x80000
// from the start of RAM, with the device tree's address in x0 and all other CPUs off.
global_asm!(
    r#"
    .section .head, "ax"
    .global _start
_start:
    b       1f
    .word   0
    .quad   0x80000                 // text_offset
    .quad   image_size
    .quad   0x8                     // flags: 4K pages, little-endian, anywhere
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .word   0
1:  mov     x19, x0
    ldr     x1, =bss_start
    ldr     x2, =bss_end
2:  cmp     x1, x2
    b.hs    3f
    stp     xzr, xzr, [x1], #16
    b       2b
3:  mov     x0, #0
    bl      cpu_setup
    mov     x0, x19
    bl      primary
    b       .

    // Other CPUs come here, with their number in x0.
    .global secondary_start
secondary_start:
    mov     x19, x0
    bl      cpu_setup
    mov     x0, x19
    bl      secondary
    b       .

    // A stack of 64 KiB by the CPU's number (x0), kept in TPIDR_EL1; floating point on; vectors.
cpu_setup:
    msr     tpidr_el1, x0
    ldr     x1, =stacks_start
    add     x0, x0, #1
    lsl     x0, x0, #16
    add     x1, x1, x0
    msr     spsel, #1
    mov     sp, x1
    mov     x0, #(3 << 20)
    msr     cpacr_el1, x0
    ldr     x0, =vectors
    msr     vbar_el1, x0
    isb
    ret
    .ltorg
"#
);

unsafe extern "Rust" {
    /// The payload's main function, on CPU 0. It ends the machine.
    safe fn payload() -> !;
}

#[unsafe(no_mangle)]
extern "C" fn primary(device_tree: u64) -> ! {
    uart::init();
    fdt::read(device_tree);
    if !fdt::word("mmu=off") {
        mmu::build();
        mmu::enable();
    }
    exceptions::init();
    payload()
}

#[unsafe(no_mangle)]
extern "C" fn secondary(cpu: u64) -> ! {
    if !fdt::word("mmu=off") {
        mmu::enable();
    }
    smp::serve(cpu as usize)
}
