//! Checks of GICv3: all behavior that a guest can see, including the ITS.

#![no_std]
#![no_main]

use lab_guests::check::{self, Check, Outcome};
use lab_guests::checks::{
    self, SPI, active, begin, edge, line, lpi, ppi, priority, quiet, spi, split, storm, stress,
};
use lab_guests::gic::Gic;
use lab_guests::gicv3::{self, GicV3};
use lab_guests::its::{self, Command, LPI, TRANSLATER};
use lab_guests::record::{self, count, settled};
use lab_guests::{exceptions, fdt, println, same, smp, timer};

const CHECKS: &[Check] = &[
    Check::new("identity", identity),
    Check::new("sgi", sgi),
    Check::new("timer", ppi::timer::<GicV3>),
    Check::new("ppi-level", ppi::level::<GicV3>),
    Check::new("ppi-banked", ppi::banked::<GicV3>),
    Check::new("spi", spi::spi::<GicV3>),
    Check::new("spi-any", spi_any),
    Check::new("spi-gates", spi::gates::<GicV3>),
    Check::new("spi-retarget", spi::retarget::<GicV3>),
    Check::new("spi-again", spi::again::<GicV3>),
    Check::new("spi-move-active", spi::move_active::<GicV3>),
    Check::new("active", active::active::<GicV3>),
    Check::new("active-elsewhere", active::elsewhere::<GicV3>),
    Check::new("group-enable", group_enable),
    Check::new("order", priority::order::<GicV3>),
    Check::new("mask", priority::mask::<GicV3>),
    Check::new("preemption", priority::preemption::<GicV3>),
    Check::new("deep", priority::deep::<GicV3>),
    Check::new("split", split::split::<GicV3>),
    Check::new("split-many", split::many::<GicV3>),
    Check::new("split-elsewhere", split::elsewhere::<GicV3>),
    Check::new("stress-spis", stress::spis::<GicV3>),
    Check::new("stress-ping", stress::ping::<GicV3>),
    Check::new("stress-ring", stress::ring::<GicV3>),
    Check::new("stress-sleep", stress::sleep::<GicV3>),
    Check::with_its("lpi-int", lpi::int),
    Check::with_its("lpi-config", lpi::config),
    Check::with_its("lpi-order", lpi::order),
    Check::with_its("lpi-moves", lpi::moves),
    Check::with_its("lpi-unmap", lpi::unmap),
    Check::with_its("lpi-again", lpi::again),
    Check::with_its("lpi-stress", lpi::stress),
    Check::with_doorbell("line-level", line::level::<GicV3>),
    Check::with_doorbell("line-edge", line::edge::<GicV3>),
    Check::with_both("storm", lpi_storm),
    Check::with_both("storm-paced", lpi_storm_paced),
    Check::with_both("storm-asleep", lpi_storm_asleep),
    Check::with_both("storm-moved", lpi_storm_moved),
    Check::with_both("storm-moved-asleep", lpi_storm_moved_asleep),
];

#[unsafe(no_mangle)]
fn payload() -> ! {
    println!("GICv3 with {} CPUs; command line: {}", smp::cpus(), fdt::bootargs());
    checks::start::<GicV3>();
    if !fdt::word("its=off") {
        its::init();
    }
    check::run(CHECKS)
}

/// Checks the registers that identify a CPU's interface and its redistributor.
fn identity() -> Outcome {
    begin::<GicV3>();
    for cpu in 0..smp::cpus() {
        static mut SEEN: [u64; 4] = [0; 4];
        smp::on(
            cpu,
            |_| {
                let seen = [
                    gicv3::typer(),
                    gicv3::system_registers(),
                    gicv3::control(),
                    GicV3::highest_pending().into(),
                ];
                // SAFETY: CPU 0 waits for it.
                unsafe { (&raw mut SEEN).write(seen) };
            },
            0,
        );
        // SAFETY: it has been written.
        let [typer, sre, control, highest] = unsafe { (&raw const SEEN).read() };
        same!("the redistributor's affinity", typer >> 32, cpu);
        same!("the redistributor's number", typer >> 8 & 0xffff, cpu);
        same!("system registers are on", sre & 1, 1);
        same!("32 priorities or more", control >> 8 & 7 >= 4, true);
        same!("the highest pending of none", highest, 1023);
    }
    exceptions::mask();
    same!("an acknowledge of nothing", GicV3::acknowledge(), 1023);
    GicV3::end(1023);
    exceptions::unmask();
    Ok(())
}

fn enable_sgis() {
    begin::<GicV3>();
    smp::on_each(|_| (0..16).for_each(GicV3::enable));
}

/// ICC_CTLR_EL1.RSS: SGIs may name CPUs with an Aff0 of 16 or more. Without it, software must not
/// set the range.
const RANGES: u64 = 1 << 18;

