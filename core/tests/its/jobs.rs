//! Long work is done in pieces: each access does a bounded part of it, and nothing is lost in
//! between.

#![allow(clippy::disallowed_types)] // a test's memory, not the engine

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vgic_core::engine::{Config, Injected};
use vgic_core::its::{Fault, ItsConfig};
use vgic_core::memory::{GuestMemory, MemoryError};

use crate::guest::*;
use crate::world::{RAM, Ram, World, no_kick};

const EVENTS: u32 = 600;
const MOST: u32 = 100;

/// A guest with one device of 600 events in collection 0, and an ITS that does little work in an
/// access.
fn many() -> Guest {
    let config = ItsConfig { slice: 20, most: MOST, ..ItsConfig::at(GITS) };
    let mut guest = Guest::with(2, config, Config::default());
    guest.ok(mapc(0, 0));
    guest.ok(mapd(1, 10));
    for n in 0..EVENTS {
        guest.ok(mapti(1, n, 8192 + n, 0));
    }
    guest
}

/// Each command visits or changes every event. An access does `MOST` of that work, not more and not
/// much less.
#[test]
fn an_access_does_a_part_of_a_command() {
    let mut guest = many();
    for (command, least) in [
        (invall(0), EVENTS),
        (movall(0, 1), EVENTS),
        (mapc(0, 0), EVENTS),
        (unmapc(0), EVENTS),
        (mapc(0, 0), EVENTS),
        (mapd(1, 10), EVENTS),
    ] {
        let before = guest.end;
        guest.put(&command.encode());
        guest.ring();
        assert_eq!(guest.world.r64(CREADR), before, "{command:?}: not done yet");
        let times = guest.poll(guest.end);
        assert!(times > least / MOST, "{command:?}: {times} times");
        assert!(times < 20 * least / MOST, "{command:?}: {times} times");
        let last = guest.log.results.lock().unwrap().last().copied();
        assert_eq!(last, Some((Some(command), Ok(()))));
    }
    assert_eq!(guest.lpis(), 0);
}

/// Commands wait for a long command before them.
#[test]
fn nothing_overtakes() {
    let mut guest = many();
    guest.put(&unmapc(0).encode());
    guest.put(&mapc(0, 1).encode());
    guest.put(&int(1, EVENTS - 1).encode());
    guest.ring();
    guest.poll(guest.end);
    let target = |lpi: vgic_core::engine::LpiState| lpi.target.0;
    assert!(guest.world.gic.dump().lpis.into_iter().all(|lpi| target(lpi) == 1));
    assert_eq!(guest.take(1), [u64::from(8192 + EVENTS - 1)]);
}

/// In the middle of a command each event is in one state: MSIs of events that are still mapped come
/// in, and MSIs of the other events do not. An MSI that has come in is delivered once.
#[test]
fn msis_in_the_midst_of_a_command() {
    for command in [unmapc(0), mapc(0, 1), movall(0, 1), invall(0), unmapd(1)] {
        let mut guest = many();
        // Some events are pending before.
        (0..EVENTS).step_by(3).for_each(|n| assert_eq!(guest.msi(1, n), Injected::Pending));
        guest.put(&command.encode());
        guest.ring();
        for _ in 0..2 {
            assert_ne!(guest.world.r64(CREADR), guest.end, "{command:?}");
        }
        let mut gone = 0;
        for n in 0..EVENTS {
            let before = n % 3 == 0;
            match guest.msi(1, n) {
                Injected::Unmapped => gone += 1,
                Injected::Coalesced => assert!(before, "{command:?}, event {n}"),
                Injected::Pending => assert!(!before, "{command:?}, event {n}"),
            }
        }
        let unmaps = command == unmapc(0) || command == unmapd(1);
        assert_eq!(gone > 0, unmaps, "{command:?}");
        assert!(gone < EVENTS / 2, "{command:?}: it is not half done");
        let pending = guest.world.gic.dump().lpis.into_iter().filter(|lpi| lpi.pending);
        let expected: Vec<u64> = pending.map(|lpi| lpi.intid.0.into()).collect();
        guest.poll(guest.end);
        let mut taken = guest.take(0);
        taken.extend(guest.take(1));
        taken.sort_unstable();
        if command == unmapd(1) {
            assert_eq!(taken, [], "what is unmapped is not pending");
        } else {
            assert_eq!(taken, expected, "{command:?}");
        }
    }
}

