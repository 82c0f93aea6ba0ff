//! SPIs with several targets: another CPU takes an SPI that the chosen CPU would not take (IHI
//! 0048B, 1.4.3).

use crate::world::*;
use vgic_core::engine::Injector;
use vgic_core::ids::{Intid, VcpuId};

const SPI: u32 = 40;

/// Two CPUs, both targets of SPI 40, which is edge-triggered, in Group 0, with priority 0x80.
fn world() -> World {
    let mut w = World::ready(2, 64);
    w.edge(SPI);
    w.set8(0, IPRIORITYR + u64::from(SPI), 0x80);
    w.set8(0, ITARGETSR + u64::from(SPI), 3);
    w.set_bit(0, ISENABLER, SPI);
    w
}

fn raise(w: &World) {
    w.line(SPI, true);
    w.line(SPI, false);
}

type Refusal = (&'static str, fn(&mut World), fn(&mut World));

/// The ways in which CPU 0 stops taking the SPI and resumes: a name, the stop, the resumption.
const REFUSALS: [Refusal; 4] = [
    (
        "off",
        |w| w.cpus[0].power_off(),
        |w| {
            w.cpus[0].power_on();
            w.set(0, C_CTLR, EN0);
            w.set(0, PMR, 0xff);
        },
    ),
    ("its interface is off", |w| w.set(0, C_CTLR, 0), |w| w.set(0, C_CTLR, EN0)),
    ("the group is off", |w| w.set(0, C_CTLR, EN1), |w| w.set(0, C_CTLR, EN0 | EN1)),
    ("the priority is masked", |w| w.set(0, PMR, 0x80), |w| w.set(0, PMR, 0xff)),
];

#[test]
fn another_cpu_takes_it() {
    for (what, refuse, accept) in REFUSALS {
        let mut w = world();
        raise(&w);
        assert_eq!((w.serve(0), w.serve(1)), (vec![SPI], vec![]), "{what}");
        refuse(&mut w);
        raise(&w);
        assert_eq!(w.serve(1), [SPI], "{what}");
        // The SPI is pending already when CPU 0 stops taking it.
        accept(&mut w);
        raise(&w);
        refuse(&mut w);
        assert_eq!(w.serve(1), [SPI], "{what}, after it has become pending");
        // At first no CPU takes the SPI, and then CPU 0 does.
        w.set(1, C_CTLR, 0);
        raise(&w);
        assert_eq!(w.serve(1), [], "{what}");
        accept(&mut w);
        assert_eq!(w.serve(0), [SPI], "{what}: nobody, and then the first");
        assert_eq!(w.get8(1, ITARGETSR + u64::from(SPI)), 3, "as it was written");
    }
}

#[test]
fn its_group_and_priority_decide() {
    let mut w = world();
    w.set(0, C_CTLR, EN0);
    w.set(1, C_CTLR, EN0 | EN1 | ACK_CTL);
    w.set(0, PMR, 0x80);
    w.set8(0, IPRIORITYR + u64::from(SPI), 0x40);
    raise(&w);
    assert_eq!(w.serve(0), [SPI]);
    w.set_bit(0, IGROUPR, SPI);
    raise(&w);
    assert_eq!(w.serve(1), [SPI]);
    w.set(0, IGROUPR + 4, 0);
    raise(&w);
    w.set8(0, IPRIORITYR + u64::from(SPI), 0x90);
    assert_eq!(w.serve(1), [SPI]);
}

#[test]
fn one_target_stays_the_one() {
    let mut w = world();
    w.set8(0, ITARGETSR + u64::from(SPI), 1);
    w.set(0, PMR, 0);
    raise(&w);
    assert_eq!(w.serve(1), []);
    w.set(0, PMR, 0xff);
    assert_eq!(w.serve(0), [SPI]);
}

#[test]
fn what_is_active_stays_where_it_is() {
    let mut w = world();
    raise(&w);
    assert_eq!(w.get(0, IAR), SPI);
    w.set(0, C_CTLR, 0);
    raise(&w);
    assert_eq!(w.serve(1), [], "active at CPU 0");
    w.set(0, C_CTLR, EN0);
    w.set(0, EOIR, SPI);
    w.set(0, C_CTLR, 0);
    assert_eq!(w.serve(1), [SPI]);
    let config = w.injector.config(vgic_core::engine::Wired::Spi(Intid(SPI))).unwrap();
    assert_eq!(config.target, VcpuId(1));
}
