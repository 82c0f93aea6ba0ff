//! Scenarios that broke other interrupt controllers. The numbers are those of the list of known
//! bugs. The scenarios with threads are in `loom-tests`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vgic_core::engine::{Config, Engine as _, Injected};
use vgic_core::ids::EventId;
use vgic_core::its::{Command, Fault, ItsConfig};
use vgic_core::memory::{GuestMemory, MemoryError};

use crate::guest::*;
use crate::world::{RAM, rd};

/// LPI 8192 for event 0 of device 1, at vCPU 0.
fn mapped(vcpus: u32) -> Guest {
    let mut guest = Guest::new(vcpus);
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 0));
    guest
}

#[test]
fn t05_discard_then_remap_same_intid() {
    let mut guest = mapped(2);
    // The LPI is queued in its vCPU's mailbox, and stays there.
    for _ in 0..1000 {
        assert_eq!(guest.msi(1, 0), Injected::Pending);
        guest.ok(discard(1, 0));
        guest.ok(mapti(1, 0, 8192, 0));
        assert_eq!(guest.msi(1, 0), Injected::Pending);
        guest.ok(discard(1, 0));
        guest.ok(mapti(1, 0, 8192, 1));
        guest.ok(discard(1, 0));
        guest.ok(mapti(1, 0, 8192, 0));
    }
    let usage = guest.world.gic.engine().usage();
    assert!(usage.garbage <= 1000, "{usage:?}");
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    assert_eq!(guest.take(0), [8192]);
    assert_eq!(guest.take(1), []);
}

#[test]
fn t12_movall_moves_one_redistributors_lpis_and_their_pending_state() {
    let mut guest = Guest::new(3);
    guest.ok(mapd(1, 3));
    for n in 0..3 {
        guest.ok(mapti(1, n, 8192 + n, n as u16));
        assert_eq!(guest.msi(1, n), Injected::Pending);
    }
    guest.ok(movall(1, 1));
    guest.ok(movall(0, 2));
    let taken: [_; 3] = std::array::from_fn(|n| guest.take(n));
    assert_eq!(taken, [vec![], vec![8193], vec![8194, 8192]]);
}

#[test]
fn t14_no_cliff_in_memory() {
    let mut guest = Guest::new(1);
    for device in 0..4 {
        guest.ok(mapd(device, 12));
    }
    let events = || (0..4u32).flat_map(|device| (0..512u32).map(move |event| (device, event)));
    for _round in 0..5 {
        for (n, (device, event)) in events().enumerate() {
            guest.ok(mapti(device, event, 8192 + n as u32, 0));
        }
        for (device, event) in events() {
            assert_eq!(guest.msi(device, event), Injected::Pending);
        }
        guest.take(0);
        for (device, event) in events() {
            guest.ok(discard(device, event));
        }
        let usage = guest.world.gic.engine().usage();
        // 2,048 LPIs would need three times as much.
        assert!(usage.bytes < 1 << 16, "{usage:?}");
    }
}

