use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use vgic_core::Vgic;
use vgic_core::engine::Engine;
use vgic_core::gic::{Affinity, Gic, GicCpu, Model, Setup};
use vgic_core::ids::VcpuId;

use super::*;
use crate::lines::{CpuLine, LineDriver, Lines};

const GICD: u64 = 0x0800_0000;
const GICC: u64 = 0x0801_0000;
const SPI: Intid = Intid(60);

struct NoLine;
impl LineDriver for NoLine {
    fn set(&self, _: VcpuId, _: CpuLine, _: bool) -> Result<(), kvm_ioctls::Error> {
        Ok(())
    }
}

/// A GICv2 with everything enabled by its guest.
fn machine() -> (Arc<Lines>, Gic<Vgic>, GicCpu<Vgic>) {
    let lines = Arc::new(Lines::new(1, NoLine));
    let mut setup = Setup::new(40);
    setup.create(Model::V2).unwrap();
    setup.set_spis(96).unwrap();
    setup.add_vcpu(Affinity(0)).unwrap();
    setup.set_distributor(GICD).unwrap();
    setup.set_cpu_interface(GICC).unwrap();
    let gic: Gic<Vgic> = setup.init(Arc::clone(&lines) as _).unwrap();
    let mut cpu = gic.cpu(VcpuId(0)).unwrap();
    cpu.power_on();
    cpu.enter();
    let n = u64::from(SPI.0);
    let registers =
        [(GICD, 1u32), (GICD + 0x100 + n / 32 * 4, 1 << (n % 32)), (GICC, 1), (GICC + 4, 0xff)];
    for (at, value) in registers {
        cpu.write(at, &value.to_le_bytes()).unwrap();
    }
    cpu.write(GICD + 0x800 + n, &[1]).unwrap();
    (lines, gic, cpu)
}

fn wake() -> Arc<EventFd> {
    Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())
}

/// Performs the guest's interrupt handling. Returns whether there was an interrupt.
fn handle(cpu: &mut GicCpu<Vgic>, serve: impl FnOnce()) -> bool {
    cpu.enter();
    let mut iar = [0; 4];
    cpu.read(GICC + 0xc, &mut iar).unwrap();
    let iar = u32::from_le_bytes(iar);
    if iar == SPI.0 {
        serve();
        cpu.write(GICC + 0x10, &iar.to_le_bytes()).unwrap();
    }
    cpu.exit();
    iar == SPI.0
}

#[test]
fn an_end_lowers_the_level_and_is_told_once() {
    let (lines, gic, mut cpu) = machine();
    let (resampler, injector) = (lines.resampler(), gic.engine().injector().unwrap());
    let spi = Wired::Spi(SPI);
    assert_eq!(resampler.level(spi), None);
    let wake = wake();
    let source = resampler.tie(SPI, &wake, &injector).unwrap();
    assert!(!handle(&mut cpu, || {}));
    resampler.assert(&source, &injector);
    assert_eq!(resampler.level(spi), Some(true));
    assert!(handle(&mut cpu, || assert!(wake.read().is_err(), "it has not ended")));
    assert_eq!(resampler.level(spi), Some(false));
    assert_eq!(injector.line(spi), Ok(false));
    assert_eq!(wake.read().unwrap(), 1);
    assert!(resampler.take_ended(&source) && !resampler.take_ended(&source));
    assert!(!handle(&mut cpu, || {}));
    resampler.ended(61);
    assert!(wake.read().is_err(), "another one's end");
    resampler.untie(source, &injector);
    assert_eq!(injector.phys(spi), Ok(None));
}

#[test]
fn an_spi_is_up_while_one_of_its_sources_is() {
    let (lines, gic, mut cpu) = machine();
    let (resampler, injector) = (lines.resampler(), gic.engine().injector().unwrap());
    let (spi, wakes) = (Wired::Spi(SPI), [wake(), wake()]);
    let [a, b] = [0, 1].map(|n| resampler.tie(SPI, &wakes[n], &injector).unwrap());
    resampler.assert(&a, &injector);
    resampler.assert(&b, &injector);
    resampler.untie(a, &injector);
    assert_eq!(injector.line(spi), Ok(true), "the other one's");
    assert_eq!(injector.phys(spi), Ok(Some(60)), "the other one's");
    let a = resampler.tie(SPI, &wakes[0], &injector).unwrap();
    assert!(!resampler.take_ended(&a));
    assert!(handle(&mut cpu, || {}));
    assert_eq!(injector.line(spi), Ok(false));
    assert!(wakes.iter().all(|wake| wake.read().is_ok()), "each is told");
    assert!(resampler.take_ended(&a) && resampler.take_ended(&b));
    resampler.untie(a, &injector);
    resampler.assert(&b, &injector);
    resampler.untie(b, &injector);
    assert_eq!(injector.line(spi), Ok(false), "with the last one it falls");
    assert_eq!(injector.phys(spi), Ok(None));
}

