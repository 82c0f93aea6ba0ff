//! A thread that stops between its push and the end of its kick holds up no other thread's
//! interrupts. The stalled kick continues only when the other thread's interrupt has been taken: if
//! that interrupt has to wait for the kick, the model ends in a deadlock.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::engine::*;
use vgic_core::ids::VcpuId;
use vgic_core::wait::WaitCell;
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::sync::Notify;
use vgic_loom_tests::sched::thread;

/// The name of the thread that stops.
const STALLS: &str = "stalls";

/// The point at which the thread stops.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Before the kick.
    Before,
    /// Within the kick: the thread has left the token, and is about to wake the vCPU's thread.
    Within,
}

/// A host with one vCPU thread, which sleeps, and with a thread that stops in its kicks.
struct Host {
    stop: Stop,
    cell: WaitCell,
    /// Models the futex below `park` and `unpark`.
    bed: Notify,
    go: Notify,
}

impl Host {
    fn new(stop: Stop) -> Arc<Self> {
        Arc::new(Self { stop, cell: WaitCell::new(), bed: Notify::new(), go: Notify::new() })
    }

    fn stop_here(&self, here: Stop) {
        if self.stop == here && thread::current().name() == Some(STALLS) {
            self.go.wait();
        }
    }

    /// Runs the vCPU, which sleeps in between, until its guest has taken the LPI of this event.
    fn run_until(&self, cpu: &mut Cpu, event: u32) {
        loop {
            cpu.enter();
            let done = cpu.lrs.offers(lpi(event));
            cpu.lrs.take();
            cpu.exit();
            if done {
                return;
            }
            if !cpu.vcpu.has_mail() {
                self.cell.sleep(|| self.bed.wait());
            }
        }
    }
}

impl Kick for Host {
    fn kick(&self, _: VcpuId) {
        self.stop_here(Stop::Before);
        if self.cell.kick() {
            self.stop_here(Stop::Within);
            self.bed.notify();
        }
    }
}

/// The history of the mailbox.
#[derive(Clone, Copy)]
enum Before {
    Nothing,
    /// A batch with a finished kick.
    Batch,
    /// A batch with a finished kick, and then the vCPU was powered off and on.
    BatchAndPowerOff,
    /// A batch with a finished kick, which is being drained.
    Mail,
}

fn stalled_kicker(before: Before, stop: Stop) {
    let host = Host::new(stop);
    let mut vm = Vm::with(1, 0, host.clone());
    vm.map(0, A, ON);
    vm.map(1, A, URGENT);
    let (low, high) = (vm.source(0), vm.source(1));
    let mut cpu = vm.cpu(A);
    if !matches!(before, Before::Nothing) {
        assert_eq!(low.raise(), 1);
    }
    if !matches!(before, Before::Nothing | Before::Mail) {
        assert_eq!(cpu.run(), 1);
    }
    if matches!(before, Before::BatchAndPowerOff) {
        // The LPI is announced, not drained, and no longer pending.
        assert_eq!(low.raise(), 1);
        vm.msi.clear(DEVICE, EVENT).unwrap();
        cpu.close();
        cpu.vcpu.open();
    }
    let stalls = thread::Builder::new().name(STALLS.into()).spawn(move || {
        low.raise();
        low
    });
    let other = thread::spawn(move || {
        assert_eq!(high.raise(), 1);
        high
    });
    host.run_until(&mut cpu, 1);
    host.go.notify();
    let sources = (stalls.unwrap().join().unwrap(), other.join().unwrap());
    cpu.settle();
    drop(sources);
    vm.end(cpu);
}

#[test]
fn stalled_kicker_of_the_first_batch() {
    model(2, 4_004, || stalled_kicker(Before::Nothing, Stop::Before));
}

#[test]
fn stalled_kicker_of_a_later_batch() {
    model(2, 9_606, || stalled_kicker(Before::Batch, Stop::Before));
}

#[test]
fn stalled_kicker_after_a_power_off() {
    model(2, 9_606, || stalled_kicker(Before::BatchAndPowerOff, Stop::Before));
}

#[test]
fn stalled_kicker_vs_drain() {
    model(2, 10_873, || stalled_kicker(Before::Mail, Stop::Before));
}

/// The host's own token is no exception: no thread relies on another one that has left the token
/// and stops before it wakes the vCPU's thread.
#[test]
fn stalled_in_the_midst_of_a_kick() {
    model(2, 3_077, || stalled_kicker(Before::Nothing, Stop::Within));
}
