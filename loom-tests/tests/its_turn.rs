//! The turn to work off the command queue, and the effects of clearing GITS_CTLR.Enabled.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::engine::{Injected, Kick};
use vgic_core::ids::VcpuId;
use vgic_core::its::{Command, Fault, ItsTrace};
use vgic_loom_tests::its::*;
use vgic_loom_tests::sched::sync::Notify;
use vgic_loom_tests::sched::sync::atomic::{AtomicBool, Ordering};
use vgic_loom_tests::sched::thread;
use vgic_loom_tests::{NoKick, model};

/// Two vCPUs write GITS_CWRITER for the same two commands: each command is performed once, in
/// order, and none is left when both writes have returned.
#[test]
fn ring_vs_ring() {
    model(3, 480, || {
        let (mut machine, log) = Machine::new(1);
        let before = log.count();
        let commands = [mapti(0, 0, 0), discard(0)];
        let end = machine.put(&commands);
        let (first, second) = (machine.guest(), machine.guest());
        let other = thread::spawn(move || {
            first.ring(end);
            first
        });
        second.ring(end);
        let first = other.join().unwrap();
        assert_eq!(log.after(before), commands);
        drop((first, second));
        machine.end(());
    });
}

/// One vCPU enables the ITS, which finds a command in the queue, while another adds one.
#[test]
fn ring_vs_enable() {
    model(4, 328, || {
        let (mut machine, log) = Machine::new(1);
        let before = log.count();
        let (first, second) = (machine.guest(), machine.guest());
        first.enable_its(false);
        let commands = [mapti(0, 0, 0), discard(0)];
        let half = machine.put(&commands[..1]);
        first.ring(half);
        let whole = machine.put(&commands[1..]);
        let other = thread::spawn(move || {
            first.enable_its(true);
            first
        });
        second.ring(whole);
        let first = other.join().unwrap();
        assert_eq!(log.after(before), commands);
        drop((first, second));
        machine.end(());
    });
}

/// A host that wants to continue with the remaining commands after each slice. A slice is one
/// command here.
struct Host;

impl Kick for Host {
    fn kick(&self, _: VcpuId) {}

    fn commands_left(&self, _its: usize) -> bool {
        true
    }
}

/// A read of GITS_CREADR, too, continues with the commands that are left to the host.
#[test]
fn ring_vs_poll_of_what_is_left() {
    model(3, 267, || {
        let log = Arc::new(Log::default());
        let mut machine = Machine::with(1, log.clone(), Arc::new(Host));
        let before = log.count();
        let (first, second) = (machine.guest(), machine.guest());
        let commands = [mapti(0, 0, 0), discard(0), mapti(1, 1, 0)];
        let half = machine.put(&commands[..2]);
        first.ring(half);
        assert_eq!(log.after(before), commands[..1]);
        let whole = machine.put(&commands[2..]);
        let other = thread::spawn(move || {
            first.is_done(half);
            first
        });
        second.ring(whole);
        let first = other.join().unwrap();
        // Each read makes at least one more step.
        while !first.is_done(whole) {}
        assert_eq!(log.after(before), commands);
        drop((first, second));
        machine.end(());
    });
}

/// A trace that stops the thread `stops` in the middle of a command, until the other thread has
/// returned from its access.
#[derive(Default)]
struct Stopping {
    log: Log,
    back: Back,
}

struct Back(Notify, AtomicBool);

impl Default for Back {
    fn default() -> Self {
        Self(Notify::new(), AtomicBool::new(true))
    }
}

impl ItsTrace for Stopping {
    fn command(&self, its: usize, command: Option<Command>, result: Result<(), Fault>) {
        self.log.command(its, command, result);
        // If the other thread has the turn, it does not wait.
        if thread::current().name() != Some("stops") {
            return;
        }
        while !self.back.1.load(Ordering::Acquire) {
            self.back.0.wait();
        }
    }
}

/// A vCPU that finds another one at work on the queue does not wait for it.
#[test]
fn ring_does_not_wait() {
    model(3, 476, || {
        let stopping = Arc::new(Stopping::default());
        let mut machine = Machine::with(1, stopping.clone(), Arc::new(NoKick));
        let before = stopping.log.count();
        let commands = [mapti(0, 0, 0), discard(0)];
        let end = machine.put(&commands);
        let (first, second) = (machine.guest(), machine.guest());
        stopping.back.1.store(false, Ordering::Release);
        let other = thread::Builder::new().name("stops".into()).spawn(move || {
            first.ring(end);
            first
        });
        second.ring(end);
        stopping.back.1.store(true, Ordering::Release);
        stopping.back.0.notify();
        let first = other.unwrap().join().unwrap();
        assert_eq!(stopping.log.after(before), commands);
        drop((first, second));
        machine.end(());
    });
}

/// The ITS is disabled in the middle of a queue: once GITS_CTLR says that the ITS is quiescent, no
/// command is performed any more. The remaining commands are performed when the ITS is enabled
/// again.
#[test]
fn ring_vs_disable() {
    model(4, 945, || {
        let (mut machine, log) = Machine::new(1);
        let before = log.count();
        let commands = [mapti(0, 0, 0), discard(0)];
        let end = machine.put(&commands);
        let (first, second) = (machine.guest(), machine.guest());
        let other = thread::spawn(move || {
            first.ring(end);
            first
        });
        second.enable_its(false);
        let quiet = second.is_quiescent().then(|| log.count());
        let first = other.join().unwrap();
        assert!(second.is_quiescent(), "nobody is at work");
        let at_rest = log.count();
        assert!(quiet.is_none_or(|seen| seen == at_rest), "quiescent, but at work");
        second.enable_its(true);
        assert_eq!(log.after(before), commands);
        drop((first, second));
        machine.end(());
    });
}

/// An MSI that begins after a thread has seen that the ITS is quiescent has no effect.
#[test]
fn disable_vs_inject() {
    model(4, 200, || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let (first, second) = (machine.guest(), machine.guest());
        let source = machine.route(0);
        let mut cpu = machine.cpu(0);
        let other = thread::spawn(move || {
            first.enable_its(false);
            first
        });
        let quiescent = second.is_quiescent();
        let sent = source.send();
        assert!(!quiescent || sent == Injected::Unmapped);
        let first = other.join().unwrap();
        assert_eq!(source.send(), Injected::Unmapped);
        assert_eq!(cpu.settle().len(), usize::from(sent == Injected::Pending));
        second.enable_its(true);
        drop((first, second, source));
        machine.end(cpu);
    });
}
