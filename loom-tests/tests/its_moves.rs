//! Commands move LPIs from vCPU to vCPU, while EnableLPIs and GITS_CTLR change.
#![cfg(any(loom, shuttle))]

use vgic_core::engine::Injected;
use vgic_core::ids::Intid;
use vgic_loom_tests::its::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::thread;

/// One vCPU clears and sets EnableLPIs, and another thread sends an MSI, while the vCPU that both
/// concern runs.
#[test]
fn t02_toggle_enable_lpis_vs_inject() {
    model(1, 597, || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let (source, guest) = (machine.route(0), machine.guest());
        let mut cpu = machine.cpu(0);
        let toggler = thread::spawn(move || {
            guest.enable_lpis(0, false);
            guest.enable_lpis(0, true);
            guest
        });
        let sent = source.send();
        let mut taken = cpu.run().len();
        let guest = toggler.join().unwrap();
        taken += cpu.settle().len();
        // The MSI was taken in time, cleared, or ignored. An MSI that comes afterwards is
        // delivered.
        assert!(taken <= usize::from(sent == Injected::Pending));
        assert_eq!(source.send(), Injected::Pending);
        assert_eq!(cpu.settle(), [lpi(0)]);
        drop((source, guest));
        machine.end(cpu);
    });
}

/// Two vCPUs write GICD_CTLR: in the end, the engine's gates agree with the register.
#[test]
fn gicd_ctlr_written_at_once() {
    model(2, 45, || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let guests = [machine.guest(), machine.guest()];
        let mut cpu = machine.cpu(0);
        let mut enable = false;
        let writers = guests.map(|guest| {
            enable = !enable;
            thread::spawn(move || {
                guest.enable_groups(enable);
                guest
            })
        });
        let guests = writers.map(|writer| writer.join().unwrap());
        machine.run(int(0));
        let due = if guests[0].has_groups() { vec![lpi(0)] } else { vec![] };
        assert_eq!(cpu.settle(), due);
        drop(guests);
        machine.end(cpu);
    });
}

/// Two threads clear and set EnableLPIs of a vCPU that has an LPI in a list register.
#[test]
fn t02_two_toggle_enable_lpis() {
    model(2, 390, || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let guests = [machine.guest(), machine.guest()];
        let mut cpu = machine.cpu(0);
        machine.run(int(0));
        cpu.look();
        let togglers = guests.map(|guest| {
            thread::spawn(move || {
                guest.enable_lpis(0, false);
                guest.enable_lpis(0, true);
                guest
            })
        });
        let guests = togglers.map(|toggler| toggler.join().unwrap());
        // The earlier interrupt is no longer pending, whether or not it was taken. An interrupt
        // that comes now is delivered.
        cpu.settle();
        machine.run(int(0));
        assert_eq!(cpu.settle(), [lpi(0)]);
        drop(guests);
        machine.end(cpu);
    });
}