#[test]
fn t19_a_dump_that_is_aborted_keeps_nothing() {
    let mut guest = mapped(1);
    for round in 0..300 {
        guest.ok(mapti(1, 1, 8200 + round, 0));
        let mut left = round % 5;
        let _ = guest.its.visit(|_| {
            left = left.saturating_sub(1);
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let _ = guest.world.gic.visit_lpis(|_| ControlFlow::Break(()));
        guest.ok(discard(1, 1));
    }
    let its = guest.its.clone();
    guest.ok(unmapd(1));
    assert_eq!(guest.lpis(), 0);
    assert_eq!(its.dump().events, []);
    let usage = guest.world.gic.engine().usage();
    assert!(usage.lpis <= 300 && usage.lpis <= usage.garbage, "{usage:?}");
}

#[test]
fn t23_lpis_of_an_unmapped_collection() {
    let mut guest = mapped(2);
    // The LPI is pending when its collection is unmapped: it stays pending, and comes back with the
    // collection.
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.ok(unmapc(0));
    assert_eq!(guest.msi(1, 0), Injected::Unmapped);
    guest.fails(int(1, 0), Fault::EventUnmapped);
    guest.fails(movi(1, 0, 1), Fault::CollectionUnmapped);
    guest.ok(movall(0, 1));
    guest.ok(mapc(0, 1));
    assert_eq!([guest.take(0), guest.take(1)], [vec![], vec![8192]]);
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    assert_eq!(guest.take(1), [8192]);
    // The LPI is not pending: nothing comes back.
    guest.ok(unmapc(0));
    guest.ok(mapc(0, 0));
    assert_eq!(guest.take(0), []);
    // The LPI is unmapped while its collection is unmapped.
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.ok(unmapc(0));
    guest.ok(discard(1, 0));
    guest.ok(mapc(0, 0));
    assert_eq!(guest.take(0), []);
    assert_eq!(guest.lpis(), 0);
    // The LPI is mapped while its collection is unmapped.
    guest.ok(mapti(1, 3, 8195, 4));
    assert_eq!(guest.msi(1, 3), Injected::Unmapped);
    guest.ok(unmapd(1));
    guest.ok(mapc(4, 0));
    assert_eq!(guest.lpis(), 0);
}

#[test]
fn t27_bad_commands_among_good_ones() {
    let mut guest = mapped(2);
    let good = [mapti(1, 1, 8193, 0), movi(1, 1, 1), int(1, 1)];
    let bad = [
        mapti(1, 1 << 16, 8194, 0),
        mapti(1 << 16, 1, 8194, 0),
        mapd(1 << 31, 3),
        movi(1, 7, 1),
        mapc(0, 99),
        movall(99, 0),
    ];
    for command in good {
        guest.put(&command.encode());
        for command in bad {
            guest.put(&command.encode());
        }
    }
    guest.ring();
    assert_eq!(guest.world.r64(CREADR), guest.end);
    assert_eq!([guest.take(0), guest.take(1)], [vec![], vec![8193]]);
    // CLEAR after MOVI finds the pending bit.
    guest.ok(int(1, 1));
    guest.ok(movi(1, 1, 0));
    guest.ok(clear(1, 1));
    assert_eq!([guest.take(0), guest.take(1)], [vec![], vec![]]);
    // INVALL really reads the configuration bytes, both enable and priority.
    guest.property(8192, 0xf1);
    guest.property(8193, 0x11);
    guest.ok(invall(0));
    guest.ok(int(1, 0));
    guest.ok(int(1, 1));
    assert_eq!(guest.take(0), [8193, 8192]);
}

#[test]
fn t26_lpis_out_of_range() {
    let mut guest = mapped(1);
    for intid in [0, 1023, 8191, 8193, 65_535, 65_536, u64::MAX] {
        guest.world.w64(rd(0) + 0xa0, intid);
    }
    guest.ok(int(1, 0));
    assert_eq!(guest.take(0), [8192]);
}

#[test]
fn t39_a_guest_that_edits_its_tables() {
    let mut guest = mapped(2);
    guest.its.save_tables().unwrap();
    guest.world.ram.write(itt(1), &[0xff; 64]).unwrap();
    guest.world.ram.write(DEVICES, &[0xff; 0x1000]).unwrap();
    guest.world.ram.write(COLLECTIONS, &[0xff; 0x1000]).unwrap();
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.ok(movi(1, 0, 1));
    assert_eq!(guest.take(1), [8192]);
    guest.ok(discard(1, 0));
    guest.ok(unmapd(1));
    assert_eq!(guest.lpis(), 0);
}

#[test]
fn t39_indirect_tables_that_change() {
    let mut guest = Guest::new(1);
    guest.world.w32(CTLR, 0);
    guest.world.w64(BASER0, VALID | 1 << 62 | DEVICES);
    guest.world.w32(CTLR, 1);
    guest.fails(mapd(600, 3), Fault::TableMemory);
    let level1 = DEVICES + 8;
    let second = RAM + 0x13_0000;
    guest.world.ram.write(level1, &(VALID | second).to_le_bytes()).unwrap();
    guest.ok(mapd(600, 3));
    guest.ok(mapti(600, 0, 8192, 0));
    guest.its.save_tables().unwrap();
    assert_ne!(guest.entry(second + 8 * (600 - 512)), 0);
    // The first-level entry is not valid; its other fields do not matter.
    guest.world.ram.write(level1, &second.to_le_bytes()).unwrap();
    guest.fails(mapd(601, 3), Fault::TableMemory);
    // The first-level entry points into a hole.
    guest.world.ram.write(level1, &(VALID | 0xf_0000_0000_0000).to_le_bytes()).unwrap();
    guest.fails(mapd(601, 3), Fault::TableMemory);
    assert_eq!(guest.msi(600, 0), Injected::Pending, "what is mapped stays so");
    guest.ok(unmapd(600));
    assert_eq!(guest.its.stats().unwritten, 1);
    assert_eq!(guest.msi(600, 0), Injected::Unmapped);
}

/// An LPI that a pending table has made pending belongs to the ITS once the ITS maps it, and ends
/// with that mapping.
#[test]
fn t05_lpis_of_a_pending_table_are_not_kept() {
    let mut guest = Guest::new(2);
    guest.ok(mapd(1, 3));
    let table = |vcpu: u64| RAM + 0x1_0000 * (1 + vcpu);
    let enable = |guest: &mut Guest, vcpu: usize| {
        guest.world.w32(rd(vcpu), 0);
        guest.world.ram.write(table(vcpu as u64) + 1024, &[1]).unwrap();
        guest.world.w64(rd(vcpu) + 0x78, table(vcpu as u64));
        guest.world.w32(rd(vcpu), 1);
    };
    enable(&mut guest, 0);
    assert_eq!(guest.lpis(), 1);
    assert_eq!(guest.entry(table(0) + 1024), 0, "it is the engine's now");
    guest.ok(mapti(1, 0, 8192, 0));
    assert_eq!(guest.take(0), [8192]);
    guest.ok(movi(1, 0, 1));
    guest.ok(discard(1, 0));
    assert_eq!(guest.lpis(), 0);
    enable(&mut guest, 0);
    assert_eq!(guest.take(0), [8192], "wherever it was before");
}

/// Memory of which parts come and go, as on a host that remaps it (T18).
struct Flickering {
    ram: Arc<crate::world::Ram>,
    gone: AtomicBool,
}

impl GuestMemory for Flickering {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        // Every other access fails.
        if self.gone.fetch_xor(true, Ordering::Relaxed) {
            return Err(MemoryError { address });
        }
        self.ram.read(address, data)
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(MemoryError { address });
        }
        self.ram.write(address, data)
    }
}

