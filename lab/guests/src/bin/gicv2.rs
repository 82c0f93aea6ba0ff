//! Checks of GICv2: all behavior that a guest can see.

#![no_std]
#![no_main]

use core::sync::atomic::{
    AtomicU32,
    Ordering::{Acquire, Release},
};

use lab_guests::check::{self, Check, Outcome};
use lab_guests::checks::{
    self, active, begin, line, ppi, priority, quiet, spi, split, storm, stress,
};
use lab_guests::gic::Gic;
use lab_guests::gicv2::{self, Filter, GicV2, V2M_SETSPI};
use lab_guests::mmio::write32;
use lab_guests::record::{self, count, nth, settled};
use lab_guests::{exceptions, fdt, println, same, smp, timer};

const CHECKS: &[Check] = &[
    Check::new("identity", identity),
    Check::new("sgi", sgi),
    Check::new("sgi-senders", sgi_senders),
    Check::new("timer", ppi::timer::<GicV2>),
    Check::new("ppi-level", ppi::level::<GicV2>),
    Check::new("ppi-banked", ppi::banked::<GicV2>),
    Check::new("spi", spi::spi::<GicV2>),
    Check::new("spi-any", spi_any),
    Check::new("spi-gates", spi::gates::<GicV2>),
    Check::new("spi-retarget", spi::retarget::<GicV2>),
    Check::new("spi-again", spi::again::<GicV2>),
    Check::new("spi-move-active", spi::move_active::<GicV2>),
    Check::new("active", active::active::<GicV2>),
    Check::new("active-elsewhere", active::elsewhere::<GicV2>),
    Check::new("order", priority::order::<GicV2>),
    Check::new("mask", priority::mask::<GicV2>),
    Check::new("preemption", priority::preemption::<GicV2>),
    Check::new("deep", priority::deep::<GicV2>),
    Check::new("split", split::split::<GicV2>),
    Check::new("split-many", split::many::<GicV2>),
    Check::new("split-elsewhere", split::elsewhere::<GicV2>),
    Check::new("v2m", v2m),
    Check::new("stress-spis", stress::spis::<GicV2>),
    Check::new("stress-ping", stress::ping::<GicV2>),
    Check::new("stress-ring", stress::ring::<GicV2>),
    Check::new("stress-sleep", stress::sleep::<GicV2>),
    Check::with_doorbell("line-level", line::level::<GicV2>),
    Check::with_doorbell("line-edge", line::edge::<GicV2>),
    Check::with_doorbell("storm", msi_storm),
    Check::with_doorbell("storm-paced", msi_storm_paced),
    Check::with_doorbell("storm-asleep", msi_storm_asleep),
    Check::with_doorbell("storm-moved", msi_storm_moved),
    Check::with_doorbell("storm-moved-asleep", msi_storm_moved_asleep),
];

#[unsafe(no_mangle)]
fn payload() -> ! {
    println!("GICv2 with {} CPUs; command line: {}", smp::cpus(), fdt::bootargs());
    checks::start::<GicV2>();
    check::run(CHECKS)
}

/// Every CPU reads its own number.
fn identity() -> Outcome {
    begin::<GicV2>();
    static mut MASKS: [u8; smp::MAX_CPUS] = [0; smp::MAX_CPUS];
    smp::on_each(|cpu| {
        // SAFETY: one CPU runs this at a time, and CPU 0 waits for it.
        unsafe { (&raw mut MASKS).cast::<u8>().add(cpu as usize).write(gicv2::own_target()) };
    });
    for cpu in 0..smp::cpus() {
        // SAFETY: all CPUs have written their masks.
        let mask = unsafe { (&raw const MASKS).cast::<u8>().add(cpu).read() };
        // With one CPU only, a GIC need not implement these registers.
        let wanted = if smp::cpus() == 1 && mask == 0 { 0 } else { 1 << cpu };
        same!("the CPU's own target", mask, wanted);
    }
    // No interrupt is pending, and the end of interrupt 1023 has no effect.
    exceptions::mask();
    same!("an acknowledge of nothing", GicV2::acknowledge(), 1023);
    GicV2::end(1023);
    same!("the highest pending of none", GicV2::highest_pending() & 0x3ff, 1023);
    exceptions::unmask();
    Ok(())
}

fn enable_sgis() {
    begin::<GicV2>();
    smp::on_each(|_| (0..16).for_each(GicV2::enable));
}

/// SGIs from each CPU, with each way to name targets. Each arrives once, with its sender.
fn sgi() -> Outcome {
    let cpus = smp::cpus();
    let everyone = (1u8 << cpus).wrapping_sub(1);
    for from in 0..cpus {
        enable_sgis();
        let me = 1u8 << from;
        // For two CPUs, all lists; for more, each CPU alone, and all CPUs.
        let lists =
            (1..=everyone).filter(|list| cpus <= 2 || list.count_ones() == 1 || *list == everyone);
        for list in lists {
            record::clear();
            let argument = u64::from(list);
            smp::on(from, |list| gicv2::send(3, Filter::List(list as u8)), argument);
            arrived(3, from, list)?;
        }
        record::clear();
        smp::on(from, |_| gicv2::send(7, Filter::Others), 0);
        arrived(7, from, everyone & !me)?;
        record::clear();
        smp::on(from, |_| gicv2::send(15, Filter::Myself), 0);
        arrived(15, from, me)?;
    }
    Ok(())
}

