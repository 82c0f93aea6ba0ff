//! The operations on wired interrupts that the registers of a distributor need from an engine:
//! configuration, pending and active state, GICv2's SGIs, physical interrupts, gates. Each test
//! covers one property, on every engine that is listed at the head of `on_engines!`.
#![cfg(feature = "locked")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread;

use common::*;
use vgic_core::cpuif::{CpuInterface, DirOutcome};
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::lr::{ListRegisters, Lr, LrState};

macro_rules! on_engine {
    ($engine:ident = $type:ty; [$($name:ident)*]) => {
        mod $engine { $(#[test] fn $name() { super::$name::<$type>(); })* }
    };
}

macro_rules! each_engine {
    ([$($engine:ident = $type:ty;)*] $names:tt) => { $(on_engine! { $engine = $type; $names })* };
}

/// Makes each function a test of each engine.
macro_rules! on_engines {
    ($engines:tt $($(#[$meta:meta])* fn $name:ident<$e:ident>() $body:block)*) => {
        $($(#[$meta])* fn $name<$e: Engine>() $body)*
        each_engine! { $engines [$($name)*] }
    };
}

const V1: VcpuId = VcpuId(1);
const SGI: Wired = Wired::Private(V1, Intid(3));
const PPI: Wired = Wired::Private(V1, Intid(27));
const EPPI: Wired = Wired::Private(V1, Intid(EPPI_BASE + 3));
const SPI: Wired = Wired::Spi(Intid(40));
const ESPI: Wired = Wired::Spi(Intid(ESPI_BASE + 7));

fn machine<E: Engine>() -> Machine<E> {
    machine_with(4)
}

fn machine_with<E: Engine>(lrs: usize) -> Machine<E> {
    let mut m = Machine::<E>::with(Config { eppis: 8, espis: 16, ..Config::with_vcpus(2) }, lrs);
    // EOImode 1: EOIR drops the priority, DIR deactivates.
    m.cpus.iter_mut().for_each(|cpu| cpu.set_ctlr(2));
    m
}

/// Returns a configuration with vCPU 1 as the target.
fn wired(trigger: Trigger, group: Group) -> WiredConfig {
    WiredConfig { enabled: true, priority: Priority::new(0xa0), group, trigger, target: V1 }
}

fn intid(wired: Wired) -> Intid {
    match wired {
        Wired::Private(_, intid) | Wired::Spi(intid) => intid,
    }
}

/// Returns the list register that holds an interrupt, with any sender.
fn lr(cpu: &CpuInterface, intid: Intid) -> Option<Lr> {
    let source = if intid.is_sgi() { 0x1c00 } else { 0 };
    (0..cpu.count())
        .map(|n| cpu.read(n))
        .find(|lr| lr.state() != LrState::Invalid && lr.intid().0 & !source == intid.0)
}

/// The state of an interrupt when the test accesses it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Case {
    Idle,
    /// Pulsed after the entry.
    Latched,
    Offered,
    Active,
    PendingActive,
    /// Pending in a list register because of its level.
    High,
    HighActive,
    /// Taken at a high level that has fallen since.
    FallenActive,
    /// Pulsed, but disabled.
    Disabled,
    /// Pulsed, at a vCPU that is off.
    Closed,
    /// Active at a vCPU that was powered off.
    ClosedActive,
}

use Case::*;

impl Case {
    const ALL: [Self; 11] = [
        Idle,
        Latched,
        Offered,
        Active,
        PendingActive,
        High,
        HighActive,
        FallenActive,
        Disabled,
        Closed,
        ClosedActive,
    ];

    fn pending(self) -> bool {
        matches!(self, Latched | Offered | PendingActive | High | HighActive | Disabled | Closed)
    }

    fn active(self) -> bool {
        matches!(self, Active | PendingActive | HighActive | FallenActive | ClosedActive)
    }

    fn is_level(self) -> bool {
        matches!(self, High | HighActive | FallenActive)
    }

    fn is_closed(self) -> bool {
        matches!(self, Closed | ClosedActive)
    }

    /// Sets up this state. Afterwards vCPU 1 is in the guest, unless it is off.
    fn set_up<E: Engine>(self, m: &mut Machine<E>, irq: Wired) {
        let trigger = if self.is_level() { Trigger::Level } else { Trigger::Edge };
        let config = wired(trigger, Group::Group1);
        m.injector.configure(irq, WiredConfig { enabled: self != Disabled, ..config }).unwrap();
        if self == Closed {
            m.vcpus[1].close(&mut m.cpus[1]);
        }
        if self.is_level() {
            m.injector.set_level(irq, true).unwrap();
        } else if !matches!(self, Idle | Latched) {
            assert_eq!(m.injector.pulse(irq), Ok(Injected::Pending));
        }
        m.enter(1);
        if self.active() {
            assert_eq!(m.cpus[1].iar1(), intid(irq));
        }
        match self {
            Latched | PendingActive => {
                assert_eq!(m.injector.pulse(irq), Ok(Injected::Pending));
            }
            FallenActive => m.injector.set_level(irq, false).unwrap(),
            ClosedActive => m.vcpus[1].close(&mut m.cpus[1]),
            _ => {}
        }
    }
}

/// Ends a thread, even if the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The place of vCPU 1.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Guest {
    /// Between a fold and a flush.
    Out,
    /// In the guest, on a thread that leaves it when it is kicked.
    In,
    /// In the guest, on a thread that leaves it when it is kicked, and enters it again at once.
    Again,
}

impl Guest {
    const ALL: [Self; 3] = [Guest::Out, Guest::In, Guest::Again];

    /// Does `f` while vCPU 1 is in this place. `f` must not wait forever.
    fn during<E: Engine, R>(self, m: &mut Machine<E>, f: impl FnOnce(&E::Injector) -> R) -> R {
        if self == Guest::Out {
            m.exit(1);
            return f(&m.injector);
        }
        let (kicks, over) = (Arc::clone(&m.kicks), AtomicBool::new(false));
        let (vcpu, cpu, over) = (&mut m.vcpus[1], &mut m.cpus[1], &over);
        let mut seen = kicks.0[1].load(Ordering::SeqCst);
        thread::scope(|scope| {
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let now = kicks.0[1].load(Ordering::SeqCst);
                    if seen != now {
                        seen = now;
                        vcpu.fold(cpu);
                        if self == Guest::Again {
                            vcpu.flush(cpu);
                        }
                    }
                    thread::yield_now();
                }
            });
            let _over = Over(over);
            f(&m.injector)
        })
    }
}

/// Returns whether an interrupt is pending and whether it is active, as other threads see it.
fn state(injector: &impl Injector, irq: Wired) -> (bool, bool) {
    (injector.is_pending(irq).unwrap(), injector.is_active(irq).unwrap())
}

/// Runs `f` for each state of an interrupt, and each place of its vCPU.
fn in_every_case<E: Engine>(f: impl Fn(&mut Machine<E>, Wired, Case, Guest)) {
    for irq in [SGI, PPI, EPPI, SPI, ESPI] {
        for case in Case::ALL {
            if irq == SGI && case.is_level() {
                continue;
            }
            for guest in Guest::ALL {
                let mut m = machine::<E>();
                case.set_up(&mut m, irq);
                f(&mut m, irq, case, guest);
            }
        }
    }
}

/// Deactivates, as the guest, an interrupt that is in a list register.
fn dir(cpu: &mut CpuInterface, irq: Wired) {
    assert!(matches!(cpu.dir(intid(irq)), DirOutcome::Deactivated(_)), "{irq:?}");
}

/// Ends, as the guest, an interrupt that it has acknowledged, so that its running priority masks
/// nothing.
fn drop_priority(cpu: &mut CpuInterface, case: Case, irq: Wired) {
    if case.active() {
        let _ = cpu.eoir1(intid(irq));
    }
}

/// A host that knows the level of an input, and counts how often it was asked.
#[derive(Default)]
struct Inputs {
    /// 0 and 1 are levels; any other value means that the level is unknown.
    level: AtomicU8,
    asked: AtomicU64,
}

impl Kick for Inputs {
    fn kick(&self, _: VcpuId) {}

    fn input_level(&self, irq: Wired) -> Option<bool> {
        assert_eq!(irq, PPI);
        self.asked.fetch_add(1, Ordering::Relaxed);
        let level = self.level.load(Ordering::Relaxed);
        (level < 2).then_some(level == 1)
    }
}

on_engines! {
    // The engines under test.
    [lock_free = vgic_core::Vgic; locked = vgic_core::locked::LockedVgic;]

    fn configurations_round_trip<E>() {
        let m = machine::<E>();
        for irq in [SGI, PPI, EPPI, SPI, ESPI] {
            let reset = m.injector.config(irq).unwrap();
            assert!(!reset.enabled);
            let private = matches!(irq, Wired::Private(..));
            assert_eq!(reset.target, if private { V1 } else { VcpuId(0) });
            let config = wired(Trigger::Level, Group::Group1);
            m.injector.configure(irq, config).unwrap();
            let trigger = if irq == SGI { Trigger::Edge } else { Trigger::Level };
            assert_eq!(m.injector.config(irq), Ok(WiredConfig { trigger, ..config }));
            let changed = m.injector.update(irq, |c| WiredConfig {
                priority: Priority::new(0x48),
                group: Group::Group0,
                target: VcpuId(0),
                ..c
            });
            let target = if private { V1 } else { VcpuId(0) };
            let want = WiredConfig {
                priority: Priority::new(0x48), group: Group::Group0, trigger, target, ..config
            };
            assert_eq!(changed, Ok(want));
            assert_eq!(m.injector.config(irq), Ok(want));
            // vCPU 2 does not exist, so the target stays; the other fields are changed.
            let off = m
                .injector
                .update(irq, |c| WiredConfig { enabled: false, target: VcpuId(2), ..c });
            assert_eq!(off, Ok(WiredConfig { enabled: false, ..want }));
            assert_eq!(m.injector.config(irq), off);
        }
    }

    fn an_update_has_the_effect_of_a_configuration<E>() {
        let mut m = machine::<E>();
        let _ = m.injector.pulse(SPI).unwrap();
        // After a reset, the target is vCPU 0.
        assert!(m.run(0).is_empty() && m.run(1).is_empty());
        m.injector.update(SPI, |_| wired(Trigger::Edge, Group::Group1)).unwrap();
        assert_eq!(m.kicks(1), 1);
        assert_eq!(m.run(1), [40]);
    }

    fn what_does_not_exist_is_refused<E>() {
        let m = machine::<E>();
        let (i, range) = (&m.injector, |n| Error::IntidRange(Intid(n)));
        let none = [
            (Wired::Spi(Intid(31)), range(31)),
            (Wired::Spi(Intid(64)), range(64)),
            (Wired::Spi(Intid(ESPI_BASE + 16)), range(ESPI_BASE + 16)),
            (Wired::Spi(Intid(EPPI_BASE)), range(EPPI_BASE)),
            (Wired::Private(V1, Intid(32)), range(32)),
            (Wired::Private(V1, Intid(EPPI_BASE + 8)), range(EPPI_BASE + 8)),
            (Wired::Private(VcpuId(2), Intid(20)), Error::NoSuchVcpu(VcpuId(2))),
        ];
        for (irq, error) in none {
            assert_eq!(i.config(irq), Err(error));
            assert_eq!(i.update(irq, |c| c), Err(error));
            assert_eq!(i.line(irq), Err(error));
            assert_eq!(i.is_pending(irq), Err(error));
            assert_eq!(i.is_active(irq), Err(error));
            assert_eq!(i.set_active(irq, true), Err(error));
            assert_eq!(i.map_phys(irq, 100), Err(error));
            assert_eq!(i.unmap_phys(irq), Err(error));
            assert_eq!(i.phys(irq), Err(error));
        }
        assert_eq!(i.pulse_from(V1, Intid(16), 1), Err(range(16)));
        assert_eq!(i.clear_from(V1, Intid(16), 1), Err(range(16)));
        assert_eq!(i.senders(V1, Intid(16)), Err(range(16)));
        assert_eq!(i.senders(VcpuId(2), Intid(3)), Err(Error::NoSuchVcpu(VcpuId(2))));
        assert_eq!(i.update_gates(VcpuId(2), |g| g), Err(Error::NoSuchVcpu(VcpuId(2))));
    }

    fn lines_are_as_they_were_set<E>() {
        let m = machine::<E>();
        for trigger in [Trigger::Edge, Trigger::Level] {
            m.injector.configure(SPI, wired(trigger, Group::Group1)).unwrap();
            for high in [false, true, false] {
                m.injector.set_level(SPI, high).unwrap();
                assert_eq!(m.injector.line(SPI), Ok(high));
            }
        }
    }

    fn extended_interrupts_are_delivered<E>() {
        let mut m = machine_with::<E>(4);
        m.cpus[1].set_ctlr(0);
        for irq in [EPPI, ESPI] {
            m.injector.configure(irq, wired(Trigger::Edge, Group::Group1)).unwrap();
            let _ = m.injector.pulse(irq).unwrap();
            assert_eq!(m.run(1), [intid(irq).0]);
        }
        assert!(m.drain(1).is_empty());
    }

    fn reads_see_every_state<E>() {
        in_every_case::<E>(|m, irq, case, guest| {
            let seen = guest.during(m, |injector| state(injector, irq));
            assert_eq!(seen, (case.pending(), case.active()), "{irq:?} {case:?} {guest:?}");
        });
    }

    fn made_active_it_stays_so_until_it_is_deactivated<E>() {
        in_every_case::<E>(|m, irq, case, guest| {
            let seen = guest.during(m, |injector| {
                injector.set_active(irq, true).unwrap();
                state(injector, irq)
            });
            assert_eq!(seen, (case.pending(), true), "{irq:?} {case:?} {guest:?}");
            if case.is_closed() {
                m.vcpus[1].open();
            }
            m.enter(1);
            let held = lr(&m.cpus[1], intid(irq)).expect("what is active is in a list register");
            assert!(held.state().is_active(), "{irq:?} {case:?} {guest:?}");
            assert_eq!(m.cpus[1].iar1(), Intid(SPURIOUS), "not again before it is deactivated");
            drop_priority(&mut m.cpus[1], case, irq);
            dir(&mut m.cpus[1], irq);
            m.exit(1);
            let seen = state(&m.injector, irq);
            assert_eq!(seen, (case.pending(), false), "{irq:?} {case:?} {guest:?}");
            m.enter(1);
            let delivered = case.pending() && case != Disabled;
            let want = if delivered { intid(irq) } else { Intid(SPURIOUS) };
            assert_eq!(m.cpus[1].iar1(), want, "{irq:?} {case:?} {guest:?}");
        });
    }

    fn made_inactive_it_is_delivered_again<E>() {
        in_every_case::<E>(|m, irq, case, guest| {
            let seen = guest.during(m, |injector| {
                injector.set_active(irq, false).unwrap();
                state(injector, irq)
            });
            assert_eq!(seen, (case.pending(), false), "{irq:?} {case:?} {guest:?}");
            if case.is_closed() {
                m.vcpus[1].open();
            }
            drop_priority(&mut m.cpus[1], case, irq);
            m.enter(1);
            let held = lr(&m.cpus[1], intid(irq)).map(|lr| lr.state());
            let delivered = case.pending() && case != Disabled;
            assert_eq!(held, delivered.then_some(LrState::Pending), "{irq:?} {case:?} {guest:?}");
            assert_eq!(m.cpus[1].iar1() == intid(irq), delivered);
            m.exit(1);
            // The acknowledge came later, and therefore holds.
            assert_eq!(m.injector.is_active(irq), Ok(delivered), "{irq:?} {case:?} {guest:?}");
        });
    }

    fn made_active_and_inactive_it_is_as_before<E>() {
        in_every_case::<E>(|m, irq, case, guest| {
            let seen = guest.during(m, |injector| {
                injector.set_active(irq, !case.active()).unwrap();
                injector.set_active(irq, case.active()).unwrap();
                state(injector, irq)
            });
            assert_eq!(seen, (case.pending(), case.active()), "{irq:?} {case:?} {guest:?}");
        });
    }

    fn made_active_it_is_at_its_target<E>() {
        // The SPI is in a list register of vCPU 1 before vCPU 0 becomes its target.
        let mut m = machine::<E>();
        Offered.set_up(&mut m, SPI);
        m.exit(1);
        m.injector.update(SPI, |c| WiredConfig { target: VcpuId(0), ..c }).unwrap();
        m.injector.set_active(SPI, true).unwrap();
        m.enter(1);
        assert_eq!(lr(&m.cpus[1], Intid(40)), None);
        m.enter(0);
        assert_eq!(lr(&m.cpus[0], Intid(40)).map(|lr| lr.state()), Some(LrState::PendingActive));
        // An SPI that the guest took stays where it is.
        let mut m = machine::<E>();
        Active.set_up(&mut m, SPI);
        m.exit(1);
        m.injector.update(SPI, |c| WiredConfig { target: VcpuId(0), ..c }).unwrap();
        m.injector.set_active(SPI, true).unwrap();
        m.enter(0);
        m.enter(1);
        assert_eq!(lr(&m.cpus[0], Intid(40)), None);
        assert_eq!(lr(&m.cpus[1], Intid(40)).map(|lr| lr.state()), Some(LrState::Active));
    }

    fn the_active_state_without_a_list_register_is_read_and_written<E>() {
        for active in [false, true] {
            for guest in Guest::ALL {
                let mut m = machine_with::<E>(1);
                for (n, priority) in [(40, 0xa0), (41, 0x80)] {
                    let spi = Wired::Spi(Intid(n));
                    let config = wired(Trigger::Edge, Group::Group1);
                    let priority = Priority::new(priority);
                    m.injector.configure(spi, WiredConfig { priority, ..config }).unwrap();
                    let _ = m.injector.pulse(spi).unwrap();
                    m.enter(1);
                    assert_eq!(m.cpus[1].iar1(), Intid(n));
                    m.exit(1);
                }
                m.enter(1);
                assert_eq!(lr(&m.cpus[1], Intid(40)), None, "the more urgent one has it");
                let seen = guest.during(&mut m, |injector| {
                    let before = injector.is_active(SPI);
                    injector.set_active(SPI, active).unwrap();
                    (before, injector.is_active(SPI))
                });
                assert_eq!(seen, (Ok(true), Ok(active)));
                m.enter(1);
                assert_eq!(lr(&m.cpus[1], Intid(41)).map(|lr| lr.state()), Some(LrState::Active));
                m.exit(1);
                assert_eq!(m.vcpus[1].deactivate(Intid(40)), active);
                assert_eq!(m.injector.is_active(SPI), Ok(false));
            }
        }
    }

    fn reads_and_writes_while_the_guest_comes_and_goes<E>() {
        // There is one list register for three interrupts, so that they lose it to each other.
        let mut m = machine_with::<E>(1);
        let irqs = [SGI, PPI, SPI];
        for (irq, priority) in irqs.into_iter().zip([0xa0, 0x80, 0x60]) {
            let config = wired(Trigger::Edge, Group::Group1);
            let priority = Priority::new(priority);
            m.injector.configure(irq, WiredConfig { priority, ..config }).unwrap();
        }
        let over = &AtomicBool::new(false);
        let (vcpu, cpu, injector) = (&mut m.vcpus[1], &mut m.cpus[1], &m.injector);
        thread::scope(|scope| {
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    vcpu.flush(cpu);
                    vcpu.fold(cpu);
                }
            });
            let _over = Over(over);
            let mut pending = [false; 3];
            for n in 0..if cfg!(debug_assertions) { 3_000 } else { 30_000 } {
                let (which, active) = (n % 3, n / 3 % 2 == 0);
                let irq = irqs[which];
                injector.set_active(irq, active).unwrap();
                assert_eq!(injector.is_active(irq), Ok(active));
                if n % 5 == 0 {
                    pending[which] = n % 2 == 0;
                    if pending[which] {
                        let _ = injector.pulse(irq).unwrap();
                    } else {
                        injector.clear_pulse(irq).unwrap();
                    }
                }
                for (irq, pending) in irqs.into_iter().zip(pending) {
                    assert_eq!(injector.is_pending(irq), Ok(pending));
                }
            }
        });
    }

    fn an_sgi_is_delivered_once_for_each_sender<E>() {
        let mut m = machine::<E>();
        let i = |m: &Machine<E>| m.injector.senders(V1, Intid(3)).unwrap();
        m.injector.configure(SGI, wired(Trigger::Edge, Group::Group1)).unwrap();
        m.injector.pulse_from(V1, Intid(3), 0b1000_0101).unwrap();
        assert!(m.kicks(1) > 0);
        assert_eq!((i(&m), m.injector.is_pending(SGI)), (0b1000_0101, Ok(true)));
        for (n, left) in [(0, 0b1000_0100), (2, 0b1000_0000), (7, 0)] {
            m.enter(1);
            let vintid = Intid(3 | n << 10);
            let held = lr(&m.cpus[1], Intid(3)).unwrap();
            assert_eq!((held.intid(), held.state()), (vintid, LrState::Pending));
            assert_eq!(held.eoi_maintenance(), left != 0, "the next one waits for its end");
            assert_eq!(m.cpus[1].iar1(), vintid);
            let seen = Guest::Again.during(&mut m, |injector| {
                (injector.senders(V1, Intid(3)), state(injector, SGI))
            });
            assert_eq!(seen, (Ok(left), (left != 0, true)));
            // An active SGI keeps its sender.
            let held = lr(&m.cpus[1], Intid(3)).unwrap();
            assert_eq!((held.intid(), held.state()), (vintid, LrState::Active));
            assert_eq!(held.eoi_maintenance(), left != 0);
            let _ = m.cpus[1].eoir1(vintid);
            assert!(matches!(m.cpus[1].dir(vintid), DirOutcome::Deactivated(_)));
            m.exit(1);
        }
        m.enter(1);
        assert_eq!(lr(&m.cpus[1], Intid(3)), None);
        assert_eq!((i(&m), state(&m.injector, SGI)), (0, (false, false)));
    }

    fn senders_are_taken_back<E>() {
        for guest in Guest::ALL {
            let mut m = machine::<E>();
            m.injector.configure(SGI, wired(Trigger::Edge, Group::Group1)).unwrap();
            m.injector.pulse_from(V1, Intid(3), 0b0111).unwrap();
            m.enter(1);
            let seen = guest.during(&mut m, |injector| {
                // The SGI of one sender is in the list register, the SGI of another is not.
                injector.clear_from(V1, Intid(3), 0b1011).unwrap();
                injector.senders(V1, Intid(3))
            });
            assert_eq!(seen, Ok(0b0100), "{guest:?}");
            m.enter(1);
            assert_eq!(m.cpus[1].iar1(), Intid(3 | 2 << 10));
            // This clear comes too late: the guest has acknowledged the SGI.
            m.injector.clear_from(V1, Intid(3), 0xff).unwrap();
            m.exit(1);
            assert_eq!(state(&m.injector, SGI), (false, true));
        }
    }

    fn a_sender_sends_again<E>() {
        let mut m = machine::<E>();
        m.injector.configure(SGI, wired(Trigger::Edge, Group::Group1)).unwrap();
        for _ in 0..2 {
            // The second pulse is merged with the first, which has not been taken.
            m.injector.pulse_from(V1, Intid(3), 0b0010).unwrap();
            m.enter(1);
            m.exit(1);
        }
        let vintid = Intid(3 | 1 << 10);
        for _ in 0..2 {
            m.enter(1);
            assert_eq!(m.cpus[1].iar1(), vintid);
            // This pulse is a new one, as the first has been taken.
            m.injector.pulse_from(V1, Intid(3), 0b0010).unwrap();
            m.exit(1);
            assert_eq!(m.injector.senders(V1, Intid(3)), Ok(0b0010));
            m.enter(1);
            assert_eq!(m.cpus[1].iar1(), Intid(SPURIOUS));
            let _ = m.cpus[1].eoir1(vintid);
            assert!(matches!(m.cpus[1].dir(vintid), DirOutcome::Deactivated(_)));
            m.exit(1);
        }
        m.enter(1);
        assert_eq!(m.cpus[1].iar1(), vintid);
    }

    fn physical_interrupts_are_remembered<E>() {
        let m = machine::<E>();
        for irq in [PPI, EPPI, SPI, ESPI] {
            assert_eq!(m.injector.phys(irq), Ok(None));
            m.injector.map_phys(irq, 16).unwrap();
            m.injector.map_phys(irq, 8191).unwrap();
            for bad in [0, 15, 8192] {
                let error = Error::IntidRange(Intid(bad.into()));
                assert_eq!(m.injector.map_phys(irq, bad), Err(error));
            }
            assert_eq!(m.injector.phys(irq), Ok(Some(8191)));
            m.injector.unmap_phys(irq).unwrap();
            assert_eq!(m.injector.phys(irq), Ok(None));
        }
        assert_eq!(m.injector.map_phys(SGI, 100), Err(Error::IntidRange(Intid(3))));
    }

    fn a_physical_interrupt_is_deactivated_with_its_virtual_one<E>() {
        for (level, again) in [(0, false), (1, true), (2, true)] {
            let host = Arc::new(Inputs::default());
            host.level.store(level, Ordering::Relaxed);
            let vgic = E::new(&Config::with_vcpus(2), Arc::clone(&host) as _).unwrap();
            let (mut vcpu, injector, mut guest) =
                (vgic.vcpu(V1).unwrap(), vgic.injector().unwrap(), cpu(4));
            vcpu.open();
            injector.configure(PPI, wired(Trigger::Level, Group::Group1)).unwrap();
            injector.map_phys(PPI, 30).unwrap();
            injector.set_level(PPI, true).unwrap();
            vcpu.flush(&mut guest);
            let held = lr(&guest, Intid(27)).unwrap();
            assert_eq!((held.hw(), held.eoi_maintenance()), (Some(30), false));
            assert_eq!(guest.iar1(), Intid(27));
            // This takes effect when the interrupt next goes into a list register.
            injector.unmap_phys(PPI).unwrap();
            vcpu.fold(&mut guest);
            assert_eq!(host.asked.load(Ordering::Relaxed), 0);
            vcpu.flush(&mut guest);
            assert_eq!(guest.eoir1(Intid(27)).and_then(|done| done.hw), Some(30));
            vcpu.fold(&mut guest);
            assert_ne!(host.asked.load(Ordering::Relaxed), 0);
            assert_eq!(injector.line(PPI), Ok(again));
            assert!(!again || vcpu.has_mail(), "it must not sleep now");
            vcpu.flush(&mut guest);
            let held = lr(&guest, Intid(27));
            let held = held.map(|lr| (lr.state(), lr.hw()));
            assert_eq!(held, again.then_some((LrState::Pending, None)));
        }
    }

    fn gates_hold_back_what_is_pending<E>() {
        let closed = [
            Gates { groups: [false, true], ..Gates::OPEN },
            Gates { groups: [true, false], ..Gates::OPEN },
            Gates { lpis: false, ..Gates::OPEN },
            Gates { msis: true, ..Gates::CLOSED },
        ];
        for gates in closed {
            // The interrupts become pending before or after the gates are closed, and are in list
            // registers already or not.
            for (before, offered) in [(false, false), (true, false), (true, true)] {
                let mut m = machine::<E>();
                m.map(0, 1, 0xc0);
                m.injector.configure(PPI, wired(Trigger::Edge, Group::Group0)).unwrap();
                m.injector.configure(SPI, wired(Trigger::Edge, Group::Group1)).unwrap();
                let make_pending = |m: &Machine<E>| {
                    let _ = m.inject(0);
                    for irq in [PPI, SPI] {
                        let _ = m.injector.pulse(irq).unwrap();
                    }
                };
                if before {
                    make_pending(&m);
                }
                if offered {
                    m.enter(1);
                    m.exit(1);
                }
                m.injector
                    .update_gates(V1, |now| {
                        assert_eq!(now, Gates::OPEN);
                        gates
                    })
                    .unwrap();
                if !before {
                    make_pending(&m);
                }
                let group1 = gates.groups[1];
                let forwarded = |m: &Machine<E>| {
                    [Intid(27), Intid(40), lpi(0)].map(|n| lr(&m.cpus[1], n).is_some())
                };
                m.enter(1);
                assert_eq!(forwarded(&m), [gates.groups[0], group1, group1 && gates.lpis]);
                m.exit(1);
                assert_eq!([PPI, SPI].map(|irq| m.injector.is_pending(irq)), [Ok(true); 2]);
                let kicks = m.kicks(1);
                m.injector
                    .update_gates(V1, |now| {
                        assert_eq!(now, gates);
                        Gates::OPEN
                    })
                    .unwrap();
                assert!(m.kicks(1) > kicks);
                m.enter(1);
                assert_eq!(forwarded(&m), [true; 3]);
            }
        }
    }

    fn gates_leave_alone_what_is_active<E>() {
        let mut m = machine::<E>();
        Active.set_up(&mut m, SPI);
        let kicks = m.kicks(1);
        m.injector.update_gates(V1, |_| Gates::CLOSED).unwrap();
        assert!(m.kicks(1) > kicks, "the flush takes off what is not forwarded");
        let _ = m.injector.pulse(SPI).unwrap();
        m.exit(1);
        m.enter(1);
        assert_eq!(lr(&m.cpus[1], Intid(40)).map(|lr| lr.state()), Some(LrState::Active));
        drop_priority(&mut m.cpus[1], Active, SPI);
        dir(&mut m.cpus[1], SPI);
        m.exit(1);
        m.enter(1);
        assert_eq!(lr(&m.cpus[1], Intid(40)), None);
        m.exit(1);
        assert_eq!(state(&m.injector, SPI), (true, false));
        m.injector.update_gates(V1, |_| Gates::OPEN).unwrap();
        m.enter(1);
        assert_eq!(m.cpus[1].iar1(), Intid(40));
    }

    fn gates_of_a_vcpu_that_is_off<E>() {
        let mut m = machine::<E>();
        m.vcpus[1].close(&mut m.cpus[1]);
        m.injector.configure(SPI, wired(Trigger::Edge, Group::Group1)).unwrap();
        m.injector.update_gates(V1, |g| Gates { groups: [true, false], ..g }).unwrap();
        let _ = m.injector.pulse(SPI).unwrap();
        m.vcpus[1].open();
        m.enter(1);
        assert_eq!(lr(&m.cpus[1], Intid(40)), None);
        m.vcpus[1].close(&mut m.cpus[1]);
        m.injector.update_gates(V1, |_| Gates::OPEN).unwrap();
        m.vcpus[1].open();
        m.enter(1);
        assert_eq!(m.cpus[1].iar1(), Intid(40));
    }

    fn a_change_of_group_passes_another_gate<E>() {
        let mut m = machine::<E>();
        m.injector.configure(SPI, wired(Trigger::Edge, Group::Group0)).unwrap();
        m.injector.update_gates(V1, |g| Gates { groups: [false, true], ..g }).unwrap();
        let _ = m.injector.pulse(SPI).unwrap();
        m.enter(1);
        assert_eq!(lr(&m.cpus[1], Intid(40)), None);
        m.exit(1);
        m.injector.update(SPI, |c| WiredConfig { group: Group::Group1, ..c }).unwrap();
        m.enter(1);
        assert_eq!(m.cpus[1].iar1(), Intid(40));
    }
}