#[test]
fn t18_memory_is_remapped_while_commands_run() {
    let log = Arc::new(Log::default());
    let mut setup = setup(1, ItsConfig::at(GITS), Config::default(), &log);
    let ram = Guest::new(1).world.ram.clone();
    setup.set_memory(Arc::new(Flickering { ram, gone: AtomicBool::new(false) })).unwrap();
    let gic = setup.init::<crate::Engine>(crate::world::no_kick()).unwrap();
    let mut cpu = gic.cpu(vgic_core::ids::VcpuId(0)).unwrap();
    for (at, value) in [(CBASER, QUEUE), (BASER0, DEVICES), (BASER1, COLLECTIONS)] {
        cpu.write(at, &(VALID | value).to_le_bytes()).unwrap();
    }
    cpu.write(CTLR, &1u32.to_le_bytes()).unwrap();
    for _ in 0..100 {
        cpu.write(CWRITER, &0xfe0u64.to_le_bytes()).unwrap();
        cpu.write(CWRITER, &0u64.to_le_bytes()).unwrap();
    }
    let stats = gic.its(0).unwrap().stats();
    let all: u64 = stats.commands.iter().map(|c| c.1).chain(stats.faults.iter().map(|f| f.2)).sum();
    assert_eq!(all, 100 * 128, "every command was looked at once");
    assert!(stats.faults_of(Fault::QueueMemory) >= 1000);
}

/// An MSI that arrives between the acknowledge and the end of its LPI is delivered after the end.
#[test]
fn t40_raised_between_acknowledge_and_exit() {
    use vgic_core::gic::SysReg;
    let mut guest = mapped(1);
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.world.cpus[0].enter();
    assert_eq!(guest.world.icc_of(0, SysReg::ICC_IAR1_EL1), 8192);
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.world.icc(0, SysReg::ICC_EOIR1_EL1, 8192);
    guest.world.cpus[0].exit();
    assert_eq!(guest.take(0), [8192]);
}

#[test]
fn routes_see_every_remap() {
    let mut guest = Guest::new(2);
    let route = guest.its.route(device(1), EventId(0)).unwrap();
    let inject = |guest: &Guest| route.inject(guest.world.cpus[0].bus().injector());
    assert_eq!(inject(&guest), Injected::Unmapped);
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 0));
    assert_eq!(inject(&guest), Injected::Pending);
    guest.ok(discard(1, 0));
    assert_eq!(inject(&guest), Injected::Unmapped);
    guest.ok(mapti(1, 0, 8300, 1));
    assert_eq!(inject(&guest), Injected::Pending);
    assert_eq!([guest.take(0), guest.take(1)], [vec![], vec![8300]]);
    guest.ok(unmapc(1));
    assert_eq!(inject(&guest), Injected::Unmapped);
    guest.ok(mapc(1, 0));
    assert_eq!(inject(&guest), Injected::Pending);
    assert_eq!(guest.take(0), [8300]);
    guest.ok(Command::Mapd { device: device(1), valid: false, size: 0, itt: 0 });
    assert_eq!(inject(&guest), Injected::Unmapped);
}
