use std::time::{Duration, Instant};

use vgic_core::Vgic;
use vgic_core::engine::{Config, Engine, Kick, Trigger, WiredConfig};
use vgic_core::gic::MsiFrame;
use vgic_core::ids::VcpuId;

use super::*;
use crate::lines::{CpuLine, LineDriver};

struct NoLine;
impl LineDriver for NoLine {
    fn set(&self, _: VcpuId, _: CpuLine, _: bool) -> Result<(), kvm_ioctls::Error> {
        Ok(())
    }
}

struct World {
    vgic: Vgic,
    sources: EventSources,
    lines: Arc<Lines>,
}

const DOORBELL: u64 = 0x0802_0040;

fn world() -> World {
    let lines = Arc::new(Lines::new(1, NoLine));
    let config = Config { spis: 96, ..Config::default() };
    let vgic: Vgic = Vgic::new(&config, Arc::clone(&lines) as Arc<dyn Kick>).unwrap();
    let frame = MsiFrame { base: 0x0802_0000, first: 64, count: 32 };
    let injector = MsiInjector::new(vgic.injector().unwrap(), &[frame]);
    let sources = EventSources::start_with(injector, Arc::clone(&lines)).unwrap();
    World { vgic, sources, lines }
}

impl World {
    fn is_pending(&self, spi: u32) -> bool {
        self.vgic.injector().unwrap().is_pending(Wired::Spi(Intid(spi))).unwrap()
    }

    fn wait(&self, done: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            assert!(begin.elapsed() < Duration::from_secs(20), "nothing happens");
            thread::yield_now();
        }
    }
}

fn eventfd() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

#[test]
fn an_eventfd_becomes_an_interrupt() {
    let world = world();
    let fds = [eventfd(), eventfd()];
    for (gsi, fd) in (0..).zip(&fds) {
        world.sources.add(gsi, fd).unwrap();
    }
    assert!(matches!(world.sources.add(0, &fds[0]), Err(Error::SourceExists(0))));
    world.sources.set_route(0, Route::Msi(Msi { address: DOORBELL, data: 70, device: 0 }));
    world.sources.set_route(1, Route::Spi(Intid(40)));
    fds.iter().for_each(|fd| fd.write(1).unwrap());
    world.wait(|world| world.is_pending(70) && world.is_pending(40));
    assert_eq!(world.sources.stats(), EventStats { events: 2, sent: 2 });
    world.sources.remove(0).unwrap();
    assert!(matches!(world.sources.remove(0), Err(Error::NoSource(0))));
    world.sources.add(0, &fds[0]).unwrap();
}

#[test]
fn what_is_masked_or_has_no_route_waits() {
    let world = world();
    let fd = eventfd();
    world.sources.add(7, &fd).unwrap();
    fd.write(1).unwrap();
    world.wait(|world| world.sources.is_pending(7));
    world.sources.set_masked(7, true);
    world.sources.set_route(7, Route::Spi(Intid(50)));
    fd.write(1).unwrap();
    world.wait(|world| world.sources.stats().events == 2);
    assert!(!world.is_pending(50));
    world.sources.set_masked(7, false);
    assert!(world.is_pending(50) && !world.sources.is_pending(7));
    assert_eq!(world.sources.stats().sent, 1, "what came meanwhile is one");
}

/// Writes to a source's eventfd, and waits for the SPI's line to rise.
fn assert_by(fd: &EventFd, world: &World, spi: u32) {
    let injector = world.vgic.injector().unwrap();
    fd.write(1).unwrap();
    world.wait(|_| injector.line(Wired::Spi(Intid(spi))) == Ok(true));
}

#[test]
fn a_level_stays_until_its_end_is_told() {
    let world = world();
    let spi = Wired::Spi(Intid(60));
    let injector = world.vgic.injector().unwrap();
    injector.update(spi, |c| WiredConfig { trigger: Trigger::Level, ..c }).unwrap();
    let (fd, resample) = (eventfd(), eventfd());
    world.sources.add_resampled(3, Intid(60), &fd, &resample).unwrap();
    assert_eq!(injector.phys(spi), Ok(Some(60)));
    let twice = world.sources.add_resampled(3, Intid(60), &fd, &resample);
    assert!(matches!(twice, Err(Error::SourceExists(3))));
    assert_by(&fd, &world, 60);
    assert!(resample.read().is_err());
    // The CPU interface's report that the guest has ended the interrupt.
    world.lines.deactivate_phys(60);
    assert_eq!(world.lines.input_level(spi), Some(false));
    world.wait(|_| resample.read().is_ok());
    assert_eq!(injector.line(spi), Ok(false));
    world.sources.remove(3).unwrap();
    assert_eq!(injector.phys(spi), Ok(None));
    assert_eq!(world.lines.input_level(spi), Some(false));
    world.sources.add_resampled(4, Intid(60), &fd, &resample).unwrap();
}

