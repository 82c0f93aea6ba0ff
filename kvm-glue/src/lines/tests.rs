use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use vgic_core::Vgic;
use vgic_core::engine::{Engine, Injector};
use vgic_core::gic::{Affinity, Gic, Model, MsiFrame, Setup};
use vgic_core::ids::Intid;

use super::*;

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
fn an_offer_to_a_running_vcpu_is_one_call() {
    let recorder = Recorder::default();
    let lines = Lines::new(2, recorder.clone());
    let (b, urgent) = (VcpuId(1), Priority::new(0));
    lines.offer(b, Group::Group0, urgent);
    assert!(!lines.enter(b, Thresholds::default()), "it has to look first");
    assert!(lines.enter(b, Thresholds { below: [0xf0, 0], elsewhere: [false; 2] }));
    lines.offer(b, Group::Group0, urgent);
    lines.offer(b, Group::Group0, urgent);
    lines.offer(b, Group::Group1, urgent);
    assert!(!lines.leave(b));
    lines.set_irq(b, true);
    lines.set_irq(b, false);
    lines.set_irq(b, false);
    let calls = [(1, CpuLine::Irq, true), (1, CpuLine::Irq, false)];
    assert_eq!(*recorder.0.lock().unwrap(), calls);
    let stats = lines.stats(b);
    assert_eq!((stats.offers, stats.raised_by_others, stats.driven_by_itself), (4, 1, 1));
    assert_eq!(stats.signals, 0);
}

/// The IRQ inputs of vCPUs, whose guests sleep until theirs is up.
#[derive(Default)]
struct Inputs {
    high: Mutex<[bool; 2]>,
    changed: Condvar,
    calls: AtomicU64,
}

impl LineDriver for Arc<Inputs> {
    fn set(&self, vcpu: VcpuId, line: CpuLine, level: bool) -> Result<(), kvm_ioctls::Error> {
        assert_eq!(line, CpuLine::Irq);
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.high.lock().unwrap()[vcpu.index()] = level;
        self.changed.notify_all();
        Ok(())
    }
}

impl Inputs {
    /// Runs the guest: it sleeps until it is interrupted.
    fn wait(&self, vcpu: VcpuId) {
        let high = self.high.lock().unwrap();
        let asleep = |high: &mut [bool; 2]| !high[vcpu.index()];
        let (_high, timeout) =
            self.changed.wait_timeout_while(high, Duration::from_secs(20), asleep).unwrap();
        assert!(!timeout.timed_out(), "vCPU {}: a wake-up was lost", vcpu.0);
    }
}

const GICD: u64 = 0x0800_0000;
const GICC: u64 = 0x0801_0000;
const DOORBELL: u64 = 0x0802_0040;
const MSIS: u32 = 5_000;

fn write(cpu: &mut vgic_core::gic::GicCpu<Vgic>, address: u64, value: u32) {
    cpu.write(address, &value.to_le_bytes()).unwrap();
}

/// Two threads send MSIs one after the other to two vCPUs that sleep in their guests, each after the one before was handled.
#[test]
fn no_wake_up_is_lost() {
    let inputs = Arc::new(Inputs::default());
    let lines = Arc::new(Lines::new(2, Arc::clone(&inputs)));
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
        // SPI 32 is vCPU 0's, SPI 33 vCPU 1's.
        cpu.write(GICD + 0x820 + n as u64, &[1 << n]).unwrap();
        write(cpu, GICD + 0x104, 1 << n);
    }
    thread::scope(|scope| {
        for mut cpu in cpus {
            let (lines, inputs, seen) = (&lines, &inputs, &seen);
            scope.spawn(move || {
                let id = cpu.id();
                let mut taken = 0;
                while taken < MSIS {
                    lines.look(id);
                    cpu.enter();
                    lines.set_irq(id, cpu.irq_line());
                    if !lines.enter(id, cpu.thresholds()) {
                        continue;
                    }
                    inputs.wait(id);
                    lines.leave(id);
                    if cpu.has_mail() {
                        cpu.enter();
                    }
                    let mut iar = [0; 4];
                    cpu.read(GICC + 0xc, &mut iar).unwrap();
                    if u32::from_le_bytes(iar) == 1023 {
                        continue;
                    }
                    assert_eq!(u32::from_le_bytes(iar), 32 + u32::from(id.0));
                    cpu.write(GICC + 0x10, &iar).unwrap();
                    taken += 1;
                    seen[id.index()].store(taken.into(), Ordering::Release);
                }
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
    let calls = inputs.calls.load(Ordering::Relaxed);
    // Up and down for each, and up to twice that if the vCPU and the sender were at it together.
    assert!(calls <= u64::from(MSIS) * 2 * 4, "{calls} calls");
    let injector = gic.engine().injector().unwrap();
    assert_eq!(injector.is_pending(Wired::Spi(Intid(32))), Ok(false));
}

#[test]
fn lines_are_lowered_whatever_they_were() {
    let recorder = Recorder::default();
    let lines = Lines::new(1, recorder.clone());
    let a = VcpuId(0);
    let low = [(0, CpuLine::Irq, false), (0, CpuLine::Fiq, false)];
    lines.lower(a).unwrap();
    assert_eq!(std::mem::take(&mut *recorder.0.lock().unwrap()), low, "also if they are low");
    lines.set_irq(a, true);
    lines.set_fiq(a, true);
    recorder.0.lock().unwrap().clear();
    lines.lower(a).unwrap();
    let calls = std::mem::take(&mut *recorder.0.lock().unwrap());
    assert_eq!(calls[..2], low);
    assert!(!lines.level(a) && calls.iter().all(|&(_, _, level)| !level));
    // The next interrupt is told again.
    assert!(lines.enter(a, Thresholds { below: [0xf0, 0], elsewhere: [false; 2] }));
    lines.offer(a, Group::Group0, Priority::new(0));
    assert_eq!(*recorder.0.lock().unwrap(), [(0, CpuLine::Irq, true)]);
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
