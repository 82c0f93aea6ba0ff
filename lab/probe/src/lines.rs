//! Tests whether KVM keeps the IRQ line of a vCPU that another thread raises.
//!
//! The guest sleeps. Its interrupt handler writes to an address without a device, so that KVM_RUN
//! returns. The vCPU's thread then lowers the line, counts an answer, and runs the guest again. The
//! raising thread raises the line once after each answer. If there is no answer, it raises the line
//! once more. If KVM still has the line high, this has no effect, neither on the line nor on the
//! vCPU. So an answer to the second raise shows that KVM had lost the first one.

#![allow(unsafe_code)] // The guest's memory.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_userspace_memory_region, kvm_vcpu_init};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

const BASE: u64 = 0x4000_0000;
const SIZE: usize = 0x10000;
/// `KVM_REG_ARM_CORE_REG(regs.pc)`.
const PC: u64 = 0x6030_0000_0010_0040;
/// The time after which a line counts as lost. The host has no other work.
const PATIENCE: Duration = Duration::from_secs(2);

/// x1 = 0x1000_0000; VBAR_EL1 = BASE + 0x800; interrupts on; sleep forever.
const MAIN: [u32; 8] = [
    0xd2a2_0001,
    0xd2a8_0002,
    0xf281_0002,
    0xd518_c002,
    0xd503_3fdf,
    0xd503_42ff,
    0xd503_207f,
    0x17ff_ffff,
];
/// IRQ from the current exception level: `str w0, [x1]`, and return.
const VECTOR: usize = 0x800 + 0x280;
const HANDLER: [u32; 2] = [0xb900_0020, 0xd69f_03e0];

/// Allocates memory with the guest's code, which lives as long as the program.
fn memory() -> &'static mut [u8] {
    let layout = std::alloc::Layout::from_size_align(SIZE, 0x1000).expect("a valid layout");
    // SAFETY: the layout is not empty.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    assert!(!start.is_null(), "no memory");
    // SAFETY: just allocated, zeroed, of that size, and never freed.
    let memory = unsafe { std::slice::from_raw_parts_mut(start, SIZE) };
    for (at, code) in [(0, &MAIN[..]), (VECTOR, &HANDLER[..])] {
        for (n, word) in code.iter().enumerate() {
            memory[at + 4 * n..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }
    memory
}

fn machine() -> Result<(VmFd, VcpuFd), kvm_ioctls::Error> {
    let vm = Kvm::new()?.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: BASE,
        memory_size: SIZE as u64,
        userspace_addr: memory().as_mut_ptr() as u64,
    };
    // SAFETY: the memory is never freed, and only the guest uses it from here on.
    unsafe { vm.set_user_memory_region(region)? };
    let vcpu = vm.create_vcpu(0)?;
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init)?;
    vcpu.vcpu_init(&init)?;
    vcpu.set_one_reg(PC, &BASE.to_le_bytes())?;
    Ok((vm, vcpu))
}

/// Runs the guest until `end` is set. The guest answers each time that its line is high.
fn run(mut vcpu: VcpuFd, vm: &VmFd, answers: &AtomicU64, end: &AtomicBool) {
    // Acquire, Release: pair with `lines`.
    while !end.load(Ordering::Acquire) {
        if let Ok(VcpuExit::MmioWrite(..)) = vcpu.run() {
            vm.set_irq_line(0, false).expect("KVM_IRQ_LINE");
            answers.fetch_add(1, Ordering::Release);
        }
    }
}

/// Waits for the `n`th answer. Returns false if it takes too long.
fn answered(answers: &AtomicU64, n: u64) -> bool {
    let begin = Instant::now();
    // Acquire: pairs with `run`.
    while answers.load(Ordering::Acquire) < n {
        if begin.elapsed() > PATIENCE {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// Raises the line `count` times from this thread, while `busy` threads compete for the host's
/// CPUs.
pub(crate) fn lines(count: u64, busy: usize) -> ExitCode {
    let (vm, vcpu) = match machine() {
        Ok((vm, vcpu)) => (Arc::new(vm), vcpu),
        Err(error) => {
            println!("FAIL lines: no VM: {error}");
            println!("END 0 passed, 1 failed");
            return ExitCode::FAILURE;
        }
    };
    let (answers, end) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut lost = 0;
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| run(vcpu, &vm, &answers, &end));
        for _ in 0..busy {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        for n in 1..=count {
            // Raise the line at a different moment of the vCPU's entry into the guest each time.
            for _ in 0..n * 7 % 16384 {
                std::hint::spin_loop();
            }
            vm.set_irq_line(0, true).expect("KVM_IRQ_LINE");
            if !answered(&answers, n) {
                lost += 1;
                vm.set_irq_line(0, true).expect("KVM_IRQ_LINE");
                if !answered(&answers, n) {
                    println!("FAIL lines: no answer to a line that was raised twice");
                    println!("END 0 passed, 1 failed");
                    std::process::exit(1);
                }
            }
        }
        end.store(true, Ordering::Release);
        while !runner.is_finished() {
            // One call would be enough if no line were lost.
            vm.set_irq_line(0, true).expect("KVM_IRQ_LINE");
            std::thread::yield_now();
        }
    });
    println!("COUNT lines raised-by-another-thread={count} lost={lost}");
    if lost == 0 {
        println!("PASS lines: none of {count} was lost");
    } else {
        println!(
            "PASS lines: {lost} of {count} were lost by this KVM, which is why vgic-kvm raises none from another thread"
        );
    }
    println!("END 1 passed, 0 failed");
    ExitCode::SUCCESS
}
