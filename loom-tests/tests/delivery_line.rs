//! A host that takes hints: it calls a vCPU out of its guest for an interrupt that would raise the
//! vCPU's line and for a change that another thread waits for, and for nothing else. A lost wake-up
//! is a deadlock, which loom reports.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::line::{Call, LineCell, Thresholds};
use vgic_core::lr::ListRegisters;
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::sync::Notify;
use vgic_loom_tests::sched::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use vgic_loom_tests::sched::thread;

/// The thresholds of a guest that takes every interrupt.
const OPEN: Thresholds = Thresholds { below: [0xf8; 2] };

/// The name of the thread that stops before it calls a vCPU out.
const STALLS: &str = "stalls";

/// The thresholds of a guest that keeps back interrupts that are not urgent.
const URGENT: Thresholds = Thresholds { below: [0x80; 2] };

/// One vCPU, as its host sees it.
struct Port {
    cell: LineCell,
    /// The vCPU is to leave the guest.
    signal: AtomicBool,
    /// Models the kernel, which interrupts a guest or wakes one that sleeps.
    notify: Notify,
    /// A thread that stops waits for this notification.
    go: Notify,
}

impl Port {
    fn call(&self, call: Option<Call>) {
        if let Some(call) = call {
            if thread::current().name() == Some(STALLS) {
                self.go.wait();
            }
            self.signal();
            self.cell.called(call);
        }
    }

    fn signal(&self) {
        self.signal.swap(true, Ordering::AcqRel);
        self.notify.notify();
    }

    fn offer(&self, priority: u8) {
        self.call(self.cell.offer(Group::Group1, Priority::new(priority)));
    }

    /// Enters the guest with its line at this level. Comes back when the guest has taken the
    /// interrupt or the vCPU was called out. Returns whether the guest was entered.
    fn run(&self, line: bool, thresholds: Thresholds) -> bool {
        if !self.cell.enter(if line { Thresholds::default() } else { thresholds }) {
            return false;
        }
        // A read-modify-write, because the kernel reads the latest value.
        while !line && !self.signal.fetch_or(false, Ordering::AcqRel) {
            self.notify.wait();
        }
        self.signal.swap(false, Ordering::AcqRel);
        let _ = self.cell.leave();
        true
    }

    /// Fills the list registers, and runs the guest.
    fn enter(&self, cpu: &mut Cpu, thresholds: Thresholds) {
        loop {
            self.cell.look();
            cpu.enter();
            let mut offered = (0..cpu.lrs.count()).map(|n| cpu.lrs.read(n));
            let signaled = offered.any(|lr| {
                lr.state().is_pending()
                    && lr.priority().byte() < thresholds.below[lr.group() as usize]
            });
            if self.run(signaled, thresholds) {
                return;
            }
        }
    }
}

/// A host that takes hints.
struct Host(Vec<Port>);

impl Host {
    fn new(vcpus: usize) -> Arc<Self> {
        let port = || Port {
            cell: LineCell::new(),
            signal: AtomicBool::new(false),
            notify: Notify::new(),
            go: Notify::new(),
        };
        Arc::new(Self((0..vcpus).map(|_| port()).collect()))
    }

    /// Runs a vCPU until its guest has taken `due` interrupts.
    fn run(&self, cpu: &mut Cpu, due: usize) {
        self.run_below(cpu, due, OPEN);
    }

    /// Runs a vCPU until its guest, which keeps back interrupts that are not urgent enough, has
    /// taken `due` interrupts.
    fn run_below(&self, cpu: &mut Cpu, due: usize, thresholds: Thresholds) {
        let port = &self.0[cpu.vcpu.id().index()];
        let mut taken = 0;
        while taken < due {
            port.enter(cpu, thresholds);
            // The guest reads IAR.
            taken += cpu.run();
        }
        assert_eq!(taken, due);
    }
}

impl Kick for Host {
    fn kick(&self, vcpu: VcpuId) {
        let port = &self.0[vcpu.index()];
        port.call(port.cell.kick());
    }

    fn wants_offers(&self) -> bool {
        true
    }

    fn offer(&self, vcpu: VcpuId, group: Group, priority: Priority) {
        let port = &self.0[vcpu.index()];
        port.call(port.cell.offer(group, priority));
    }
}

/// Tests the cell alone. A producer for each of these priorities publishes a change, and then tells
/// the cell. The owner's guest sees the changes of the producers with priorities that pass the
/// thresholds.
fn producers(priorities: [u8; 2], thresholds: Thresholds) {
    let host = Host::new(1);
    let urgent = |&priority: &u8| priority < thresholds.below[1];
    let changes = Arc::new([(); 2].map(|()| AtomicUsize::new(0)));
    let producers = [0, 1].map(|n| {
        let (host, changes) = (Arc::clone(&host), Arc::clone(&changes));
        thread::spawn(move || {
            // Relaxed: the cell orders it.
            changes[n].fetch_add(1, Ordering::Relaxed);
            host.0[0].offer(priorities[n]);
        })
    });
    let port = &host.0[0];
    let due = priorities.iter().filter(|priority| urgent(priority)).count();
    let count = || {
        let passing = changes.iter().zip(&priorities).filter(|(_, priority)| urgent(priority));
        passing.map(|(change, _)| change.load(Ordering::Relaxed)).sum()
    };
    let mut seen = 0;
    while seen != due {
        port.cell.look();
        let now = count();
        if port.run(now != seen, thresholds) {
            // The changes that the guest finds.
            seen = count();
        }
    }
    for producer in producers {
        producer.join().unwrap();
    }
}

#[test]
fn line_two_producers() {
    model(2, 1_873, || producers([PRIORITY; 2], OPEN));
}

/// One of the two priorities is not urgent enough.
#[test]
fn line_two_priorities() {
    model(3, 2_900, || producers([0x40, 0xa0], URGENT));
}

