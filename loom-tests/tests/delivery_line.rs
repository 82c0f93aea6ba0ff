//! A host that takes offers: interrupts reach a vCPU that is in its guest by its line, and by nothing else, unless others wait
//! for it. A lost wake-up is a deadlock, which loom reports.
#![cfg(loom)]

use std::sync::Arc;

use loom::sync::Notify;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::line::{Due, LineCell, Thresholds};
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::model;

/// Everything is signaled.
const OPEN: Thresholds = Thresholds { below: [0xf8; 2], elsewhere: [false; 2] };

/// One vCPU as its host sees it.
struct Port {
    cell: LineCell,
    /// The level that the hardware was told last.
    line: AtomicBool,
    /// It is to leave the guest.
    signal: AtomicBool,
    /// Stands for the hardware that interrupts a guest, or wakes one that sleeps.
    notify: Notify,
}

impl Port {
    fn set(&self, level: bool) {
        self.line.swap(level, Ordering::AcqRel);
        if level {
            self.notify.notify();
        }
    }

    fn call(&self) {
        self.signal.swap(true, Ordering::AcqRel);
        self.notify.notify();
    }

    fn perform(&self, due: Due) {
        match due {
            Due::Nothing | Due::Tell => {}
            Due::Drive => self.cell.drive(|level| self.set(level)),
            Due::Call => self.call(),
        }
    }

    fn set_level(&self, level: bool) {
        match self.cell.set_level(level) {
            Due::Tell => self.set(level),
            due => self.perform(due),
        }
    }

    /// Offers the guest what there is, and enters it.
    fn enter(&self, cpu: &mut Cpu) {
        loop {
            self.cell.look();
            cpu.enter();
            self.set_level(cpu.lrs.pending() > 0);
            if self.cell.enter(OPEN) {
                return;
            }
        }
    }

    /// The guest runs until its line is up, or it is called out.
    fn in_guest(&self, masked: bool) {
        // Read-modify-writes: hardware and the kernel do not look at what was there before.
        let line = || !masked && self.line.fetch_or(false, Ordering::AcqRel);
        while !line() && !self.signal.fetch_or(false, Ordering::AcqRel) {
            self.notify.wait();
        }
        self.signal.swap(false, Ordering::AcqRel);
        let _ = self.cell.leave();
    }
}

/// A host that takes offers.
struct Host(Vec<Port>);

impl Host {
    fn new(vcpus: usize) -> Arc<Self> {
        let port = || Port {
            cell: LineCell::new(),
            line: AtomicBool::new(false),
            signal: AtomicBool::new(false),
            notify: Notify::new(),
        };
        Arc::new(Self((0..vcpus).map(|_| port()).collect()))
    }

    /// Runs a vCPU until its guest has taken `due` interrupts.
    fn run(&self, cpu: &mut Cpu, due: usize) {
        let port = &self.0[cpu.vcpu.id().index()];
        let mut taken = 0;
        while taken < due {
            port.enter(cpu);
            port.in_guest(false);
            // The guest reads IAR.
            taken += cpu.run();
        }
        assert_eq!(taken, due);
    }

    /// After everything: the hardware has what it is to have.
    fn check(&self) {
        for port in &self.0 {
            assert_eq!(port.line.load(Ordering::Acquire), port.cell.level(), "the line");
        }
    }
}

impl Kick for Host {
    fn kick(&self, vcpu: VcpuId) {
        let port = &self.0[vcpu.index()];
        port.perform(port.cell.kick());
    }

    fn wants_offers(&self) -> bool {
        true
    }

    fn offer(&self, vcpu: VcpuId, group: Group, priority: Priority) {
        let port = &self.0[vcpu.index()];
        port.perform(port.cell.offer(group, priority));
    }
}

/// The cell alone: two producers publish, and raise the line. The owner sees what each has published.
#[test]
fn line_two_producers() {
    model(2, 100, || {
        let host = Host::new(1);
        let changes = Arc::new(AtomicUsize::new(0));
        let producers = [(); 2].map(|()| {
            let (host, changes) = (Arc::clone(&host), Arc::clone(&changes));
            thread::spawn(move || {
                // Relaxed: the cell orders it.
                changes.fetch_add(1, Ordering::Relaxed);
                host.offer(A, Group::Group1, Priority::new(PRIORITY));
            })
        });
        let port = &host.0[0];
        let mut seen = 0;
        while seen != 2 {
            port.cell.look();
            let now = changes.load(Ordering::Relaxed);
            port.set_level(now != seen);
            if port.cell.enter(OPEN) {
                port.in_guest(false);
                seen = changes.load(Ordering::Relaxed);
            }
        }
        port.set_level(false);
        for producer in producers {
            producer.join().unwrap();
        }
        host.check();
    });
}

/// Two interrupts one after the other.
#[test]
fn line_one_injector() {
    model(3, 100, || {
        let host = Host::new(1);
        let mut vm = Vm::with(1, 0, host.clone());
        vm.map(0, A, ON);
        vm.map(1, A, ON);
        let (first, second) = (vm.source(0), vm.source(1));
        let mut cpu = vm.cpu(A);
        let injector = thread::spawn(move || (first.raise() + second.raise(), first, second));
        host.run(&mut cpu, 2);
        let sources = injector.join().unwrap();
        host.0[0].set_level(false);
        host.check();
        assert_eq!(cpu.settle(), 0);
        drop(sources);
        vm.end(cpu);
    });
}

/// An interrupt is raised while it is being enabled: whoever posts it, somebody offers it.
#[test]
fn line_inject_and_enable() {
    model(2, 100, || {
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

/// An interrupt is moved to B while it is being posted to A, whose guest has masked its interrupts: A is called out to
/// hand it over.
#[test]
fn line_moved_from_a_masked_vcpu() {
    model(2, 100, || {
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
                    host.0[0].enter(&mut a);
                    host.0[0].in_guest(true);
                    a.exit();
                }
                a
            }
        });
        let injector = thread::spawn(move || (source.raise(), source));
        vm.msi.retarget(DEVICE, EVENT, B).unwrap();
        host.run(&mut b, 1);
        done.store(true, Ordering::Release);
        host.0[0].call();
        let source = injector.join().unwrap();
        let mut a = masked.join().unwrap();
        assert_eq!(a.settle() + b.settle(), 0);
        drop(source);
        vm.end((a, b));
    });
}
