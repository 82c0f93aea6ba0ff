//! A debugger's single steps, which use the same debug registers as a hypervisor's breakpoints.
#![allow(unsafe_code, reason = "ptrace and fork")]

use std::arch::asm;

/// Steps a child through a loop. Its program counter must advance by one instruction at a time.
pub(crate) fn run(count: u32) -> Result<(), String> {
    // SAFETY: the program has one thread, and the child only stops, runs a loop and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: see above.
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
            asm!("2: add {x}, {x}, #1", "add {x}, {x}, #2", "add {x}, {x}, #3", "b 2b", x = in(reg) 0_u64,
                 options(noreturn));
        }
    }
    let result = step(child, count);
    // SAFETY: it is our child.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    result.map(|()| println!("ok steps: {count}"))
}

fn step(child: libc::pid_t, count: u32) -> Result<(), String> {
    stopped(child, libc::SIGSTOP)?;
    // First step out of `raise` and into the loop. In the loop the address goes up by 4 and back by
    // 12.
    let (mut before, mut in_loop) = (0, 0);
    for _ in 0..count + 2000 {
        // SAFETY: it is our child, and it is stopped.
        if unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, child, 0, 0) } != 0 {
            return Err("steps: the child cannot be stepped".into());
        }
        stopped(child, libc::SIGTRAP)?;
        let now = pc(child)?;
        let moved = now.wrapping_sub(before) as i64;
        before = now;
        if moved == 4 || moved == -12 {
            in_loop += 1;
            if in_loop == count + 8 {
                return Ok(());
            }
        } else {
            // Inside the loop every step must be one of these two. Before the loop, any step is
            // allowed.
            if in_loop > 64 {
                return Err(format!("steps: a step went by {moved} bytes"));
            }
            in_loop = 0;
        }
    }
    Err("steps: the loop was never reached".into())
}

fn stopped(child: libc::pid_t, signal: i32) -> Result<(), String> {
    let mut status = 0;
    // SAFETY: it is our child.
    unsafe { libc::waitpid(child, &mut status, 0) };
    if libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == signal {
        return Ok(());
    }
    Err(format!("steps: status {status:#x} where signal {signal} was to stop the child"))
}

fn pc(child: libc::pid_t) -> Result<u64, String> {
    const NT_PRSTATUS: usize = 1;
    // SAFETY: the kernel fills in at most as much as the vector has room for.
    unsafe {
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        let mut vector = libc::iovec {
            iov_base: (&raw mut registers).cast(),
            iov_len: size_of::<libc::user_regs_struct>(),
        };
        if libc::ptrace(libc::PTRACE_GETREGSET, child, NT_PRSTATUS, &raw mut vector) != 0 {
            return Err("steps: the child's registers cannot be read".into());
        }
        Ok(registers.pc)
    }
}
