//! Kick against sleep: a vCPU thread that sleeps between its runs gets every interrupt. A lost
//! wake-up is a deadlock, which loom reports.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::VgicInjector;
use vgic_core::engine::*;
use vgic_core::ids::VcpuId;
use vgic_core::reclaim::Slots;
use vgic_core::wait::WaitCell;
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::sync::Notify;
use vgic_loom_tests::sched::sync::atomic::{AtomicUsize, Ordering};
use vgic_loom_tests::sched::thread;

/// The place where one vCPU thread sleeps.
struct Bed {
    cell: WaitCell,
    /// Models the futex below `park` and `unpark`. Returns early now and then, as they may.
    notify: Notify,
}

impl Bed {
    fn sleep(&self) {
        self.cell.sleep(|| self.notify.wait());
    }

    fn kick(&self) {
        if self.cell.kick() {
            self.notify.notify();
        }
    }
}

/// A host with vCPU threads that sleep.
struct Host(Vec<Bed>);

impl Host {
    fn new(vcpus: usize) -> Arc<Self> {
        let bed = || Bed { cell: WaitCell::new(), notify: Notify::new() };
        Arc::new(Self((0..vcpus).map(|_| bed()).collect()))
    }

    /// Runs a vCPU, with sleeps in between, until its guest has taken `due` interrupts.
    fn run(&self, cpu: &mut Cpu, due: usize) {
        let mut taken = 0;
        loop {
            taken += cpu.run();
            if taken >= due {
                return assert_eq!(taken, due);
            }
            self.0[cpu.vcpu.id().index()].sleep();
        }
    }
}

impl Kick for Host {
    fn kick(&self, vcpu: VcpuId) {
        self.0[vcpu.index()].kick();
    }
}

/// Tests the token alone: the sleeper has to see the changes of two kickers.
#[test]
fn kick_token_two_kickers() {
    model(3, 3_858, || {
        let host = Host::new(1);
        let changes = Arc::new(AtomicUsize::new(0));
        let kickers = [(); 2].map(|()| {
            let (host, changes) = (Arc::clone(&host), Arc::clone(&changes));
            thread::spawn(move || {
                // Relaxed: the kick orders it.
                changes.fetch_add(1, Ordering::Relaxed);
                host.kick(A);
            })
        });
        while changes.load(Ordering::Relaxed) != 2 {
            host.0[0].sleep();
        }
        for kicker in kickers {
            kicker.join().unwrap();
        }
    });
}

/// A kick that comes before the sleep is not lost, and ends only one sleep.
#[test]
fn kick_before_sleep() {
    model(6, 20, || {
        let host = Host::new(1);
        host.kick(A);
        host.0[0].sleep();
        assert!(!host.0[0].cell.take(), "consumed");
        let kicker = thread::spawn({
            let host = Arc::clone(&host);
            move || host.kick(A)
        });
        host.0[0].sleep();
        assert!(!host.0[0].cell.take(), "consumed");
        kicker.join().unwrap();
    });
}

