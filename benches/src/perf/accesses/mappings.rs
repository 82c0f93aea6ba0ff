//! Accesses to the registers of an ITS in which the guest has mapped every event.

use vgic_core::ids::DeviceId;
use vgic_core::its::{CollectionId, Command, RdBase};

use super::guest::{
    BASER0, BASER1, CREADR, GITS_CTLR, Guest, Has, discard, mapc, mapti, movi, unmapc,
};
use super::{Size, access};

/// Commands that a queue has room for.
const QUEUE: u32 = 2047;

fn movall(from: u64, to: u64) -> Command {
    Command::Movall { from: RdBase(from), to: RdBase(to) }
}

fn unmapd(device: u32) -> Command {
    Command::Mapd { device: DeviceId(device), valid: false, size: 0, itt: 0 }
}

pub(super) fn scene(size: Size) {
    let mut guest = Guest::new(size, Has::Its);
    guest.enable_all();
    guest.run((0..size.vcpus).map(|n| mapc(n, n)));
    guest.map_all(0);
    // The number of mapped LPIs has reached the bound.
    guest.count("MAPTI that meets the bound on LPIs", [mapti(size.lpis, 0)]);
    guest.count("a queue of MAPTI that meet the bound", (0..QUEUE).map(|_| mapti(size.lpis, 0)));
    guest.count("DISCARD", [discard(7)]);
    guest.count("MAPTI", [mapti(7, 0)]);
    guest.count("a queue of DISCARD", (0..QUEUE).map(discard));
    guest.count("a queue of MAPTI", (0..QUEUE).map(|n| mapti(n, 0)));
    guest.count("a queue of MOVI", (0..QUEUE).map(|n| movi(n, 1)));
    guest.count("a queue of MOVI", (0..QUEUE).map(|n| movi(n, 0)));
    guest.count("INVALL", [Command::Invall(CollectionId(0))]);
    guest.count("a queue of INVALL", (0..8).map(|_| Command::Invall(CollectionId(0))));
    guest.count("MOVALL", [movall(0, 1)]);
    guest.run([movall(1, 0)]);
    guest.count("MAPC to another vCPU", [mapc(0, 2)]);
    guest.count("MAPC V=0", [unmapc(0)]);
    guest.count("MAPC V=1, whose events come back", [mapc(0, 0)]);
    guest.run([unmapc(0), mapc(0, 0)]);
    all_pending(&mut guest);
    tables(&mut guest, size);
}

/// Accesses with all LPIs pending, and delivered to the vCPU.
fn all_pending(guest: &mut Guest) {
    guest.inject_all();
    guest.enter(0, "entry with a full mailbox");
    guest.count("INVALL, all pending", [Command::Invall(CollectionId(0))]);
    guest.enter(0, "entry after INVALL, all pending");
    guest.count("MOVALL, all pending", [movall(0, 1)]);
    guest.enter(0, "entry of the old vCPU after MOVALL, all pending");
    guest.enter(1, "entry of the new vCPU after MOVALL, all pending");
    guest.run([movall(1, 0)]);
    guest.enter(1, "entry of the old vCPU after MOVALL, all pending");
    guest.enter(0, "entry of the new vCPU after MOVALL, all pending");
    guest.count("MAPC V=0, all pending", [unmapc(0)]);
    guest.count("MAPC V=1, all pending", [mapc(0, 0)]);
    guest.enter(0, "entry after MAPC V=1, all pending");
    guest.count("MAPD V=0, all pending", [unmapd(0)]);
    guest.enter(0, "entry after MAPD V=0, all pending");
    // The next access frees the retired LPIs.
    guest.count("SYNC after all have died", [Command::Sync(RdBase(0))]);
    guest.count("DISCARD after all have died", [discard(70_000)]);
}

/// Accesses that take the tables away from the ITS.
fn tables(guest: &mut Guest, size: Size) {
    let disable = "GITS_CTLR.Enabled := 0";
    let tables = [BASER0, BASER1].map(|at| guest.r64(at));
    let again = |guest: &mut Guest| {
        guest.w64(BASER0, tables[0]);
        guest.w64(BASER1, tables[1]);
        while guest.r32(GITS_CTLR) >> 31 == 0 {}
        guest.w32(GITS_CTLR, 1);
        while guest.r32(GITS_CTLR) & 1 == 0 {}
    };
    for (name, at) in [("GITS_BASER1 := 0", BASER1), ("GITS_BASER0 := 0", BASER0)] {
        guest.run((0..size.lpis.div_ceil(1 << 16)).map(unmapd));
        guest.run((0..size.vcpus).map(|n| mapc(n, n)));
        guest.map_all(0);
        access(disable, || guest.w32(GITS_CTLR, 0));
        access(name, || guest.w64(at, 0));
        while access(name, || guest.r32(GITS_CTLR)) >> 31 == 0 {}
        again(guest);
    }
    guest.run((0..size.vcpus).map(|n| mapc(n, n)));
    guest.map_all(0);
    guest.count("MAPD V=0", [unmapd(0)]);
    access("GITS_CREADR, nothing left", || guest.r64(CREADR));
}
