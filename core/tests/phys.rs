//! Hardware-mapped interrupts without hardware that deactivates the physical ones; and vCPU
//! interfaces that are dropped in the guest.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::*;
use vgic_core::engine::*;
use vgic_core::gic::{Affinity, Gic, Model, Setup};
use vgic_core::ids::*;
use vgic_core::{Vgic, VgicInjector};

const SPI: Wired = Wired::Spi(Intid(40));

fn config(trigger: Trigger) -> WiredConfig {
    WiredConfig {
        enabled: true,
        priority: Priority::new(0xa0),
        group: Group::Group1,
        trigger,
        target: VcpuId(0),
    }
}

/// Counts kicks, and the physical interrupts that it deactivates.
#[derive(Default)]
struct Host {
    kicks: AtomicU64,
    ended: AtomicU64,
}

impl Kick for Host {
    fn kick(&self, _: VcpuId) {
        self.kicks.fetch_add(1, Ordering::Relaxed);
    }

    fn deactivate_phys(&self, pintid: u16) {
        assert_eq!(pintid, 77);
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns a machine with a hardware-mapped SPI that the guest has taken.
fn taken(
    trigger: Trigger,
) -> (Arc<Host>, VgicInjector, vgic_core::VcpuInterface, vgic_core::cpuif::CpuInterface) {
    let host = Arc::new(Host::default());
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(1), host.clone()).unwrap();
    let injector = vgic.injector().unwrap();
    injector.configure(SPI, config(trigger)).unwrap();
    injector.map_phys(SPI, 77).unwrap();
    match trigger {
        Trigger::Edge => drop(injector.pulse(SPI).unwrap()),
        Trigger::Level => injector.set_level(SPI, true).unwrap(),
    }
    let (mut vcpu, mut guest) = (vgic.vcpu(VcpuId(0)).unwrap(), cpu(4));
    vcpu.open();
    vcpu.flush(&mut guest);
    assert_eq!(guest.iar1(), Intid(40));
    (host, injector, vcpu, guest)
}

#[test]
fn deactivated_by_a_write_while_its_vcpu_is_off() {
    let (host, injector, mut vcpu, mut guest) = taken(Trigger::Edge);
    vcpu.close(&mut guest);
    injector.set_active(SPI, false).unwrap();
    vcpu.open();
    vcpu.flush(&mut guest);
    vcpu.fold(&mut guest);
    assert_eq!(injector.is_active(SPI), Ok(false));
    assert_eq!(host.ended.load(Ordering::Relaxed), 1);
}

/// The vCPU is powered off before it has processed the deactivation. The physical interrupt is
/// deactivated nevertheless.
#[test]
fn deactivated_by_a_write_right_before_its_vcpu_goes_off() {
    for trigger in [Trigger::Edge, Trigger::Level] {
        let (host, injector, mut vcpu, mut guest) = taken(trigger);
        vcpu.fold(&mut guest);
        injector.set_active(SPI, false).unwrap();
        assert_eq!(host.ended.load(Ordering::Relaxed), 0, "it is its owner's to end");
        vcpu.close(&mut guest);
        assert_eq!(injector.is_active(SPI), Ok(false));
        assert_eq!(host.ended.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn deactivated_by_a_write_after_it_was_untied() {
    let (host, injector, mut vcpu, mut guest) = taken(Trigger::Edge);
    vcpu.fold(&mut guest);
    injector.unmap_phys(SPI).unwrap();
    injector.set_active(SPI, false).unwrap();
    vcpu.flush(&mut guest);
    vcpu.fold(&mut guest);
    assert_eq!(host.ended.load(Ordering::Relaxed), 1, "it was tied when it was offered");
}

#[test]
fn a_line_that_rises_again_after_an_end_without_an_exit() {
    let (host, injector, _vcpu, mut guest) = taken(Trigger::Level);
    assert!(guest.eoir1(Intid(40)).is_some());
    let before = host.kicks.load(Ordering::Relaxed);
    injector.set_level(SPI, true).unwrap();
    assert!(
        host.kicks.load(Ordering::Relaxed) > before,
        "it must leave the guest to be offered it"
    );
}

#[test]
fn an_interface_dropped_in_the_guest_holds_up_nobody() {
    let mut m = Machine::<Vgic>::new(1, 4);
    m.injector.configure(SPI, config(Trigger::Edge)).unwrap();
    let _ = m.injector.pulse(SPI).unwrap();
    m.enter(0);
    drop(m.vcpus.pop());
    assert_eq!(m.injector.is_pending(SPI), Ok(true));
    m.vcpus.push(m.vgic.vcpu(VcpuId(0)).unwrap());
    m.vcpus[0].open();
    m.cpus[0] = cpu(4);
    m.enter(0);
    assert_eq!(m.cpus[0].iar1(), Intid(40));
    m.exit(0);
    assert_eq!(m.injector.is_active(SPI), Ok(true));
}

/// A vCPU enters the guest again at once whenever it was kicked. An observer waits for one exit,
/// not for the vCPU to stay out.
#[test]
fn a_look_waits_once() {
    struct Again(AtomicBool);
    impl Kick for Again {
        fn kick(&self, _: VcpuId) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let host = Arc::new(Again(AtomicBool::new(false)));
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(1), host.clone()).unwrap();
    let injector = vgic.injector().unwrap();
    injector.configure(SPI, config(Trigger::Edge)).unwrap();
    let _ = injector.pulse(SPI).unwrap();
    let mut vcpu = vgic.vcpu(VcpuId(0)).unwrap();
    vcpu.open();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut guest = cpu(4);
            vcpu.flush(&mut guest);
            while !over.load(Ordering::SeqCst) {
                if host.0.swap(false, Ordering::SeqCst) {
                    vcpu.flush(&mut guest);
                }
                thread::yield_now();
            }
            vcpu.close(&mut guest);
        });
        for _ in 0..20 {
            assert_eq!(injector.is_pending(SPI), Ok(true));
            assert_eq!(injector.is_active(SPI), Ok(false));
        }
        over.store(true, Ordering::SeqCst);
    });
}

