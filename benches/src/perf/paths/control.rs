//! The control side: mappings, and the commands of an ITS.

use std::marker::PhantomData;
use std::sync::Arc;

use anyhow::Result;
use vgic_core::engine::{Config, Engine, LpiConfig, MsiControl};
use vgic_core::ids::{DeviceId, EventId, Intid, LPI_BASE, VcpuId};
use vgic_core::locked::LockedVgic;

use super::{LOCKED, SHIPPED, Shipped, each_engine};
use crate::cost::{Bench, NoKick};
use crate::its::ViaIts;
use crate::perf::path::{Group, Kernel, repeat};

pub(super) fn control() -> Group {
    let mut group = Group::new("control");
    each_engine!(mappings, &mut group);
    group
}

fn mappings<E: Engine>(_: PhantomData<E>, who: &'static str, group: &mut Group) {
    for lpis in [1, 1024] {
        let at = Some((u64::from(lpis), "mapped"));
        group.add(who, "map an event, and unmap it", at, move || {
            let mut b = Bench::<E>::new(lpis)?;
            repeat(move || b.map_and_unmap())
        });
        group.add(who, "retarget twice, idle", at, move || {
            let mut b = Bench::<E>::new(lpis)?;
            repeat(move || b.move_there_and_back())
        });
    }
    group.add(who, "retarget twice, pending", Some((1024, "mapped")), || {
        let mut b = Bench::<E>::new(1024)?;
        b.pend(1024);
        repeat(move || b.move_there_and_back())
    });
}

pub(super) fn commands() -> Group {
    let mut group = Group::new("commands");
    its::<Shipped>(SHIPPED, &mut group);
    its::<LockedVgic>(LOCKED, &mut group);
    group
}

const DEVICE: DeviceId = DeviceId(8);
const LPIS: u32 = 1024;

/// Commands, each with a SYNC. The driver rings for each one separately, and waits for it.
fn its<E: Engine>(who: &'static str, group: &mut Group) {
    type Op<E> = fn(&mut <ViaIts<E> as Engine>::Msi, u32) -> Result<()>;
    let config = LpiConfig::enabled(0xa0);
    let _ = config;
    let ops: [(&str, Op<E>); 6] = [
        ("MAPTI, and DISCARD", |msi, _| {
            let (event, intid) = (EventId(LPIS), Intid(LPI_BASE + LPIS));
            msi.map(DEVICE, event, intid, VcpuId(0), LpiConfig::enabled(0xa0))?;
            Ok(msi.unmap(DEVICE, event)?)
        }),
        ("MOVI", |msi, n| {
            Ok(msi.retarget(DEVICE, EventId(n % LPIS), VcpuId((n / LPIS % 2) as u16))?)
        }),
        ("INV", |msi, n| Ok(msi.set_config(Intid(LPI_BASE + n % LPIS), LpiConfig::enabled(0xa0))?)),
        ("INT", |msi, n| Ok(msi.set_pending(Intid(LPI_BASE + n % LPIS), true)?)),
        ("CLEAR", |msi, n| Ok(msi.clear(DEVICE, EventId(n % LPIS))?)),
        ("MOVALL of 1,024 LPIs", |msi, n| {
            let (from, to) = if n.is_multiple_of(2) { (0, 1) } else { (1, 0) };
            msi.move_all(VcpuId(from), VcpuId(to))?;
            Ok(())
        }),
    ];
    for (what, op) in ops {
        group.add(who, format!("{what}, and SYNC"), None, move || -> Result<Kernel> {
            let config = Config {
                lpis: LPIS + 1,
                max_lpis: LPIS + 4096,
                max_bytes: u64::MAX,
                max_events: LPIS + 1,
                device_bits: 4,
                event_bits: 11,
                ..Config::with_vcpus(2)
            };
            let gic = ViaIts::<E>::new(&config, Arc::new(NoKick))?;
            let mut msi = gic.msi()?;
            for n in 0..LPIS {
                let (intid, config) = (Intid(LPI_BASE + n), LpiConfig::enabled(0xa0));
                msi.map(DEVICE, EventId(n), intid, VcpuId(0), config)?;
            }
            let mut n = 0_u32;
            repeat(move || {
                let _keep = &gic;
                n = n.wrapping_add(1);
                op(&mut msi, n).expect("it is mapped");
            })
        });
    }
}
