// The guest: see main.rs for what it is started with.
    .balign 4096
    .global probe_guest, probe_guest_end, probe_second
probe_guest:
    adr     x2, vectors_room
    cbz     x1, 1f
    adr     x2, vectors_push
1:  msr     vbar_el1, x2
    isb
    mov     w3, #1
    str     w3, [x20]
    tbz     x0, #0, own

    // Redistributor awake; SGIs in group 1 and enabled; the distributor forwards; CPU interface open.
    str     wzr, [x23, #0x14]
    add     x24, x23, #0x10, lsl #12
    mov     w3, #-1
    str     w3, [x24, #0x80]
    mov     w3, #0x20
    str     w3, [x24, #0x100]
    mov     w3, #3
    str     w3, [x25]
    mov     x3, #0xff
    msr     s3_0_c4_c6_0, x3
    mov     x3, #1
    msr     s3_0_c12_c12_7, x3
    isb
    mov     x4, #100
    bl      interrupts
    mov     w3, #2
    str     w3, [x20]
    mov     x4, #1000
    bl      interrupts
    mov     w3, #3
    str     w3, [x20]

own:
    mov     x3, #0x90000000
    msr     nzcv, x3
    udf     #0x42
    brk     #0x1234
    // msr pan, #1; and off again.
    .inst   0xd500419f
    brk     #1
    .inst   0xd500409f
    udf     #2
    mov     x2, sp
    sub     x2, x2, #0x800
    msr     sp_el0, x2
    msr     spsel, #0
    udf     #3
    brk     #4
    tbz     x0, #0, 2f
    mrs     x3, s3_0_c12_c11_3
2:  msr     spsel, #1
    // A register that there is not.
    mrs     x3, s3_0_c12_c9_3
    adr     x21, back
    adr     x2, user
    msr     elr_el1, x2
    mov     x2, #0x60000000
    msr     spsr_el1, x2
    eret

user:
    brk     #0x77
    udf     #7
    mrs     x3, s3_0_c12_c12_0
    brk     #0x78
    svc     #3

back:
    mov     w3, #4
    str     w3, [x20]
    tbz     x0, #1, 5f

    // CPU 1 on, twice.
    mov     x5, #2
3:  movz    x0, #0xc400, lsl #16
    movk    x0, #3
    mov     x1, #1
    mov     x2, x26
    mov     x3, x27
    hvc     #0
    cbnz    x0, 3b
4:  ldr     x3, [x27]
    cbz     x3, 4b
    str     xzr, [x27]
    sub     x5, x5, #1
    cbnz    x5, 3b

5:  mov     w3, #5
    str     w3, [x20]
    movz    x0, #0x8400, lsl #16
    movk    x0, #8
    hvc     #0
    b       .

    // x4 times: SGI 5 to CPU 0, taken and ended. Those that were taken are counted in x6, other acknowledges in x7.
interrupts:
    mov     x6, #0
    mov     x7, #0
6:  movz    x3, #0x0500, lsl #16
    movk    x3, #1
    msr     s3_0_c12_c11_5, x3
    isb
    mrs     x8, s3_0_c12_c12_0
    cmp     x8, #5
    cinc    x6, x6, eq
    cinc    x7, x7, ne
    msr     s3_0_c12_c12_1, x8
    sub     x4, x4, #1
    cbnz    x4, 6b
    str     x6, [x28]
    str     x7, [x28, #8]
    ret

    // CPU 1, whose x0 is where to say that it is on.
probe_second:
    mov     x9, x0
    adr     x2, vectors_room
    msr     vbar_el1, x2
    isb
    mrs     x3, s3_0_c12_c12_5
    str     x3, [x9]
    movz    x0, #0x8400, lsl #16
    movk    x0, #2
    hvc     #0
    b       .

    // What an exception has left, in 64 bytes at x19: where it came to, ESR, ELR, SPSR, SP, PSTATE in three parts.
note:
    mrs     x10, esr_el1
    mrs     x11, elr_el1
    mrs     x12, spsr_el1
    mov     x13, sp
    stp     x9, x10, [x19]
    stp     x11, x12, [x19, #16]
    mrs     x14, daif
    mrs     x15, spsel
    orr     x14, x14, x15, lsl #32
    mrs     x15, currentel
    orr     x14, x14, x15, lsl #40
    mrs     x15, nzcv
    orr     x14, x14, x15
    stp     x13, x14, [x19, #32]
    // PAN, UAO, DIT.
    mrs     x14, s3_0_c4_c2_3
    mrs     x15, s3_0_c4_c2_4
    orr     x14, x14, x15
    mrs     x15, s3_3_c4_c2_5
    orr     x14, x14, x15
    mrs     x15, far_el1
    stp     x14, x15, [x19, #48]
    add     x19, x19, #64
    add     sp, sp, x22
    // SVC: back to EL1.
    lsr     x10, x10, #26
    cmp     x10, #0x15
    b.eq    7f
    add     x11, x11, #4
    msr     elr_el1, x11
    eret
7:  msr     elr_el1, x21
    mov     x11, #0x3c5
    msr     spsr_el1, x11
    eret

    .balign 2048
vectors_room:
    .irp    offset, 0, 0x200, 0x400, 0x600
    .org    vectors_room + \offset
    sub     sp, sp, #0x150
    mov     x9, #\offset
    b       note
    .endr
    .balign 2048
vectors_push:
    .irp    offset, 0, 0x200, 0x400, 0x600
    .org    vectors_push + \offset
    stp     x9, x10, [sp, #-32]!
    mov     x9, #\offset
    b       note
    .endr
    .balign 4096
probe_guest_end:
