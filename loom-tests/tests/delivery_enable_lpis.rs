//! Injection and delivery against GICR_CTLR.EnableLPIs: LPIs stay pending while it is clear, and
//! are delivered when it is set.
#![cfg(any(loom, shuttle))]

use vgic_core::engine::*;
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::thread;

/// Another thread sets EnableLPIs while a vCPU thread sends itself an MSI: at least one of the two
/// threads sees the other's change.
fn self_inject_vs_enable_lpis_on(at_least: usize, cpu: MakeCpu) {
    model(4, at_least, move || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let redist = vm.injector();
        let mut cpu = cpu(&mut vm, A);
        redist.set_lpis_enabled(A, false).unwrap();
        cpu.enter();
        cpu.exit();
        let control = thread::spawn(move || {
            redist.set_lpis_enabled(A, true).unwrap();
            redist
        });
        let due = source.raise();
        let taken = cpu.run();
        let redist = control.join().unwrap();
        assert_eq!(taken + cpu.settle(), due);
        drop((source, redist));
        vm.end(cpu);
    });
}

#[test]
fn self_inject_vs_enable_lpis() {
    self_inject_vs_enable_lpis_on(1, Vm::cpu);
}

#[test]
fn self_inject_vs_enable_lpis_busy() {
    self_inject_vs_enable_lpis_on(144, Vm::busy_cpu);
}

/// EnableLPIs is set while an LPI is raised and the vCPU runs.
fn inject_vs_enable_lpis_on(at_least: usize, cpu: MakeCpu) {
    model(4, at_least, move || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let redist = vm.injector();
        let mut cpu = cpu(&mut vm, A);
        redist.set_lpis_enabled(A, false).unwrap();
        cpu.enter();
        cpu.exit();
        let injector = thread::spawn(move || (source.raise(), source));
        let control = thread::spawn(move || {
            redist.set_lpis_enabled(A, true).unwrap();
            redist
        });
        let taken = cpu.run();
        let (due, source) = injector.join().unwrap();
        let redist = control.join().unwrap();
        assert_eq!(taken + cpu.settle(), due);
        drop((source, redist));
        vm.end(cpu);
    });
}

#[test]
fn inject_vs_enable_lpis() {
    inject_vs_enable_lpis_on(1, Vm::cpu);
}

#[test]
fn inject_vs_enable_lpis_busy() {
    inject_vs_enable_lpis_on(6_878, Vm::busy_cpu);
}

/// EnableLPIs is cleared while an LPI is raised and the vCPU runs: if the LPI has not been
/// acknowledged by then, it stays pending.
fn inject_vs_disable_lpis_on(at_least: usize, cpu: MakeCpu) {
    model(4, at_least, move || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let redist = vm.injector();
        let mut cpu = cpu(&mut vm, A);
        let injector = thread::spawn(move || (source.raise(), source));
        let control = thread::spawn(move || {
            redist.set_lpis_enabled(A, false).unwrap();
            redist
        });
        // A slow guest.
        cpu.enter();
        cpu.exit();
        let taken = cpu.run();
        let (due, source) = injector.join().unwrap();
        let redist = control.join().unwrap();
        assert_eq!(cpu.settle(), 0, "they are disabled");
        redist.set_lpis_enabled(A, true).unwrap();
        assert_eq!(taken + cpu.settle(), due);
        drop((source, redist));
        vm.end(cpu);
    });
}

#[test]
fn inject_vs_disable_lpis() {
    inject_vs_disable_lpis_on(1, Vm::cpu);
}

#[test]
fn inject_vs_disable_lpis_busy() {
    inject_vs_disable_lpis_on(12_742, Vm::busy_cpu);
}

/// EnableLPIs is cleared while two LPIs get into list registers. The guest has acknowledged an
/// earlier delivery of one of them.
#[test]
fn disable_lpis_vs_delivery() {
    model(6, 264, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        vm.map(1, A, ON);
        let (first, second) = (vm.source(0), vm.source(1));
        let redist = vm.injector();
        let mut cpu = vm.cpu(A);
        let mut due = first.raise();
        cpu.enter();
        let mut taken = cpu.lrs.acknowledge();
        cpu.exit();
        due += second.raise() + first.raise();
        let control = thread::spawn(move || {
            redist.set_lpis_enabled(A, false).unwrap();
            redist
        });
        cpu.enter();
        cpu.exit();
        cpu.enter();
        cpu.lrs.eoi();
        cpu.exit();
        let redist = control.join().unwrap();
        assert_eq!(cpu.settle(), 0, "they are disabled");
        redist.set_lpis_enabled(A, true).unwrap();
        taken += cpu.settle();
        assert_eq!(taken, due);
        drop((first, second, redist));
        vm.end(cpu);
    });
}

