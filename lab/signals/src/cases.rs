//! Exceptions: each one kills a process first, and then reaches a handler that returns.
#![allow(unsafe_code, reason = "causing exceptions, and looking at them, is what this is for")]

use std::arch::asm;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};

use libc::{SIGILL, SIGSEGV, SIGTRAP, c_int, c_void, siginfo_t, ucontext_t};

/// The name of each case, and the signal that ends it.
const CASES: &[(&str, c_int)] =
    &[("brk", SIGTRAP), ("undefined", SIGILL), ("gic", SIGILL), ("null", SIGSEGV)];
/// How often each case is caught and returned from.
const ROUNDS: u64 = 50;
const TRAP_BRKPT: c_int = 1;
const ILL_ILLOPC: c_int = 1;

pub(crate) fn all() -> Result<(), String> {
    let myself = std::env::current_exe().map_err(|error| format!("self: {error}"))?;
    for &(case, signal) in CASES {
        let status = Command::new(&myself).args(["die", case]).status();
        let status = status.map_err(|error| format!("{case}: {error}"))?;
        if status.signal() != Some(signal) {
            return Err(format!("{case}: {status}, not signal {signal}"));
        }
        println!("ok {case} kills");
    }
    caught("brk", SIGTRAP, TRAP_BRKPT, brk)?;
    caught("undefined", SIGILL, ILL_ILLOPC, undefined)?;
    // An access to a GIC register that user space does not have. No interrupt controller may answer
    // it.
    caught("gic", SIGILL, ILL_ILLOPC, gic)
}

/// Runs the case with this name, which ends the process.
pub(crate) fn die(case: &str) -> Result<(), String> {
    match case {
        "brk" => _ = brk(),
        "undefined" => _ = undefined(),
        "gic" => _ = gic(),
        // SAFETY: it is deliberately unsound. The read is volatile, so that it happens.
        "null" => {
            _ = unsafe { std::hint::black_box(std::ptr::null::<u8>()).add(8).read_volatile() }
        }
        _ => return Err(format!("{case}: there is no such case")),
    }
    Err(format!("{case}: lived on"))
}

/// Calls the kernel `count` times, for tools that count system calls.
pub(crate) fn getpid(count: u32) -> Result<(), String> {
    for _ in 0..count {
        // SAFETY: a system call without arguments or effect.
        unsafe { libc::syscall(libc::SYS_getpid) };
    }
    Ok(())
}

/// A pattern for registers. An exception must leave all registers unchanged.
const PATTERN: u64 = 0x1234_5678_9abc_def0;

/// Defines a function that runs one instruction between setting registers and comparing them. It
/// returns the instruction's address, and whether the registers were kept.
macro_rules! one {
    ($name:ident, $instruction:literal) => {
        fn $name() -> (u64, bool) {
            let (at, kept, flags): (u64, u64, u64);
            // SAFETY: the handler skips the instruction, or the instruction ends the process. Only
            // declared registers change.
            unsafe {
                asm!(
                    "mov x9, {p}", "mvn x10, {p}", "mov x11, {p}", "mvn x15, {p}", "mov x17, {p}",
                    "adr {at}, 2f",
                    "cmp {p}, {p}",
                    "2:", $instruction,
                    "mrs {flags}, nzcv",
                    "eor x9, x9, {p}", "eon x10, x10, {p}", "eor x11, x11, {p}",
                    "eon x15, x15, {p}", "eor x17, x17, {p}",
                    "orr x9, x9, x10", "orr x9, x9, x11", "orr x9, x9, x15", "orr {kept}, x9, x17",
                    p = in(reg) PATTERN, at = out(reg) at, kept = out(reg) kept, flags = out(reg) flags,
                    out("x9") _, out("x10") _, out("x11") _, out("x15") _, out("x17") _,
                );
            }
            (at, kept == 0 && flags == 0x6000_0000)
        }
    };
}

one!(brk, "brk #0x123");
one!(undefined, "udf #0x123");
one!(gic, "msr s3_0_c12_c12_1, xzr");

static CODE: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);

extern "C" fn handler(_: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes valid pointers. The new program counter skips the instruction.
    unsafe {
        CODE.store((*info).si_code, SeqCst);
        ADDRESS.store((*info).si_addr() as u64, SeqCst);
        (*context.cast::<ucontext_t>()).uc_mcontext.pc += 4;
    }
    COUNT.fetch_add(1, SeqCst);
}

fn caught(
    name: &str,
    signal: c_int,
    code: c_int,
    instruction: fn() -> (u64, bool),
) -> Result<(), String> {
    // SAFETY: the action is filled in as far as the kernel reads it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        if libc::sigaction(signal, &action, std::ptr::null_mut()) != 0 {
            return Err(format!("{name}: no handler can be set"));
        }
    }
    for round in 0..ROUNDS {
        let before = COUNT.load(SeqCst);
        let (at, kept) = instruction();
        let (count, got) = (COUNT.load(SeqCst) - before, CODE.load(SeqCst));
        let address = ADDRESS.load(SeqCst);
        if count != 1 || got != code || address != at || !kept {
            return Err(format!(
                "{name}: round {round}: {count} signals, code {got} for {code}, at {address:#x} for {at:#x}, \
                 registers kept: {kept}"
            ));
        }
    }
    println!("ok {name} caught {ROUNDS} times");
    Ok(())
}