fn arrived(sgi: u32, from: usize, at: u8) -> Outcome {
    same!("interrupts", settled(at.count_ones()), at.count_ones());
    for cpu in 0..smp::cpus() {
        let wanted = at >> cpu & 1;
        same!("interrupts of the CPU", count(cpu, sgi), wanted);
        if wanted == 1 {
            same!("the sender", gicv2::sender(nth(cpu, 0)), from);
        }
    }
    Ok(())
}

/// The same SGI from several CPUs is one interrupt for each sender. Twice from one CPU, it is one.
fn sgi_senders() -> Outcome {
    let cpus = smp::cpus();
    enable_sgis();
    exceptions::mask();
    for cpu in 0..cpus {
        smp::on(cpu, |_| gicv2::send(5, Filter::List(1)), 0);
        smp::on(cpu, |_| gicv2::send(5, Filter::List(1)), 0);
    }
    let all = (1u16 << cpus).wrapping_sub(1) as u8;
    same!("senders before it is taken", gicv2::senders(5), all);
    exceptions::unmask();
    same!("interrupts", settled(cpus as u32), cpus as u32);
    let mut from = 0;
    for n in 0..cpus {
        from |= 1u8 << gicv2::sender(nth(0, n));
    }
    same!("senders that were told", from, all);
    same!("senders after it", gicv2::senders(5), 0);

    // Set by register: as if CPU 0 and the last CPU had sent it. The last CPU's is withdrawn.
    enable_sgis();
    exceptions::mask();
    let last = cpus - 1;
    gicv2::set_senders(6, 1 | 1 << last);
    if last > 0 {
        gicv2::clear_senders(6, 1 << last);
    }
    timer::pass(1);
    exceptions::unmask();
    same!("interrupts", settled(1), 1);
    same!("the sender", gicv2::sender(nth(0, 0)), 0);
    Ok(())
}

/// An SPI for all CPUs arrives at one of them.
fn spi_any() -> Outcome {
    begin::<GicV2>();
    checks::edge::<GicV2>(checks::SPI, 0);
    gicv2::set_targets(checks::SPI, (1u16 << smp::cpus()).wrapping_sub(1) as u8);
    for round in 1..=200 {
        GicV2::pend(checks::SPI);
        let arrived = timer::within(record::ARRIVES, || record::all() >= round);
        same!("arrived", arrived, true);
        timer::pass(u64::from(round % 8 == 0));
    }
    same!("interrupts", settled(200), 200);
    Ok(())
}

/// Writes to the GICv2m frame raise SPIs.
fn v2m() -> Outcome {
    let (first, many) = gicv2::v2m_spis();
    same!("the frame has SPIs", many > 0, true);
    begin::<GicV2>();
    let cpus = smp::cpus();
    for n in 0..many {
        checks::edge::<GicV2>(first + n, n as usize % cpus);
        // Raise each in turn. A number beyond the last has no effect.
        write32(V2M_SETSPI, first + n);
        let arrived = timer::within(record::ARRIVES, || record::all() > n);
        same!("arrived", arrived, true);
        same!("interrupts of the CPU", count(n as usize % cpus, first + n), 1);
    }
    write32(V2M_SETSPI, first + many);
    write32(V2M_SETSPI, first - 1);
    same!("interrupts", quiet(), many);
    (first..first + many).for_each(GicV2::disable);
    Ok(())
}

/// The first SPI of a storm, for its handler. A read of the frame would be an exit, which is not
/// part of an interrupt's cost.
static FIRST: AtomicU32 = AtomicU32::new(0);

fn storm_of(
    events: u32,
    paced: bool,
    asleep: bool,
    meanwhile: Option<storm::Meanwhile>,
) -> Outcome {
    begin::<GicV2>();
    let (first, many) = gicv2::v2m_spis();
    let events = events.min(many);
    let cpus = smp::cpus();
    for n in 0..events {
        checks::edge::<GicV2>(first + n, n as usize % cpus);
    }
    FIRST.store(first, Release);
    record::set_hook(|iar| {
        if !storm::tick(GicV2::intid(iar)) {
            storm::see((GicV2::intid(iar) - FIRST.load(Acquire)) as usize);
        }
    });
    let target = storm::Target { events, device: 0, data: first, address: V2M_SETSPI };
    let storm = || storm::run(&target, paced, meanwhile);
    let outcome = if asleep { storm::asleep::<GicV2>(storm) } else { storm() };
    (first..first + events).for_each(GicV2::disable);
    outcome
}

fn msi_storm() -> Outcome {
    storm_of(u32::MAX, false, false, None)
}

fn msi_storm_paced() -> Outcome {
    storm_of(u32::MAX, true, false, None)
}

const FEW: u32 = 4;

fn retarget(step: u32) {
    let spi = gicv2::v2m_spis().0 + step % FEW;
    GicV2::route(spi, (step / FEW) as usize % smp::cpus());
}

/// CPUs sleep between interrupts, and their timers tick.
fn msi_storm_asleep() -> Outcome {
    storm_of(FEW, true, true, None)
}

/// The targets of MSIs change while the MSIs fire.
fn msi_storm_moved() -> Outcome {
    storm_of(FEW, true, false, Some(retarget))?;
    storm_of(FEW, false, false, Some(retarget))
}

/// CPUs sleep, and the targets of MSIs change.
fn msi_storm_moved_asleep() -> Outcome {
    storm_of(FEW, true, true, Some(retarget))
}