/// Two threads clear and set EnableLPIs of a vCPU that is being interrupted.
#[test]
fn t02_two_toggle_enable_lpis() {
    model(2, 2_218, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let redists = [vm.injector(), vm.injector()];
        let mut cpu = vm.cpu(A);
        let togglers = redists.map(|redist| {
            thread::spawn(move || {
                redist.set_lpis_enabled(A, false).unwrap();
                redist.set_lpis_enabled(A, true).unwrap();
                redist
            })
        });
        let due = source.raise();
        let taken = cpu.run();
        let redists = togglers.map(|toggler| toggler.join().unwrap());
        // The last write set EnableLPIs.
        assert_eq!(taken + cpu.settle(), due);
        drop((source, redists));
        vm.end(cpu);
    });
}

/// An MSI that comes after LPIs have been enabled is delivered, even if an MSI that came before is
/// still being ignored.
#[test]
fn msi_after_enable_vs_one_before() {
    model(3, 53_614, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let (early, late) = (vm.source(0), vm.source(0));
        let redist = vm.injector();
        let mut cpu = vm.cpu(A);
        let with = |enabled| move |gates| Gates { lpis: enabled, msis: enabled, ..gates };
        redist.update_gates(A, with(false)).unwrap();
        let before = thread::spawn(move || (early.send(), early));
        let after = thread::spawn(move || {
            redist.update_gates(A, with(true)).unwrap();
            (late.send(), late, redist)
        });
        let taken = cpu.run();
        let (one, early) = before.join().unwrap();
        let (two, late, redist) = after.join().unwrap();
        let taken = taken + cpu.settle();
        assert!(taken >= 1, "the one that came after is lost");
        assert!(taken <= 2, "{one:?}, {two:?}: {taken}");
        assert_ne!(two, Injected::Unmapped);
        drop((early, late, redist));
        vm.end(cpu);
    });
}

/// A thread that disables LPIs and then clears the pending bit misses no MSI that came before.
#[test]
fn msi_vs_disable_and_clear() {
    model(4, 627, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let redist = vm.injector();
        let mut cpu = vm.cpu(A);
        let device = thread::spawn(move || (source.send(), source));
        let with = |enabled| move |gates| Gates { lpis: enabled, msis: enabled, ..gates };
        redist.update_gates(A, with(false)).unwrap();
        vm.msi.set_pending(lpi(0), false).unwrap();
        let (_, source) = device.join().unwrap();
        redist.update_gates(A, with(true)).unwrap();
        assert_eq!(cpu.settle(), 0, "it came before");
        drop((source, redist));
        vm.end(cpu);
    });
}

/// An MSI is being ignored, because its vCPU takes none, while its event is unmapped and mapped to
/// a vCPU that takes MSIs. Pending bits belong to INTIDs, so the bit that the ignored injection
/// takes back may belong to another MSI by then.
#[test]
fn ignored_msi_vs_remap_and_msi() {
    model(2, 940, || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        let [early, late] = [vm.injector(), vm.injector()];
        late.update_gates(A, |gates| Gates { lpis: false, msis: false, ..gates }).unwrap();
        let mut cpu = vm.cpu(B);
        let domain = vm.msi.domain();
        let before = thread::spawn(move || {
            let _ = early.inject(&domain, DEVICE, EVENT);
            (early, domain)
        });
        vm.msi.unmap(DEVICE, EVENT).unwrap();
        vm.map(0, B, ON);
        let injected = late.inject(&vm.msi.domain(), DEVICE, EVENT);
        assert_ne!(injected, Injected::Unmapped);
        let before = before.join().unwrap();
        assert_eq!(cpu.settle(), 1, "the one that came after is lost");
        drop((before, late));
        vm.end(cpu);
    });
}