#[test]
fn sources_share_an_spi_also_of_two_loops() {
    let world = world();
    let spi = Wired::Spi(Intid(60));
    let injector = world.vgic.injector().unwrap();
    let frame = MsiFrame { base: 0x0802_0000, first: 64, count: 32 };
    let more = MsiInjector::new(world.vgic.injector().unwrap(), &[frame]);
    let second = EventSources::start_with(more, Arc::clone(&world.lines)).unwrap();
    let fds = [eventfd(), eventfd(), eventfd()];
    let told = [eventfd(), eventfd(), eventfd()];
    world.sources.add_resampled(0, Intid(60), &fds[0], &told[0]).unwrap();
    world.sources.add_resampled(1, Intid(60), &fds[1], &told[1]).unwrap();
    // Each loop has its own GSI numbers.
    second.add_resampled(0, Intid(60), &fds[2], &told[2]).unwrap();
    assert_by(&fds[2], &world, 60);
    world.lines.deactivate_phys(60);
    world.wait(|_| injector.line(spi) == Ok(false));
    for told in &told {
        world.wait(|_| told.read().is_ok());
    }
    assert_by(&fds[0], &world, 60);
    drop(second);
    world.sources.remove(1).unwrap();
    assert_eq!(injector.line(spi), Ok(true), "the one that is left asserts it");
    world.lines.deactivate_phys(60);
    world.wait(|_| told[0].read().is_ok());
    assert!(told[1].read().is_err() && told[2].read().is_err(), "they have gone");
    world.sources.remove(0).unwrap();
    assert_eq!(injector.phys(spi), Ok(None));
}

#[test]
fn a_loop_that_ends_lets_its_lines_fall() {
    let World { vgic, sources, lines } = world();
    let (fd, resample) = (eventfd(), eventfd());
    sources.add_resampled(0, Intid(60), &fd, &resample).unwrap();
    let world = World { vgic, sources, lines };
    assert_by(&fd, &world, 60);
    let World { vgic, sources, .. } = world;
    drop(sources);
    let (injector, spi) = (vgic.injector().unwrap(), Wired::Spi(Intid(60)));
    assert_eq!((injector.line(spi), injector.phys(spi)), (Ok(false), Ok(None)));
}

#[test]
fn a_masked_level_waits_and_is_its_spis_whatever_its_route() {
    let world = world();
    let (injector, spi) = (world.vgic.injector().unwrap(), Wired::Spi(Intid(60)));
    let (fd, resample) = (eventfd(), eventfd());
    world.sources.add_resampled(3, Intid(60), &fd, &resample).unwrap();
    world.sources.set_masked(3, true);
    fd.write(1).unwrap();
    world.wait(|world| world.sources.is_pending(3));
    assert_eq!(injector.line(spi), Ok(false));
    world.sources.set_route(3, Route::Spi(Intid(61)));
    world.sources.set_masked(3, false);
    assert_eq!(injector.line(spi), Ok(true));
    assert!(!world.is_pending(61));
}

#[test]
fn what_was_written_before_a_source_is_added_is_not_lost() {
    let world = world();
    for gsi in 0..500 {
        let fd = eventfd();
        fd.write(1).unwrap();
        world.sources.add(gsi, &fd).unwrap();
        world.wait(|world| world.sources.stats().events > u64::from(gsi));
        world.wait(|world| world.sources.is_pending(gsi));
        world.sources.remove(gsi).unwrap();
    }
}

#[test]
fn a_source_that_cannot_be_added_leaves_nothing_behind() {
    let world = world();
    let (fd, resample) = (eventfd(), eventfd());
    for _ in 0..2 {
        let none = world.sources.add_resampled(5, Intid(900), &fd, &resample);
        assert!(matches!(none, Err(Error::Engine(_))), "{none:?}");
    }
    world.sources.add_resampled(5, Intid(61), &fd, &resample).unwrap();
}