#[test]
fn sources_end_with_their_places() {
    let (lines, gic, _cpu) = machine();
    let (resampler, injector) = (lines.resampler(), gic.engine().injector().unwrap());
    let wake = wake();
    let tie = |spi| resampler.tie(spi, &wake, &injector);
    let mut sources: Vec<_> = (0..MAX_SOURCES).map(|_| tie(SPI).unwrap()).collect();
    assert!(matches!(tie(SPI), Err(Error::TooManySources(SPI))));
    // 127 is the last SPI of this machine. The INTIDs in the loop are not SPIs of it.
    let other = tie(Intid(127)).unwrap();
    for none in [128, 4096, 16, 1020, 5120, u32::MAX] {
        assert!(matches!(tie(Intid(none)), Err(Error::Engine(_))), "{none}");
    }
    resampler.assert(&sources[62], &injector);
    assert_eq!(injector.line(Wired::Spi(SPI)), Ok(true));
    resampler.untie(sources.remove(7), &injector);
    let again = tie(SPI).unwrap();
    assert_eq!(again.bit, 1 << 7);
    sources.into_iter().chain([again, other]).for_each(|s| resampler.untie(s, &injector));
    assert!(lock_is_empty(resampler));
}

fn lock_is_empty(resampler: &Resampler) -> bool {
    resampler.tied.lock().unwrap().is_empty()
}

#[test]
fn an_end_without_the_engines_question_lowers_the_line() {
    let (lines, gic, _cpu) = machine();
    let (resampler, injector) = (lines.resampler(), gic.engine().injector().unwrap());
    let (spi, wake) = (Wired::Spi(SPI), wake());
    let source = resampler.tie(SPI, &wake, &injector).unwrap();
    resampler.assert(&source, &injector);
    // As a write to the register that clears the active state does, when no vCPU has the interrupt.
    resampler.ended(60);
    assert_eq!(injector.line(spi), Ok(true));
    assert!(resampler.take_ended(&source));
    resampler.settle(SPI, &injector);
    assert_eq!(injector.line(spi), Ok(false));
    resampler.untie(source, &injector);
}

#[test]
fn what_changes_while_the_line_is_set_is_not_overwritten() {
    let input = Input::default();
    input.level.store(KNOWN | 1, Ordering::Relaxed);
    let mut line = Vec::new();
    input.settle(|high| {
        line.push(high);
        // The interrupt ends before the line is set. The thread that saw the end has already set
        // the line.
        if line.len() == 1 {
            input.level.fetch_and(KNOWN, Ordering::Relaxed);
        }
        Ok(())
    });
    assert_eq!(line, [true, false]);
}

/// Devices that share an SPI: each has requests that the guest's handler serves, and asserts the
/// SPI until all are served. No request is forgotten.
#[test]
fn no_request_is_forgotten() {
    const DEVICES: usize = 3;
    const REQUESTS: u64 = 2000;
    let (lines, gic, mut cpu) = machine();
    let made: [AtomicU64; DEVICES] = Default::default();
    let served: [AtomicU64; DEVICES] = Default::default();
    let all_served = AtomicBool::new(false);
    let begin = Instant::now();
    let patient = || assert!(begin.elapsed() < Duration::from_secs(60), "nothing happens");
    thread::scope(|scope| {
        for n in 0..DEVICES {
            let (resampler, injector) = (lines.resampler(), gic.engine().injector().unwrap());
            let (made, served, all_served) = (&made[n], &served[n], &all_served);
            scope.spawn(move || {
                let wake = wake();
                let source = resampler.tie(SPI, &wake, &injector).unwrap();
                for request in 1..=REQUESTS {
                    made.store(request, Ordering::Release);
                    resampler.assert(&source, &injector);
                    while served.load(Ordering::Acquire) != request {
                        patient();
                        thread::yield_now();
                        // The device asserts its level again only after an end.
                        if wake.read().is_ok() && resampler.take_ended(&source) {
                            resampler.settle(SPI, &injector);
                            if served.load(Ordering::Acquire) != request {
                                resampler.assert(&source, &injector);
                            }
                        }
                    }
                }
                while !all_served.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                resampler.untie(source, &injector);
            });
        }
        let mut turn = 0;
        while served.iter().any(|served| served.load(Ordering::Acquire) < REQUESTS) {
            patient();
            // The handler serves one device at a time; the others have to assert their levels
            // again.
            let serve = || {
                turn += 1;
                let n = turn % DEVICES;
                served[n].store(made[n].load(Ordering::Acquire), Ordering::Release);
            };
            if !handle(&mut cpu, serve) {
                thread::yield_now();
            }
        }
        all_served.store(true, Ordering::Release);
    });
    assert!(lock_is_empty(lines.resampler()));
}