/// One injector raises two LPIs for a vCPU that sleeps.
#[test]
fn kick_vs_sleep_one_injector() {
    model(4, 1_820, || {
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

/// Two injectors raise an LPI each for a vCPU that sleeps.
#[test]
fn kick_vs_sleep_two_injectors() {
    model(3, 20_263, || {
        let host = Host::new(1);
        let mut vm = Vm::with(1, 0, host.clone());
        vm.map(0, A, ON);
        vm.map(1, A, ON);
        let mut cpu = vm.cpu(A);
        let injectors = [vm.source(0), vm.source(1)].map(|s| thread::spawn(move || (s.raise(), s)));
        host.run(&mut cpu, 2);
        let sources = injectors.map(|i| i.join().unwrap());
        assert_eq!(cpu.settle(), 0);
        drop(sources);
        vm.end(cpu);
    });
}

/// One thread raises an LPI and another enables it while its vCPU sleeps: the second of the two
/// threads wakes the vCPU.
#[test]
fn kick_vs_sleep_inject_and_enable() {
    model(2, 8_207, || {
        let host = Host::new(1);
        let mut vm = Vm::with(1, 0, host.clone());
        vm.map(0, A, OFF);
        let source = vm.source(0);
        let mut cpu = vm.cpu(A);
        let injector = thread::spawn(move || (source.raise(), source));
        let control = thread::spawn(move || {
            vm.msi.set_config(lpi(0), ON).unwrap();
            vm
        });
        host.run(&mut cpu, 1);
        let sources = injector.join().unwrap();
        let vm = control.join().unwrap();
        assert_eq!(cpu.settle(), 0);
        drop(sources);
        vm.end(cpu);
    });
}

/// One thread raises an LPI and another enables LPIs while the vCPU sleeps.
#[test]
fn kick_vs_sleep_inject_and_enable_lpis() {
    model(2, 5_420, || {
        let host = Host::new(1);
        let mut vm = Vm::with(1, 0, host.clone());
        vm.map(0, A, ON);
        let source = vm.source(0);
        let redist = vm.injector();
        redist.set_lpis_enabled(A, false).unwrap();
        let mut cpu = vm.cpu(A);
        let injector = thread::spawn(move || (source.raise(), source));
        let control = thread::spawn(move || {
            redist.set_lpis_enabled(A, true).unwrap();
            redist
        });
        host.run(&mut cpu, 1);
        let sources = injector.join().unwrap();
        let redist = control.join().unwrap();
        assert_eq!(cpu.settle(), 0);
        drop((sources, redist));
        vm.end(cpu);
    });
}

/// A pending LPI moves from a vCPU with a guest that does not take it to a vCPU that sleeps.
#[test]
fn kick_vs_sleep_retarget() {
    model(2, 3_431, || {
        let host = Host::new(2);
        let mut vm = Vm::with(2, 0, host.clone());
        vm.map(0, A, ON);
        let source = vm.source(0);
        let (mut from, mut to) = (vm.cpu(A), vm.cpu(B));
        assert_eq!(source.raise(), 1);
        let done = Arc::new(AtomicUsize::new(0));
        let giver = thread::spawn({
            let (host, done) = (Arc::clone(&host), Arc::clone(&done));
            move || {
                loop {
                    from.enter();
                    from.exit();
                    // Relaxed: the kick orders it.
                    if done.load(Ordering::Relaxed) == 1 {
                        return from;
                    }
                    host.0[A.index()].sleep();
                }
            }
        });
        let control = thread::spawn(move || {
            vm.msi.retarget(DEVICE, EVENT, B).unwrap();
            vm
        });
        host.run(&mut to, 1);
        done.store(1, Ordering::Relaxed);
        host.kick(A);
        let mut from = giver.join().unwrap();
        let vm = control.join().unwrap();
        assert_eq!(from.settle() + to.settle(), 0);
        drop(source);
        vm.end([from, to]);
    });
}

/// The guest sleeps while an interrupt is presented to it that it does not take (for example
/// because it has masked the interrupt). The change that takes the interrupt back wakes the vCPU,
/// which withdraws the interrupt.
fn kick_vs_sleep_withdraw(at_least: usize, take_back: fn(&mut Vm, &VgicInjector<Slots>)) {
    model(3, at_least, move || {
        let host = Host::new(1);
        let mut vm = Vm::with(1, 0, host.clone());
        vm.map(0, A, ON);
        let source = vm.source(0);
        let redist = vm.injector();
        let mut cpu = vm.cpu(A);
        assert_eq!(source.raise(), 1);
        let control = thread::spawn(move || {
            take_back(&mut vm, &redist);
            (vm, redist)
        });
        loop {
            cpu.enter();
            cpu.exit();
            if cpu.lrs.pending() == 0 {
                break;
            }
            host.0[A.index()].sleep();
        }
        let (vm, redist) = control.join().unwrap();
        assert_eq!(cpu.settle(), 0);
        drop((source, redist));
        vm.end(cpu);
    });
}

#[test]
fn kick_vs_sleep_clear() {
    kick_vs_sleep_withdraw(1, |vm, _| vm.msi.clear(DEVICE, EVENT).unwrap());
}

#[test]
fn kick_vs_sleep_disable() {
    kick_vs_sleep_withdraw(1, |vm, _| vm.msi.set_config(lpi(0), OFF).unwrap());
}

#[test]
fn kick_vs_sleep_disable_lpis() {
    kick_vs_sleep_withdraw(1, |_, redist| redist.set_lpis_enabled(A, false).unwrap());
}
