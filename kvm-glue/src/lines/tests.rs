use std::sync::atomic::{AtomicU8, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vgic_core::Vgic;
use vgic_core::engine::{Engine, Injector};
use vgic_core::gic::{Affinity, Gic, Model, MsiFrame, Setup};
use vgic_core::ids::Intid;

use super::*;
use crate::signal::Target;

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<(u16, CpuLine, bool)>>>);

impl LineDriver for Recorder {
    fn set(&self, vcpu: VcpuId, line: CpuLine, level: bool) -> Result<(), kvm_ioctls::Error> {
        self.0.lock().unwrap().push((vcpu.0, line, level));
        Ok(())
    }
}

#[test]
fn numbers_of_lines() {
    assert_eq!(irq_line_number(VcpuId(0), CpuLine::Irq), 0);
    assert_eq!(irq_line_number(VcpuId(1), CpuLine::Fiq), 0x1_0001);
    assert_eq!(irq_line_number(VcpuId(0x1ff), CpuLine::Irq), 0x10ff_0000);
}

#[test]
fn an_offer_to_a_running_vcpu_is_one_signal() {
    signal::install(signal::default()).unwrap();
    let mut flag = 0;
    let target = Target::claim(&raw mut flag, signal::default()).unwrap();
    let recorder = Recorder::default();
    let lines = Lines::new(2, recorder.clone());
    let (b, urgent) = (VcpuId(1), Priority::new(0));
    lines.attach(b, target.tid());
    lines.offer(b, Group::Group0, urgent);
    assert!(!lines.enter(b, Thresholds { below: [0xf0, 0] }), "it has to look first");
    assert!(lines.enter(b, Thresholds { below: [0xf0, 0] }));
    lines.offer(b, Group::Group1, urgent);
    assert_eq!(lines.stats(b).signals, 0, "not signaled");
    lines.offer(b, Group::Group0, urgent);
    lines.offer(b, Group::Group0, urgent);
    assert!(!lines.leave(b));
    assert!(lines.enter(b, Thresholds::default()));
    lines.offer(b, Group::Group0, urgent);
    lines.kick(b);
    assert!(lines.leave(b));
    let stats = lines.stats(b);
    assert_eq!((stats.offers, stats.kicks, stats.signals, stats.driven), (5, 1, 2, 0));
    lines.set(b, CpuLine::Irq, true);
    assert_eq!(*recorder.0.lock().unwrap(), [(1, CpuLine::Irq, true)]);
    drop(target);
    assert_eq!(flag, 1, "the signals came");
}

const GICD: u64 = 0x0800_0000;
const GICC: u64 = 0x0801_0000;
const DOORBELL: u64 = 0x0802_0040;
const MSIS: u32 = 5_000;

fn write(cpu: &mut vgic_core::gic::GicCpu<Vgic>, address: u64, value: u32) {
    cpu.write(address, &value.to_le_bytes()).unwrap();
}

/// Runs the guest, which sleeps until a signal takes it out.
fn sleep_until_called(called: &AtomicU8) {
    let begin = Instant::now();
    while called.load(Ordering::Relaxed) == 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "a wake-up was lost");
        thread::yield_now();
    }
}

/// Two threads send MSIs to two vCPUs that sleep in their guests. Each MSI is sent after the one
/// before it was handled.
#[test]
fn no_wake_up_is_lost() {
    signal::install(signal::default()).unwrap();
    let lines = Arc::new(Lines::new(2, Recorder::default()));
    let mut setup = Setup::new(40);
    setup.create(Model::V2).unwrap();
    setup.set_spis(64).unwrap();
    let ids = [0, 1].map(|n| setup.add_vcpu(Affinity(n)).unwrap());
    setup.set_distributor(GICD).unwrap();
    setup.set_cpu_interface(GICC).unwrap();
    setup.add_msi_frame(MsiFrame { base: 0x0802_0000, first: 32, count: 32 }).unwrap();
    let gic: Gic<Vgic> = setup.init(Arc::clone(&lines) as Arc<dyn Kick>).unwrap();
    let seen = [const { AtomicU64::new(0) }; 2];
    let mut cpus = ids.map(|id| gic.cpu(id).unwrap());
    for (n, cpu) in cpus.iter_mut().enumerate() {
        cpu.power_on();
        write(cpu, GICC, 1);
        write(cpu, GICC + 4, 0xf8);
        write(cpu, GICD, 1);
        // SPI 32 targets vCPU 0, and SPI 33 targets vCPU 1.
        cpu.write(GICD + 0x820 + n as u64, &[1 << n]).unwrap();
        write(cpu, GICD + 0x104, 1 << n);
    }
    thread::scope(|scope| {
        for mut cpu in cpus {
            let (lines, seen) = (&lines, &seen);
            scope.spawn(move || {
                let (id, called) = (cpu.id(), AtomicU8::new(0));
                let target = Target::claim(called.as_ptr(), signal::default()).unwrap();
                lines.attach(id, target.tid());
                let mut taken = 0;
                while taken < MSIS {
                    // Relaxed: written by this thread and its signal handler only.
                    called.store(0, Ordering::Relaxed);
                    lines.look(id);
                    cpu.enter();
                    let line = cpu.irq_line();
                    if !lines.enter(id, cpu.thresholds()) {
                        continue;
                    }
                    if !line {
                        sleep_until_called(&called);
                    }
                    lines.leave(id);
                    if !line {
                        continue;
                    }
                    if cpu.has_mail() {
                        cpu.enter();
                    }
                    let mut iar = [0; 4];
                    cpu.read(GICC + 0xc, &mut iar).unwrap();
                    assert_eq!(u32::from_le_bytes(iar), 32 + u32::from(id.0));
                    cpu.write(GICC + 0x10, &iar).unwrap();
                    taken += 1;
                    seen[id.index()].store(taken.into(), Ordering::Release);
                }
                lines.attach(id, 0);
            });
        }
        for id in ids {
            let (seen, bus) = (&seen[id.index()], gic.bus().unwrap());
            scope.spawn(move || {
                for n in 0..u64::from(MSIS) {
                    while seen.load(Ordering::Acquire) != n {
                        thread::yield_now();
                    }
                    let spi = 32 + u32::from(id.0);
                    bus.write(id, DOORBELL, &spi.to_le_bytes()).unwrap();
                }
            });
        }
    });
    for id in ids {
        let signals = lines.stats(id).signals;
        assert!(signals <= u64::from(MSIS), "{signals} signals: one for each is enough");
    }
    let injector = gic.engine().injector().unwrap();
    assert_eq!(injector.is_pending(Wired::Spi(Intid(32))), Ok(false));
}

