//! The other CPUs: started by PSCI, they serve CPU 0, which asks them to run functions.

use core::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Release},
};

use crate::{exceptions, fdt, mmio, mrs, psci, timer};

/// As many as there are stacks.
pub const MAX_CPUS: usize = 8;

/// What a CPU is asked to run: a function's address, and what to give to it. 0: nothing.
struct Post {
    function: AtomicUsize,
    argument: AtomicU64,
}

const EMPTY: Post = Post { function: AtomicUsize::new(0), argument: AtomicU64::new(0) };
static POSTS: [Post; MAX_CPUS] = [EMPTY; MAX_CPUS];
static ONLINE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// The number of the CPU that asks.
pub fn cpu() -> usize {
    mrs!("tpidr_el1") as usize
}

/// How many CPUs a payload uses.
pub fn cpus() -> usize {
    fdt::cpus().min(MAX_CPUS)
}

unsafe extern "C" {
    fn secondary_start();
}

/// Starts all others; each runs `init` first.
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

/// What a CPU does that CPU 0 has started.
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

/// Asks a CPU to run something, and does not wait for it.
pub fn post(cpu: usize, function: fn(u64), argument: u64) {
    POSTS[cpu].argument.store(argument, Release);
    POSTS[cpu].function.store(function as usize, Release);
}

/// Waits until a CPU has run what it was asked.
pub fn finish(cpu: usize) {
    let done = || POSTS[cpu].function.load(Acquire) == 0;
    assert!(timer::within(60_000, done), "CPU {cpu} does not come back");
}

/// Runs something on a CPU, this one included, and waits for it.
pub fn on(cpu: usize, function: fn(u64), argument: u64) {
    if cpu == self::cpu() {
        return function(argument);
    }
    post(cpu, function, argument);
    finish(cpu);
}

/// Runs something on every CPU, one after another, with its number.
pub fn on_each(function: fn(u64)) {
    for cpu in 0..cpus() {
        on(cpu, function, cpu as u64);
    }
}

/// Lets interrupts in on the CPU that runs it.
pub fn unmask(_: u64) {
    exceptions::unmask();
}

/// Keeps interrupts out on the CPU that runs it.
pub fn mask(_: u64) {
    exceptions::mask();
}