/// SGIs from each CPU, to each list of CPUs and to all others. Each arrives once. An SGI to a CPU
/// that does not exist has no effect.
fn sgi() -> Outcome {
    let cpus = smp::cpus();
    let everyone = (1u16 << cpus) - 1;
    for from in 0..cpus {
        enable_sgis();
        let me = 1u16 << from;
        let lists =
            (1..=everyone).filter(|list| cpus <= 2 || list.count_ones() == 1 || *list == everyone);
        for list in lists {
            record::clear();
            smp::on(from, |list| gicv3::send_list(3, list as u16), list.into());
            arrived(3, list)?;
        }
        record::clear();
        smp::on(from, |_| gicv3::send_others(7), 0);
        arrived(7, everyone & !me)?;
        record::clear();
        // CPUs that do not exist, another cluster, another range; and one CPU that exists.
        smp::on(from, |_| gicv3::send(9 << 24 | 1 << 15), 0);
        smp::on(from, |_| gicv3::send(9 << 24 | 1 << 16 | 1), 0);
        if gicv3::control() & RANGES != 0 {
            smp::on(from, |_| gicv3::send(9 << 24 | 1 << 44 | 1), 0);
        }
        smp::on(from, |_| gicv3::send(15 << 24 | 1 << 15 | 1), 0);
        arrived(15, 1)?;
    }
    // An SGI that is sent twice before it is taken arrives once.
    record::clear();
    exceptions::mask();
    smp::on_each(|_| gicv3::send_list(5, 1));
    exceptions::unmask();
    arrived(5, 1)
}

fn arrived(sgi: u32, at: u16) -> Outcome {
    same!("interrupts", settled(at.count_ones()), at.count_ones());
    for cpu in 0..smp::cpus() {
        same!("interrupts of the CPU", count(cpu, sgi), at >> cpu & 1);
    }
    Ok(())
}

/// An SPI for any CPU arrives at one of them.
fn spi_any() -> Outcome {
    begin::<GicV3>();
    edge::<GicV3>(SPI, 0);
    if !gicv3::route_any(SPI) {
        println!("this GIC routes to named CPUs only");
        return Ok(());
    }
    for round in 1..=200 {
        GicV3::pend(SPI);
        let arrived = timer::within(record::ARRIVES, || record::all() >= round);
        same!("arrived", arrived, true);
        timer::pass(u64::from(round % 8 == 0));
    }
    same!("interrupts", settled(200), 200);
    Ok(())
}

/// A CPU with its group disabled takes no interrupt. A pending interrupt arrives when the group is
/// enabled.
fn group_enable() -> Outcome {
    begin::<GicV3>();
    edge::<GicV3>(SPI, 0);
    for round in 1..=5 {
        gicv3::set_group_enable(false);
        GicV3::pend(SPI);
        same!("interrupts while it is off", quiet(), round - 1);
        gicv3::set_group_enable(true);
        same!("interrupts when it is on", settled(round), round);
    }
    same!("active priorities after all", gicv3::active_priorities(), 0);
    Ok(())
}

const DEVICE: u32 = 0x20;
const EVENTS: u32 = storm::EVENTS as u32;

fn storm_of(
    events: u32,
    paced: bool,
    asleep: bool,
    meanwhile: Option<storm::Meanwhile>,
) -> Outcome {
    begin::<GicV3>();
    // `meanwhile` moves a fixed set of events, so `events` applies only without it.
    let asked = fdt::value("events").filter(|_| meanwhile.is_none());
    let asked = asked.and_then(|text| text.parse().ok());
    let events = asked.unwrap_or(events).clamp(1, EVENTS);
    Command::map_device(1, DEVICE, 10, true).run();
    for event in 0..events {
        let collection = event as usize % smp::cpus();
        its::configure(LPI + event, 0xa0, true);
        Command::map_event(DEVICE, event, LPI + event, collection as u16).run();
        Command::inv(DEVICE, event).run();
    }
    record::set_hook(|iar| {
        if !storm::tick(GicV3::intid(iar)) {
            storm::see((GicV3::intid(iar) - LPI) as usize);
        }
    });
    let target = storm::Target { events, device: DEVICE, data: 0, address: TRANSLATER };
    let storm = || storm::run(&target, paced, meanwhile);
    let outcome = if asleep { storm::asleep::<GicV3>(storm) } else { storm() };
    for event in 0..events {
        Command::discard(DEVICE, event).run();
    }
    Command::map_device(1, DEVICE, 10, false).run();
    outcome
}

fn lpi_storm() -> Outcome {
    storm_of(EVENTS, false, false, None)
}

fn lpi_storm_paced() -> Outcome {
    storm_of(EVENTS, true, false, None)
}

const FEW: u32 = 4;

fn retarget(step: u32) {
    let collection = (step / FEW) as usize % smp::cpus();
    Command::move_event(DEVICE, step % FEW, collection as u16).run();
}

/// CPUs sleep between interrupts, and their timers tick.
fn lpi_storm_asleep() -> Outcome {
    storm_of(FEW, true, true, None)
}

/// LPIs are moved while they fire.
fn lpi_storm_moved() -> Outcome {
    storm_of(FEW, true, false, Some(retarget))?;
    storm_of(FEW, false, false, Some(retarget))
}

/// CPUs sleep, and LPIs are moved.
fn lpi_storm_moved_asleep() -> Outcome {
    storm_of(FEW, true, true, Some(retarget))
}
