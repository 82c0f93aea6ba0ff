//! The guest changes attributes of an active interrupt: an end still ends it.

use crate::world::*;

/// Takes SPI 33, and then SPI 34, which preempts it, both in Group 1. Both are active. With only
/// one list register, SPI 33 has none.
fn nested(lrs: usize, ctlr: u32) -> World {
    let mut w = World::with_lrs(2, 64, lrs).set_up();
    w.set(0, C_CTLR, EN0 | EN1 | ACK_CTL | ctlr);
    for (intid, priority) in [(33, 0xa0), (34, 0x50)] {
        w.edge(intid);
        w.enable(intid, 0);
        w.set_bit(0, IGROUPR, intid);
        w.set(0, IGROUPR + 4, 0b110);
        w.set8(0, IPRIORITYR + u64::from(intid), priority);
        w.line(intid, true);
        w.line(intid, false);
        assert_eq!(w.get(0, IAR), intid);
    }
    w
}

/// Changes of group, priority, binary points, targets and enable.
const CHANGES: [fn(&mut World); 5] = [
    |w| w.set(0, IGROUPR + 4, 0),
    |w| w.set8(0, IPRIORITYR + 33, 0x10),
    |w| (w.set(0, BPR, 7), w.set(0, ABPR, 7)).0,
    |w| w.set8(0, ITARGETSR + 33, 2),
    |w| w.set_bit(0, ICENABLER, 33),
];

#[test]
fn what_is_changed_can_be_ended() {
    for (lrs, split) in [(1, false), (2, false), (1, true), (2, true)] {
        for (n, change) in CHANGES.iter().enumerate() {
            for alias in [false, true] {
                let mut w = nested(lrs, if split { EOI_MODE } else { 0 });
                change(&mut w);
                for intid in [34, 33] {
                    w.set(0, if alias { AEOIR } else { EOIR }, intid);
                    if split {
                        w.set(0, DIR, intid);
                    }
                }
                let active = w.get(0, ISACTIVER + 4);
                assert_eq!(active, 0, "{lrs} list registers, change {n}, alias {alias}");
                assert_eq!(w.get(0, RPR), 0xff);
            }
        }
    }
}