/// An ITS that is disabled finishes its command, and is quiescent when that is done.
#[test]
fn quiescent_when_the_command_is_done() {
    let mut guest = many();
    let (command, next) = (unmapc(0), mapc(1, 1));
    let at = guest.end;
    guest.put(&command.encode());
    guest.put(&next.encode());
    guest.ring();
    guest.world.w32(CTLR, 0);
    assert_eq!(guest.world.r32(CTLR), 0, "not quiescent");
    assert!(guest.quiet() > 10);
    assert_eq!(guest.world.r64(CREADR), at + 32, "the one command, and not the next");
    assert_eq!(guest.its.dump().collections, []);
    guest.world.w32(CTLR, 1);
    guest.poll(guest.end);
}

/// The queue is replaced in the middle of a command, which the architecture leaves open: the
/// command is finished, and the new queue starts at its first entry.
#[test]
fn a_new_queue_in_the_midst_of_a_command() {
    let mut guest = many();
    guest.put(&unmapc(0).encode());
    guest.ring();
    guest.world.w32(CTLR, 0);
    guest.world.w64(CBASER, VALID | QUEUE);
    guest.end = 0;
    guest.quiet();
    assert_eq!(guest.world.r64(CREADR), 0);
    assert_eq!(guest.its.dump().collections, []);
    guest.world.w32(CTLR, 1);
    guest.ok(mapc(0, 0));
}

/// A kernel starts again without a reset (kexec, kdump). With new tables, the old mappings are
/// gone, independent of their number and of the kernel's first accesses.
#[test]
fn new_tables_have_no_old_mappings() {
    for patience in [false, true] {
        let mut guest = many();
        guest.ok(mapc(1, 1));
        assert_eq!(guest.msi(1, 5), Injected::Pending);
        let new = RAM + 0x18_0000;
        guest.world.w32(CTLR, 0);
        guest.world.w64(CBASER, VALID | QUEUE);
        guest.world.w64(BASER0, VALID | new | 0xf);
        guest.world.w64(BASER1, VALID | (new + 0x1_0000) | 0xf);
        guest.end = 0;
        if patience {
            assert!(guest.quiet() > 10);
        }
        guest.world.w32(CTLR, 1);
        assert_eq!(guest.world.r32(CTLR), 1, "enabled");
        for n in 0..EVENTS {
            assert_eq!(guest.msi(1, n), Injected::Unmapped, "the old kernel's device");
        }
        guest.ok(mapc(0, 0));
        let dump = guest.its.dump();
        assert_eq!((dump.devices, dump.events.len(), dump.collections.len()), (vec![], 0, 1));
        assert_eq!(guest.lpis(), 0);
        guest.ok(mapd(1, 3));
        guest.ok(mapti(1, 5, 8192, 0));
        assert_eq!(guest.msi(1, 5), Injected::Pending);
        assert_eq!([guest.take(0), guest.take(1)], [vec![8192], vec![]]);
    }
}

/// Mappings are removed by writes that name another table or a shorter one, and by no others.
#[test]
fn a_table_that_is_named_again_is_the_same() {
    let mut guest = Guest::new(1);
    for device in [1, 600] {
        guest.ok(mapd(device, 3));
        guest.ok(mapti(device, 0, 8192 + device, 0));
    }
    guest.ok(mapc(1000, 0));
    guest.world.w32(CTLR, 0);
    for (at, table) in [(BASER0, DEVICES), (BASER1, COLLECTIONS)] {
        // As after a suspend: the same table with other attributes, or longer; also written by
        // halves.
        for value in
            [VALID | table | 0xf, VALID | 7 << 59 | 1 << 10 | table | 0xf, VALID | table | 0x1f]
        {
            guest.world.w64(at, value);
            guest.world.w32(at, value as u32);
            guest.world.w32(at + 4, (value >> 32) as u32);
        }
    }
    guest.quiet();
    assert_eq!((guest.its.dump().devices.len(), guest.its.dump().collections.len()), (2, 2));
    // One page has 512 entries.
    guest.world.w64(BASER0, VALID | DEVICES);
    guest.world.w64(BASER1, VALID | COLLECTIONS);
    guest.quiet();
    let dump = guest.its.dump();
    let kept =
        (dump.devices[0].device, dump.devices.len(), dump.events.len(), dump.collections.len());
    assert_eq!(kept, (device(1), 1, 1, 1));
    guest.world.w32(CTLR, 1);
    assert_eq!([guest.msi(1, 0), guest.msi(600, 0)], [Injected::Pending, Injected::Unmapped]);
    for (at, value) in [
        (BASER0, VALID | DEVICES | 1 << 8),
        (BASER0, VALID | 1 << 62 | DEVICES),
        (BASER0, VALID | (DEVICES + 0x1_0000)),
    ] {
        guest.world.w32(CTLR, 0);
        guest.world.w64(at, value);
        guest.world.w64(at, VALID | DEVICES);
        guest.world.w32(CTLR, 1);
        assert_eq!(guest.msi(1, 0), Injected::Unmapped, "{value:#x}");
        assert_eq!(guest.its.dump().devices, []);
        guest.ok(mapd(1, 3));
        guest.ok(mapti(1, 0, 8193, 0));
    }
}