/// vCPU 1 reads the active state of an SPI in a list register of vCPU 0, and sleeps until vCPU 0
/// has left its guest.
#[test]
fn the_exit_wakes_who_waits_for_it() {
    let lines = Arc::new(Lines::new(2, Recorder::default()));
    let mut setup = Setup::new(40);
    setup.create(Model::V2).unwrap();
    setup.set_spis(64).unwrap();
    let [a, b] = [0, 1].map(|n| setup.add_vcpu(Affinity(n)).unwrap());
    setup.set_distributor(GICD).unwrap();
    setup.set_cpu_interface(GICC).unwrap();
    let gic: Gic<Vgic> = setup.init(Arc::clone(&lines) as Arc<dyn Kick>).unwrap();
    let [mut mine, mut other] = [a, b].map(|id| gic.cpu(id).unwrap());
    mine.power_on();
    write(&mut mine, GICC, 1);
    write(&mut mine, GICC + 4, 0xf8);
    write(&mut mine, GICD, 1);
    mine.write(GICD + 0x820, &[1]).unwrap();
    write(&mut mine, GICD + 0x104, 1);
    for _ in 0..200 {
        let kicks = lines.stats(a).kicks;
        let injector = mine.bus().injector();
        let _ = injector.pulse(Wired::Spi(Intid(32))).unwrap();
        mine.enter();
        let read = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut data = [0; 4];
                other.read(GICD + 0x304, &mut data).unwrap();
                u32::from_le_bytes(data)
            });
            // The reader kicks the vCPU right before it waits.
            while lines.stats(a).kicks == kicks {
                thread::yield_now();
            }
            mine.read(GICC + 0xc, &mut [0; 4]).unwrap();
            mine.exit();
            reader.join().unwrap()
        });
        assert_eq!(read, 1, "acknowledged before the exit");
        write(&mut mine, GICC + 0x10, 32);
    }
}

#[test]
fn redistributors_with_work_left_are_told_one_by_one() {
    let lines = Lines::new(3, Recorder::default());
    assert_eq!(lines.take_lpis_left(), None);
    [2, 0, 2].map(VcpuId).into_iter().for_each(|of| lines.lpis_left(of));
    assert_eq!(
        [(); 4].map(|()| lines.take_lpis_left()),
        [Some(VcpuId(0)), Some(VcpuId(2)), None, None]
    );
    lines.lpis_left(VcpuId(1));
    assert_eq!(lines.take_lpis_left(), Some(VcpuId(1)));
}

#[test]
fn lines_are_lowered_whatever_they_were() {
    let recorder = Recorder::default();
    let lines = Lines::new(1, recorder.clone());
    let a = VcpuId(0);
    let low = [(0, CpuLine::Irq, false), (0, CpuLine::Fiq, false)];
    lines.lower(a).unwrap();
    assert_eq!(std::mem::take(&mut *recorder.0.lock().unwrap()), low, "also if they are low");
}

#[test]
fn lines_that_kvm_does_not_have_are_found_out() {
    struct Refuses;
    impl LineDriver for Refuses {
        fn set(&self, _: VcpuId, _: CpuLine, _: bool) -> Result<(), kvm_ioctls::Error> {
            Err(kvm_ioctls::Error::new(libc::ENXIO))
        }
    }
    let refused = Lines::new(1, Refuses).lower(VcpuId(0)).unwrap_err();
    assert_eq!(refused.errno(), libc::ENXIO);
}
