//! State dumps.

use std::ops::ControlFlow;

use vgic_core::engine::{Engine as _, Injected, LpiPlace};
use vgic_core::ids::{DeviceId, EventId, Intid, VcpuId};
use vgic_core::its::{CollectionDump, DeviceDump, EventDump, ItsEntry};

use crate::guest::*;

fn prepared() -> Guest {
    let mut guest = Guest::new(2);
    guest.ok(mapd(3, 5));
    guest.ok(mapd(1, 3));
    guest.ok(mapti(3, 9, 8200, 1));
    guest.ok(mapti(3, 2, 8192, 0));
    guest.ok(mapti(1, 0, 8300, 7));
    guest
}

fn event(device: u32, event: u32, intid: u32, collection: u16, live: bool) -> EventDump {
    let (device, event, intid) = (DeviceId(device), EventId(event), Intid(intid));
    EventDump { device, event, intid, collection, live }
}

#[test]
fn all_there_is_in_order() {
    let guest = prepared();
    let mut seen = Vec::new();
    let _ = guest.its.visit(|entry| {
        seen.push(entry);
        ControlFlow::Continue(())
    });
    let collection = |collection, target| {
        ItsEntry::Collection(CollectionDump { collection, target: VcpuId(target) })
    };
    let device = |n, event_bits| {
        ItsEntry::Device(DeviceDump { device: DeviceId(n), event_bits, itt: itt(n) })
    };
    assert_eq!(
        seen,
        [
            collection(0, 0),
            collection(1, 1),
            device(1, 3),
            ItsEntry::Event(event(1, 0, 8300, 7, false)),
            device(3, 5),
            ItsEntry::Event(event(3, 2, 8192, 0, true)),
            ItsEntry::Event(event(3, 9, 8200, 1, true)),
        ]
    );
}

#[test]
fn longer_than_one_batch() {
    let mut guest = Guest::new(1);
    for device in 0..3 {
        guest.ok(mapd(device, 10));
        for n in 0..700 {
            guest.ok(mapti(device, n, 8192 + 1024 * device + n, (n % 3) as u16));
        }
    }
    let dump = guest.its.dump();
    assert_eq!((dump.devices.len(), dump.events.len()), (3, 2100));
    assert!(dump.events.is_sorted_by_key(|e| (e.device, e.event)));
    let lpis = guest.world.gic.dump().lpis;
    assert_eq!(lpis.len(), 3 * 234, "those of collection 0, which is mapped");
    assert!(lpis.is_sorted_by_key(|lpi| lpi.intid));
}

#[test]
fn where_lpis_are() {
    let mut guest = prepared();
    guest.property(8200, 0x40);
    guest.ok(inv(3, 9));
    assert_eq!(guest.msi(3, 2), Injected::Pending);
    let lpis = guest.world.gic.dump().lpis;
    let [first, second] = lpis[..] else { panic!("{lpis:?}") };
    assert_eq!((first.intid, first.target, first.pending), (Intid(8192), VcpuId(0), true));
    // The locked engine puts it into a list of its vCPU only when that vCPU has processed its
    // mailbox.
    let queued = if crate::Engine::NAME == "lockfree" { LpiPlace::Queued } else { LpiPlace::Idle };
    assert_eq!(first.place, queued);
    assert_eq!((second.intid, second.target, second.pending), (Intid(8200), VcpuId(1), false));
    assert_eq!((second.place, second.config.enabled), (LpiPlace::Idle, false));
    assert_eq!(second.config.priority.byte(), 0x40);
    guest.world.cpus[0].enter();
    assert_eq!(guest.world.gic.dump().lpis[0].place, LpiPlace::Held(VcpuId(0)));
    guest.world.cpus[0].exit();
}

#[test]
fn as_text() {
    let mut guest = prepared();
    guest.fails(int(1, 0), vgic_core::its::Fault::EventUnmapped);
    let text = guest.world.gic.dump().to_string();
    for line in [
        "LPI 8192 -> vCPU 0: enabled, priority 0xa0",
        "ITS 0: enabled",
        "  collection 1 -> vCPU 1",
        "  device 0x3: 5 EventID bits, ITT at 0x40230000",
        "    event 9 -> LPI 8200, collection 1",
        "    event 0 -> LPI 8300, collection 7, without effect",
        "  MAPTI: 3",
        "  INT, event not mapped: 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line:?} is not in:\n{text}");
    }
}