/// One vCPU clears and sets GITS_CTLR and another clears and sets EnableLPIs, while an MSI is sent
/// and commands wait for the ITS.
#[test]
fn t02_toggle_its_vs_toggle_enable_lpis() {
    model(1, 31_890, || {
        let (mut machine, log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let (source, its, lpis) = (machine.route(0), machine.guest(), machine.guest());
        let mut cpu = machine.cpu(0);
        let before = log.count();
        let commands = [mapti(1, 1, 0), int(1)];
        let end = machine.put(&commands);
        let its = thread::spawn(move || {
            its.enable_its(false);
            its.ring(end);
            its.enable_its(true);
            its
        });
        let lpis = thread::spawn(move || {
            lpis.enable_lpis(0, false);
            lpis.enable_lpis(0, true);
            lpis
        });
        let sent = source.send();
        let mut taken = cpu.run().len();
        let (its, lpis) = (its.join().unwrap(), lpis.join().unwrap());
        taken += cpu.settle().len();
        assert_eq!(log.after(before), commands);
        // Each interrupt is taken at most once. The interrupt of INT is taken once more if INT came
        // while LPIs were disabled, and LPIs were enabled at that moment (`is_enabled_meanwhile`).
        assert!(taken <= 2 + usize::from(sent == Injected::Pending));
        assert_eq!(source.send(), Injected::Pending);
        machine.run(int(1));
        assert_eq!(cpu.settle().len(), 2);
        drop((source, its, lpis));
        machine.end(cpu);
    });
}

/// An LPI is pending at a vCPU. One thread clears EnableLPIs of this vCPU while another moves the
/// LPI to a second vCPU.
fn move_vs_disable(prepare: fn(&mut Cpu)) {
    model(1, 449, move || {
        let (mut machine, _log) = Machine::new(2);
        machine.run(mapti(0, 0, 0));
        let (first, second) = (machine.guest(), machine.guest());
        let mut cpus = [machine.cpu(0), machine.cpu(1)];
        machine.run(int(0));
        prepare(&mut cpus[0]);
        let end = machine.put(&[movi(0, 1)]);
        let first = thread::spawn(move || {
            first.enable_lpis(0, false);
            first
        });
        let second = thread::spawn(move || {
            second.ring(end);
            second
        });
        let taken = cpus[0].run().len();
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        let rest = settle(&mut cpus);
        assert_eq!(rest[0], []);
        // The counts are 0 if the LPI was cleared before it was moved. An interrupt that the old
        // vCPU has just taken may come once more at the new one (`silence`).
        assert!(taken <= 1 && rest[1].len() <= 1);
        machine.run(int(0));
        assert_eq!(settle(&mut cpus), [vec![], vec![lpi(0)]]);
        drop((first, second));
        machine.end(cpus);
    });
}

#[test]
fn t03_disable_vs_movi_vs_drain() {
    move_vs_disable(|_| {});
}

#[test]
fn t03_disable_vs_movi_vs_list_register() {
    move_vs_disable(Cpu::look);
}

/// An LPI moves to a vCPU that enters while its EnableLPIs is cleared: if the vCPU has not taken
/// the LPI by then, the LPI is no longer pending.
#[test]
fn t04_movi_vs_disable_of_the_target() {
    model(1, 113, || {
        let (mut machine, _log) = Machine::new(2);
        machine.run(mapti(0, 0, 0));
        let (first, second) = (machine.guest(), machine.guest());
        let mut cpus = [machine.cpu(0), machine.cpu(1)];
        machine.run(int(0));
        let end = machine.put(&[movi(0, 1)]);
        let first = thread::spawn(move || {
            first.ring(end);
            first
        });
        let second = thread::spawn(move || {
            second.enable_lpis(1, false);
            second
        });
        let taken = cpus[1].run().len();
        let (first, second) = (first.join().unwrap(), second.join().unwrap());
        assert_eq!(settle(&mut cpus), [vec![], vec![]]);
        second.enable_lpis(1, true);
        assert_eq!(settle(&mut cpus), [vec![], vec![]], "it came before");
        assert!(taken <= 1);
        machine.run(int(0));
        assert_eq!(settle(&mut cpus), [vec![], vec![lpi(0)]]);
        drop((first, second));
        machine.end(cpus);
    });
}

/// An LPI moves away while EnableLPIs of its vCPU is cleared. If `sends`, an MSI is sent after the
/// move: it is for the new vCPU, which then enters.
fn movi_vs_disable_on(at_least: usize, sends: bool, prepare: fn(&mut Machine, &mut Cpu)) {
    model(2, at_least, move || {
        let (mut machine, _log) = Machine::new(2);
        machine.run(mapti(0, 0, 0));
        let (source, guest) = (machine.route(0), machine.guest());
        let mut cpus = [machine.cpu(0), machine.cpu(1)];
        prepare(&mut machine, &mut cpus[0]);
        let other = thread::spawn(move || {
            guest.enable_lpis(0, false);
            guest
        });
        machine.run(movi(0, 1));
        if sends {
            assert_ne!(source.send(), Injected::Unmapped, "its vCPU takes MSIs");
            cpus[1].look();
        }
        let guest = other.join().unwrap();
        let due = if sends { vec![lpi(0)] } else { vec![] };
        assert_eq!(settle(&mut cpus), [vec![], due]);
        drop((source, guest));
        machine.end(cpus);
    });
}

#[test]
fn movi_and_msi_vs_disable() {
    movi_vs_disable_on(1_329, true, |_, _| {});
}

#[test]
fn movi_and_msi_vs_disable_of_what_is_in_a_list_register() {
    movi_vs_disable_on(1_134, true, |machine, cpu| {
        machine.run(int(0));
        cpu.look();
    });
}

#[test]
fn movi_vs_disable_of_what_is_not_pending() {
    movi_vs_disable_on(1_058, false, |_, _| {});
}

/// An LPI moves to a vCPU while LPIs are enabled there. There was no MSI, so there is no interrupt.
#[test]
fn movi_vs_enable_of_what_is_not_pending() {
    model(2, 1_575, || {
        let (mut machine, _log) = Machine::new(2);
        let guest = machine.guest();
        machine.run(mapti(0, 0, 0));
        let mut cpus = [machine.cpu(0), machine.cpu(1)];
        guest.enable_lpis(1, false);
        let enables = thread::spawn(move || {
            guest.enable_lpis(1, true);
            guest
        });
        machine.run(movi(0, 1));
        let guest = enables.join().unwrap();
        let taken = settle(&mut cpus);
        assert!(taken.iter().all(Vec::is_empty), "{taken:?}");
        drop(guest);
        machine.end(cpus);
    });
}

/// As [`movi_and_msi_vs_disable_of_what_is_in_a_list_register`], while the old vCPU, which has the
/// LPI in a list register, enters: it takes in the MSI that is for the new vCPU, and must not be
/// the last to have it.
#[test]
fn movi_and_msi_vs_disable_vs_old_vcpu() {
    model(1, 16_036, move || {
        let (mut machine, _log) = Machine::new(2);
        machine.run(mapti(0, 0, 0));
        let (source, guest) = (machine.route(0), machine.guest());
        let [mut old, new] = [machine.cpu(0), machine.cpu(1)];
        machine.run(int(0));
        old.look();
        let looks = thread::spawn(move || {
            old.look();
            old
        });
        let disables = thread::spawn(move || {
            guest.enable_lpis(0, false);
            guest
        });
        machine.run(movi(0, 1));
        assert_ne!(source.send(), Injected::Unmapped, "its vCPU takes MSIs");
        let (old, guest) = (looks.join().unwrap(), disables.join().unwrap());
        let mut cpus = [old, new];
        let [none, some] = settle(&mut cpus);
        assert!(none.is_empty() && !some.is_empty(), "{none:?} {some:?}");
        drop((source, guest));
        machine.end(cpus);
    });
}

/// An LPI moves away and back while EnableLPIs of its vCPU is cleared and set again, and the vCPU
/// enters.
#[test]
fn t04_movi_there_and_back_vs_toggle() {
    model(1, 743, || {
        let (mut machine, _log) = Machine::new(2);
        machine.run(mapti(0, 0, 0));
        let (first, second) = (machine.guest(), machine.guest());
        let mut cpus = [machine.cpu(0), machine.cpu(1)];
        machine.run(int(0));
        cpus[0].look();
        let end = machine.put(&[movi(0, 1), movi(0, 0)]);
        let other = thread::spawn(move || {
            first.ring(end);
            first
        });
        second.enable_lpis(0, false);
        cpus[0].look();
        second.enable_lpis(0, true);
        let first = other.join().unwrap();
        // The LPI was cleared, unless it was at the other vCPU at that moment.
        let rest = settle(&mut cpus);
        assert!(rest[0].len() <= 1 && rest[1].is_empty());
        machine.run(int(0));
        assert_eq!(settle(&mut cpus), [vec![lpi(0)], vec![]]);
        drop((first, second));
        machine.end(cpus);
    });
}

/// MOVALL from vCPU 0 to vCPU 2 while the MSI of `event` is sent. The LPI of vCPU 0 ends up at vCPU
/// 2, unless vCPU 0 takes it first. The LPI of vCPU 1 stays there.
fn movall_vs_inject_on(event: u32, in_lr: bool) {
    model(3, 98, move || {
        let (mut machine, _log) = Machine::new(3);
        machine.run(mapti(0, 0, 0));
        machine.run(mapti(1, 1, 1));
        let (source, guest) = (machine.route(event), machine.guest());
        let mut cpus = [machine.cpu(0), machine.cpu(1), machine.cpu(2)];
        machine.run(int(1 - event));
        if in_lr {
            machine.run(int(event));
            cpus.iter_mut().for_each(Cpu::look);
        }
        let end = machine.put(&[movall(0, 2)]);
        let commands = thread::spawn(move || {
            guest.ring(end);
            guest
        });
        let _ = source.send();
        let at = event as usize;
        let mut taken: [Vec<Intid>; 3] = Default::default();
        taken[at] = cpus[at].run();
        let guest = commands.join().unwrap();
        let rest = settle(&mut cpus);
        (0..3).for_each(|n| taken[n].extend(&rest[n]));
        assert_eq!(taken[1], [lpi(1)]);
        // If vCPU 0 has taken the interrupt that was in its list register, the MSI is a second
        // interrupt.
        let (left, moved) = (taken[0].len(), taken[2].len());
        assert!(left + moved == 1 || in_lr && left > 0 && left + moved == 2, "{left} and {moved}");
        // The targets are the same from now on.
        machine.run(int(0));
        machine.run(int(1));
        assert_eq!(settle(&mut cpus), [vec![], vec![lpi(1)], vec![lpi(0)]]);
        drop((source, guest));
        machine.end(cpus);
    });
}

#[test]
fn t12_movall_vs_inject_of_what_moves() {
    movall_vs_inject_on(0, false);
}

#[test]
fn t12_movall_vs_inject_of_what_stays() {
    movall_vs_inject_on(1, false);
}

#[test]
fn t12_movall_of_what_is_in_a_list_register() {
    movall_vs_inject_on(0, true);
}

/// MOVALL while the vCPU that the LPIs leave enters its guest.
#[test]
fn t12_movall_vs_entry() {
    model(3, 365, || {
        let (mut machine, _log) = Machine::new(3);
        machine.run(mapti(0, 0, 0));
        let guest = machine.guest();
        let mut cpus = [machine.cpu(0), machine.cpu(1), machine.cpu(2)];
        machine.run(int(0));
        let end = machine.put(&[movall(0, 2)]);
        let commands = thread::spawn(move || {
            guest.ring(end);
            guest
        });
        let taken = cpus[0].run().len();
        let guest = commands.join().unwrap();
        let rest = settle(&mut cpus);
        assert_eq!((taken + rest[2].len(), &rest[1]), (1, &vec![]));
        drop(guest);
        machine.end(cpus);
    });
}

/// MOVALL of an LPI that is pending and that no vCPU has, because its vCPU is off.
#[test]
fn t12_movall_of_what_nobody_has() {
    model(3, 5, || {
        let (mut machine, _log) = Machine::new(3);
        machine.run(mapti(0, 0, 0));
        let guest = machine.guest();
        let mut cpus = [machine.cpu(0), machine.cpu(1), machine.cpu(2)];
        cpus[0].power_off();
        machine.run(int(0));
        let end = machine.put(&[movall(0, 2)]);
        let commands = thread::spawn(move || {
            guest.ring(end);
            guest
        });
        let taken = cpus[2].run().len();
        let guest = commands.join().unwrap();
        let rest = settle(&mut cpus);
        assert_eq!((taken + rest[2].len(), rest.concat().len() - rest[2].len()), (1, 0));
        drop(guest);
        machine.end(cpus);
    });
}
