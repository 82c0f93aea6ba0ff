//! Injection against delivery: coalescing never loses data. A device writes a number, then raises
//! its event. The guest reads the number after each acknowledge. However many of the injections
//! coalesced, the guest has seen the last number at the end.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::engine::*;
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::sync::atomic::{AtomicUsize, Ordering};
use vgic_loom_tests::sched::thread;

/// A device: the number that it wrote last, and its event.
struct Device {
    // All accesses are Relaxed: the interrupt orders them.
    number: Arc<AtomicUsize>,
    source: Source,
}

impl Device {
    fn new(vm: &mut Vm) -> Self {
        Self { number: Arc::new(AtomicUsize::new(0)), source: vm.source(0) }
    }

    /// Writes a number and raises the event. Returns how many deliveries that makes due.
    fn send(&self, number: usize) -> usize {
        self.number.store(number, Ordering::Relaxed);
        self.source.raise()
    }
}

/// The guest's driver.
struct Driver {
    cpu: Cpu,
    numbers: Vec<Arc<AtomicUsize>>,
    taken: usize,
    seen: Vec<usize>,
}

impl Driver {
    fn new(vm: &mut Vm, devices: &[&Device]) -> Self {
        let numbers: Vec<_> = devices.iter().map(|d| Arc::clone(&d.number)).collect();
        Self { cpu: vm.cpu(A), taken: 0, seen: vec![0; numbers.len()], numbers }
    }

    /// Enters, lets the guest read the numbers if it is interrupted, and exits.
    fn run(&mut self) {
        self.cpu.enter();
        let taken = self.cpu.lrs.acknowledge();
        if taken != 0 {
            for (seen, number) in self.seen.iter_mut().zip(&self.numbers) {
                *seen = number.load(Ordering::Relaxed);
            }
        }
        self.cpu.lrs.eoi();
        self.cpu.exit();
        self.taken += taken;
    }

    fn settle(&mut self) {
        while self.cpu.vcpu.has_mail() {
            self.run();
        }
    }
}

/// One device sends twice.
#[test]
fn data_one_injector() {
    model(6, 380, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let device = Device::new(&mut vm);
        let mut driver = Driver::new(&mut vm, &[&device]);
        let device = thread::spawn(move || (device.send(1) + device.send(2), device));
        driver.run();
        driver.run();
        let (due, device) = device.join().unwrap();
        driver.settle();
        assert_eq!(driver.seen, [2]);
        assert_eq!(driver.taken, due);
        drop(device);
        vm.end(driver);
    });
}

/// The events of two devices share an LPI.
#[test]
fn data_two_injectors_of_one_lpi() {
    model(4, 9_137, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let devices = [Device::new(&mut vm), Device::new(&mut vm)];
        let mut driver = Driver::new(&mut vm, &[&devices[0], &devices[1]]);
        let devices = devices.map(|device| thread::spawn(move || (device.send(1), device)));
        driver.run();
        driver.run();
        let devices = devices.map(|device| device.join().unwrap());
        driver.settle();
        assert_eq!(driver.seen, [1, 1]);
        assert_eq!(driver.taken, devices[0].0 + devices[1].0);
        drop(devices);
        vm.end(driver);
    });
}

/// One device sends twice. The interrupt goes back and forth between the list register and the
/// pending bit, because the guest is slow and the LPI is being disabled.
#[test]
fn data_while_withdrawn() {
    model(3, 13_446, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let device = Device::new(&mut vm);
        let mut driver = Driver::new(&mut vm, &[&device]);
        let device = thread::spawn(move || (device.send(1), device.send(2), device));
        let control = thread::spawn(move || {
            vm.msi.set_config(lpi(0), OFF).unwrap();
            vm
        });
        // Takes the LPI into a list register, and perhaps out again.
        driver.cpu.enter();
        driver.cpu.exit();
        driver.run();
        let (_, _, device) = device.join().unwrap();
        let mut vm = control.join().unwrap();
        driver.settle();
        vm.msi.set_config(lpi(0), ON).unwrap();
        driver.settle();
        assert_eq!(driver.seen, [2]);
        drop(device);
        vm.end(driver);
    });
}