/// Collections that need no table stay when a table is given up.
#[test]
fn collections_without_a_table_stay() {
    let config = ItsConfig { hardware_collections: 4, ..ItsConfig::at(GITS) };
    let mut guest = Guest::with(1, config, Config::default());
    guest.ok(mapd(1, 3));
    for collection in [3, 4] {
        guest.ok(mapc(collection, 0));
        guest.ok(mapti(1, collection.into(), 8192 + u32::from(collection), collection));
    }
    guest.world.w32(CTLR, 0);
    guest.world.w64(BASER1, 0);
    guest.quiet();
    guest.world.w32(CTLR, 1);
    assert_eq!([guest.msi(1, 3), guest.msi(1, 4)], [Injected::Pending, Injected::Unmapped]);
}

/// If the tables are saved in the middle of a command, the command is finished first.
#[test]
fn saved_in_the_midst_of_a_command() {
    let mut guest = many();
    guest.put(&unmapd(1).encode());
    guest.ring();
    guest.its.save_tables().unwrap();
    assert_eq!(guest.entry(DEVICES + 8), 0);
    let end = guest.end;
    assert_eq!(guest.world.r64(CREADR), end);
}

/// Memory in which reads of the configuration table panic while the flag is set.
struct Faulty(Arc<Ram>, AtomicBool);

impl GuestMemory for Faulty {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let property = (RAM..RAM + 0x1_0000).contains(&address);
        assert!(!(property && self.1.load(Ordering::Relaxed)), "the host's memory has a fault");
        self.0.read(address, data)
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.0.write(address, data)
    }
}

/// A panic in the host's memory harms only the access that meets it: another vCPU performs the
/// command.
#[test]
fn a_callback_that_panics_gives_the_turn_back() {
    for command in [mapti(1, 1, 8300, 0), invall(0), mapc(0, 1), unmapc(0)] {
        let ram = Guest::new(2).world.ram.clone();
        let memory = Arc::new(Faulty(ram.clone(), AtomicBool::new(false)));
        let log = Arc::new(Log::default());
        let mut setup = setup(2, ItsConfig::at(GITS), Config::default(), &log);
        setup.set_memory(memory.clone()).unwrap();
        let gic = setup.init(no_kick()).unwrap();
        let cpus = [0, 1].map(|n| gic.cpu(vgic_core::ids::VcpuId(n)).unwrap()).into();
        let its = gic.its(0).unwrap();
        let mut guest = Guest { world: World { cpus, gic, ram }, its, log, end: 0 };
        guest.start();
        guest.ok(mapc(0, 0));
        guest.ok(mapd(1, 3));
        guest.ok(mapti(1, 0, 8192, 0));
        guest.put(&command.encode());
        memory.1.store(true, Ordering::Relaxed);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| guest.ring()));
        assert_eq!(panicked.is_err(), command != unmapc(0), "{command:?}");
        memory.1.store(false, Ordering::Relaxed);
        let mut creadr = [0; 8];
        guest.world.cpus[1].read(CREADR, &mut creadr).unwrap();
        assert_eq!(u64::from_le_bytes(creadr), guest.end, "{command:?}");
        let last = guest.log.results.lock().unwrap().last().copied();
        assert_eq!(last, Some((Some(command), Ok(()))));
        guest.world.w32(CTLR, 0);
        guest.quiet();
        guest.world.w32(CTLR, 1);
        guest.ok(mapc(0, 0));
        assert_eq!(guest.msi(1, 0), Injected::Pending);
        guest.property(8192, 0);
        guest.ok(inv(1, 0));
        guest.fails(discard(1, 7), Fault::EventUnmapped);
    }
}
