//! The other CPUs. CPU 0 starts them through PSCI, and gives them functions to run.

use core::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Release},
};

use crate::{exceptions, fdt, mmio, mrs, psci, timer};

/// The number of stacks.
pub const MAX_CPUS: usize = 8;

/// A request to a CPU: a function's address, where 0 stands for no request, and its argument.
struct Post {
    function: AtomicUsize,
    argument: AtomicU64,
}

const EMPTY: Post = Post { function: AtomicUsize::new(0), argument: AtomicU64::new(0) };
static POSTS: [Post; MAX_CPUS] = [EMPTY; MAX_CPUS];
static ONLINE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Returns the number of the calling CPU.
pub fn cpu() -> usize {
    mrs!("tpidr_el1") as usize
}

/// Returns the number of CPUs that a payload uses.
pub fn cpus() -> usize {
    fdt::cpus().min(MAX_CPUS)
}

unsafe extern "C" {
    fn secondary_start();
}

/// Starts all other CPUs. Each runs `init` first.
pub fn start(init: fn(u64)) {
    for cpu in 1..cpus() {
        let result = psci::cpu_on(cpu as u64, secondary_start as *const () as u64, cpu as u64);
        assert!(result == 0, "PSCI CPU_ON of CPU {cpu}: {result}");
        assert!(
            timer::within(5000, || ONLINE[cpu].load(Acquire) != 0),
            "CPU {cpu} does not come up"
        );
        on(cpu, init, 0);
    }
}

/// Serves CPU 0's requests, on a CPU that it has started.
pub fn serve(cpu: usize) -> ! {
    ONLINE[cpu].store(1, Release);
    let post = &POSTS[cpu];
    loop {
        let function = post.function.load(Acquire);
        if function != 0 {
            // SAFETY: only `post` stores there.
            let function: fn(u64) = unsafe { core::mem::transmute(function) };
            function(post.argument.load(Acquire));
            post.function.store(0, Release);
        }
        mmio::relax();
    }
}

/// Asks a CPU to run a function, and does not wait for it.
pub fn post(cpu: usize, function: fn(u64), argument: u64) {
    POSTS[cpu].argument.store(argument, Release);
    POSTS[cpu].function.store(function as usize, Release);
}

/// Waits until a CPU has run its function.
pub fn finish(cpu: usize) {
    let done = || POSTS[cpu].function.load(Acquire) == 0;
    assert!(timer::within(60_000, done), "CPU {cpu} does not come back");
}

/// Runs a function on a CPU, which may be the calling one, and waits for it.
pub fn on(cpu: usize, function: fn(u64), argument: u64) {
    if cpu == self::cpu() {
        return function(argument);
    }
    post(cpu, function, argument);
    finish(cpu);
}

/// Runs a function on every CPU, one after another, with the CPU's number.
pub fn on_each(function: fn(u64)) {
    for cpu in 0..cpus() {
        on(cpu, function, cpu as u64);
    }
}

/// Unmasks interrupts on the calling CPU.
pub fn unmask(_: u64) {
    exceptions::unmask();
}

/// Masks interrupts on the calling CPU.
pub fn mask(_: u64) {
    exceptions::mask();
}
