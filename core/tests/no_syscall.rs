//! Injection, entry and exit make no system call. This program puts itself under strict seccomp,
//! where any call but read, write and exit kills it. Then it injects, enters and exits vCPUs, and
//! ends.
//!
//! The kick is up to the host. The kick in this test makes no system call.

#![allow(unsafe_code)] // prctl and exit, by number.

mod common;
#[path = "its/guest.rs"]
#[allow(dead_code)] // used only by the ITS's own tests
mod guest;
#[path = "gicv3/world.rs"]
#[allow(dead_code)] // as above
mod world;

use std::process::{Command, ExitCode};

pub(crate) type Engine = vgic_core::Vgic;

#[cfg(target_os = "linux")]
fn child(call_something: bool) -> ! {
    use common::{Machine, lpi};
    use vgic_core::engine::{Injected, Injector, LpiConfig, MsiControl, Vcpu};
    use vgic_core::gic::SysReg;
    use vgic_core::ids::{DeviceId, EventId, SPURIOUS, VcpuId};

    let mut m = Machine::<vgic_core::Vgic>::new(2, 4);
    for n in 0..64 {
        let config = LpiConfig::enabled((n % 8 * 16) as u8);
        m.msi.map(common::DEV, EventId(n), lpi(n), VcpuId((n % 2) as u16), config).unwrap();
    }
    let routes: Vec<_> = (0..64).map(|n| m.msi.route(common::DEV, EventId(n)).unwrap()).collect();
    let domain = m.msi.domain();
    let mut guest = guest::Guest::new(2);
    guest.ok(guest::mapd(3, 5));
    (0..32).for_each(|event| guest.ok(guest::mapti(3, event, 8192 + event, event as u16 % 2)));
    let port = guest.its.port();
    let its_routes: Vec<_> =
        (0..32).map(|n| guest.its.route(DeviceId(3), EventId(n)).unwrap()).collect();
    let mut delivered = 0u32;
    // SAFETY: takes no pointers; from here on only read, write, exit and sigreturn are allowed.
    let strict = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT, 0, 0, 0) };
    if strict != 0 {
        // SAFETY: ends the program.
        unsafe { libc::_exit(77) };
    }
    for round in 0..2000 {
        for (n, route) in routes.iter().enumerate() {
            let _ = m.injector.inject_route(route);
            if m.injector.inject(&domain, common::DEV, EventId(n as u32)) != Injected::Coalesced {
                // SAFETY: ends the program.
                unsafe { libc::syscall(libc::SYS_exit, 3) };
            }
        }
        for cpu in &mut guest.world.cpus {
            let injector = cpu.bus().injector();
            for (event, route) in its_routes.iter().enumerate() {
                let _ = route.inject(injector);
                if port.inject(injector, DeviceId(3), EventId(event as u32)) != Injected::Coalesced
                {
                    // SAFETY: ends the program.
                    unsafe { libc::syscall(libc::SYS_exit, 4) };
                }
            }
            cpu.enter();
            while let Some(intid @ 8192..) = cpu.icc_read(SysReg::ICC_IAR1_EL1) {
                delivered += 1;
                let _ = cpu.icc_write(SysReg::ICC_EOIR1_EL1, intid);
            }
            cpu.exit();
        }
        for v in 0..2 {
            // Hand-overs, and more pending interrupts than list registers, are included.
            let moved = EventId(round % 64);
            let _ = m.msi.retarget(common::DEV, moved, VcpuId((round % 2) as u16));
            m.vcpus[v].flush(&mut m.cpus[v]);
            loop {
                let intid = m.cpus[v].iar1();
                if intid.0 == SPURIOUS {
                    break;
                }
                delivered += 1;
                let _ = m.cpus[v].eoir1(intid);
            }
            m.vcpus[v].fold(&mut m.cpus[v]);
        }
    }
    if call_something {
        // SAFETY: a harmless call that strict mode does not allow.
        unsafe { libc::syscall(libc::SYS_getpid) };
    }
    let status = i32::from(delivered < 2000);
    // SAFETY: ends the program, which has one thread: with `exit`, as `exit_group` is not allowed.
    unsafe { libc::syscall(libc::SYS_exit, status) };
    unreachable!("exit does not return")
}

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    const MODE: &str = "VGIC_NO_SYSCALL_CHILD";
    match std::env::var(MODE).as_deref() {
        Ok("clean") => child(false),
        Ok("calls") => child(true),
        _ => {}
    }
    let run = |mode: &str| {
        let me = std::env::current_exe().expect("this program has a path");
        Command::new(me).env(MODE, mode).status().expect("it can be run again")
    };
    println!("running 2 tests");
    let (clean, calls) = (run("clean"), run("calls"));
    if clean.code() == Some(77) {
        println!("strict seccomp is not available here: {clean}");
    }
    println!("clean: {clean}; calls: {calls}");
    let passed =
        [("no_system_call", clean.success()), ("a_system_call_is_noticed", calls.code().is_none())];
    for (name, ok) in passed {
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
    }
    let failed = passed.iter().filter(|(_, ok)| !ok).count();
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n",
        2 - failed
    );
    ExitCode::from(u8::from(failed != 0))
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    println!("strict seccomp exists on Linux only");
    ExitCode::FAILURE
}