#[test]
fn an_sgi_that_is_active_without_a_sender_is_sent() {
    let mut m = Machine::<Vgic>::new(1, 4);
    let sgi = Wired::Private(VcpuId(0), Intid(3));
    m.injector.configure(sgi, config(Trigger::Edge)).unwrap();
    let _ = m.injector.pulse(sgi).unwrap();
    m.enter(0);
    assert_eq!(m.cpus[0].iar1(), Intid(3));
    m.injector.pulse_from(VcpuId(0), Intid(3), 1).unwrap();
    m.enter(0);
    assert!(m.cpus[0].eoir1(Intid(3)).is_some());
    m.exit(0);
    assert_eq!(m.drain(0), [3]);
}

/// A software CPU interface has no hardware that deactivates the physical interrupt.
#[test]
fn ended_at_a_software_cpu_interface() {
    let host = Arc::new(Host::default());
    let mut setup = Setup::new(40);
    setup.create(Model::V2).unwrap();
    setup.set_spis(32).unwrap();
    let id = setup.add_vcpu(Affinity(0)).unwrap();
    setup.set_distributor(0x1000).unwrap();
    setup.set_cpu_interface(0x2000).unwrap();
    let gic: Gic<Vgic> = setup.init(host.clone()).unwrap();
    let mut cpu = gic.cpu(id).unwrap();
    cpu.power_on();
    // The addresses of GICD_CTLR, GICD_ISENABLER1, GICC_PMR, GICC_CTLR.
    for (address, value) in [(0x1000, 1u32), (0x1104, 1 << 8), (0x2004, 0xf0), (0x2000, 1)] {
        cpu.write(address, &value.to_le_bytes()).unwrap();
    }
    let device = gic.engine().injector().unwrap();
    device.map_phys(SPI, 77).unwrap();
    let _ = device.pulse(SPI).unwrap();
    cpu.enter();
    let mut iar = [0; 4];
    cpu.read(0x200c, &mut iar).unwrap();
    assert_eq!((u32::from_le_bytes(iar), host.ended.load(Ordering::Relaxed)), (40, 0));
    cpu.write(0x2010, &iar).unwrap();
    assert_eq!(host.ended.load(Ordering::Relaxed), 1);
}