/// One thread raises two interrupts, one after the other.
#[test]
fn line_one_injector() {
    model(3, 8_881, || {
        let host = Host::new(1);
        let mut vm = Vm::with(1, 0, host.clone());
        vm.map(0, A, ON);
        vm.map(1, A, ON);
        let (first, second) = (vm.source(0), vm.source(1));
        let mut cpu = vm.cpu(A);
        let injector = thread::spawn(move || (first.raise() + second.raise(), first, second));
        host.run(&mut cpu, 2);
        let sources = injector.join().unwrap();
        assert_eq!(cpu.settle(), 0);
        drop(sources);
        vm.end(cpu);
    });
}

/// A thread that stops before it calls the vCPU out holds up no other thread's interrupt: it
/// continues only when the other interrupt has been taken.
#[test]
fn line_stalled_caller() {
    model(2, 5_753, || {
        let host = Host::new(1);
        let mut vm = Vm::with(1, 0, host.clone());
        vm.map(0, A, ON);
        vm.map(1, A, ON);
        let (first, second) = (vm.source(0), vm.source(1));
        let mut cpu = vm.cpu(A);
        let raise = |source: Source| move || (source.raise(), source);
        let stalls = thread::Builder::new().name(STALLS.into()).spawn(raise(first));
        let other = thread::spawn(raise(second));
        let port = &host.0[0];
        let mut done = false;
        while !done {
            port.enter(&mut cpu, OPEN);
            cpu.enter();
            done = cpu.lrs.offers(lpi(1));
            cpu.lrs.take();
            cpu.exit();
        }
        port.go.notify();
        let sources = (stalls.unwrap().join().unwrap(), other.join().unwrap());
        cpu.settle();
        drop(sources);
        vm.end(cpu);
    });
}

/// An interrupt is raised while it is being enabled: whichever of the two threads posts it, one of
/// them gives the hint.
#[test]
fn line_inject_and_enable() {
    model(2, 4_208, || {
        let host = Host::new(1);
        let mut vm = Vm::with(1, 0, host.clone());
        vm.map(0, A, OFF);
        let source = vm.source(0);
        let mut cpu = vm.cpu(A);
        let injector = thread::spawn(move || (source.raise(), source));
        let runner = thread::spawn({
            let host = Arc::clone(&host);
            move || {
                host.run(&mut cpu, 1);
                cpu
            }
        });
        vm.msi.set_config(lpi(0), ON).unwrap();
        let source = injector.join().unwrap();
        let mut cpu = runner.join().unwrap();
        assert_eq!(cpu.settle(), 0);
        drop(source);
        vm.end(cpu);
    });
}

/// An LPI in a list register that the guest keeps back becomes more urgent.
#[test]
fn line_priority_of_an_lpi_that_is_kept_back() {
    model(2, 162, || {
        let host = Host::new(1);
        let mut vm = Vm::with(1, 0, host.clone());
        vm.map(0, A, LpiConfig::enabled(0xa0));
        let source = vm.source(0);
        assert_eq!(source.raise(), 1);
        let mut cpu = vm.cpu(A);
        let runner = thread::spawn({
            let host = Arc::clone(&host);
            move || {
                host.run_below(&mut cpu, 1, URGENT);
                cpu
            }
        });
        vm.msi.set_config(lpi(0), LpiConfig::enabled(0x40)).unwrap();
        let mut cpu = runner.join().unwrap();
        assert_eq!(cpu.settle(), 0);
        drop(source);
        vm.end(cpu);
    });
}

/// An SPI in a list register that the guest keeps back becomes more urgent.
#[test]
fn line_priority_of_an_spi_that_is_kept_back() {
    model(2, 204, || {
        let host = Host::new(1);
        let mut vm = Vm::with(1, 1, host.clone());
        let spi = Wired::Spi(Intid(32));
        let injector = vm.injector();
        let config = |config: WiredConfig, byte| WiredConfig {
            enabled: true,
            priority: Priority::new(byte),
            ..config
        };
        injector.update(spi, |old| config(old, 0xa0)).unwrap();
        let _ = injector.pulse(spi).unwrap();
        let mut cpu = vm.cpu(A);
        let runner = thread::spawn({
            let host = Arc::clone(&host);
            move || {
                host.run_below(&mut cpu, 1, URGENT);
                cpu
            }
        });
        injector.update(spi, |old| config(old, 0x40)).unwrap();
        let mut cpu = runner.join().unwrap();
        assert_eq!(cpu.settle(), 0);
        drop(injector);
        vm.end(cpu);
    });
}

/// An interrupt moves to B while it is being posted to A, which has a guest that masks all
/// interrupts: A is called out to hand the interrupt over.
#[test]
fn line_moved_from_a_masked_vcpu() {
    model(2, 10_961, || {
        let host = Host::new(2);
        let mut vm = Vm::with(2, 0, host.clone());
        vm.map(0, A, ON);
        let source = vm.source(0);
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        let done = Arc::new(AtomicBool::new(false));
        let masked = thread::spawn({
            let (host, done) = (Arc::clone(&host), Arc::clone(&done));
            move || {
                while !done.load(Ordering::Acquire) {
                    host.0[0].enter(&mut a, Thresholds::default());
                    a.exit();
                }
                a
            }
        });
        let injector = thread::spawn(move || (source.raise(), source));
        vm.msi.retarget(DEVICE, EVENT, B).unwrap();
        host.run(&mut b, 1);
        done.store(true, Ordering::Release);
        host.0[0].signal();
        let source = injector.join().unwrap();
        let mut a = masked.join().unwrap();
        assert_eq!(a.settle() + b.settle(), 0);
        drop(source);
        vm.end((a, b));
    });
}
