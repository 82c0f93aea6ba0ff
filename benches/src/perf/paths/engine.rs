//! Injection, entry and exit, on one thread.

use std::marker::PhantomData;

use anyhow::Result;
use vgic_core::engine::{Config, Engine, Injector, LpiConfig, MsiControl, Vcpu};
use vgic_core::ids::{DeviceId, EventId, Intid, LPI_BASE, VcpuId};
use vgic_core::locked::LockedVgic;

use super::{LINES, LOCKED, SHIPPED, SIZES, Shipped, each_engine};
use crate::cost::{Bench, NoKick, time_of};
use crate::its::ViaIts;
use crate::perf::path::{Group, Kernel, repeat};
use crate::rng::Rng;

/// An MSI through a route, with its LPI already pending.
pub(crate) const BY_ROUTE: &str = "coalesced, by MsiRoute";
/// An MSI by device and event, with its LPI already pending.
pub(crate) const BY_EVENT: &str = "coalesced, by device and event";
/// A device's write to GITS_TRANSLATER, with its LPI already pending.
pub(crate) const TRANSLATER: &str = "coalesced, by a write to GITS_TRANSLATER";
/// An MSI through a route, with its LPI not pending.
pub(crate) const FIRST_BY_ROUTE: &str = "first, by MsiRoute";
/// An MSI by device and event, with its LPI not pending.
pub(crate) const FIRST_BY_EVENT: &str = "first, by device and event";
/// From the injection to the fold.
pub(crate) const CYCLE: &str = "full cycle of an LPI chosen at random";
/// One of many pending LPIs is delivered.
pub(crate) const ONE_TAKEN: &str = "full cycle of one, all others pending";
/// No LPI is delivered.
pub(crate) const NOTHING_TAKEN: &str = "entry and exit, nothing taken";

pub(super) fn injection() -> Group {
    let mut group = Group::new("injection");
    each_engine!(injections, &mut group);
    translated::<Shipped>(SHIPPED, &mut group);
    translated::<LockedVgic>(LOCKED, &mut group);
    group
}

fn injections<E: Engine>(_: PhantomData<E>, who: &'static str, group: &mut Group) {
    for lpis in SIZES {
        let at = Some((u64::from(lpis), "mapped"));
        group.add(who, BY_ROUTE, at, move || {
            let mut b = Bench::<E>::new(lpis)?;
            b.pend(lpis as usize);
            repeat(move || b.coalesced_by_route())
        });
        group.add(who, BY_EVENT, at, move || {
            let mut b = Bench::<E>::new(lpis)?;
            b.pend(lpis as usize);
            let domain = b.domain();
            repeat(move || b.coalesced_by_event(&domain))
        });
    }
    for lpis in &SIZES[1..] {
        let (lpis, at) = (*lpis, Some((u64::from(*lpis), "mapped")));
        group.add(who, FIRST_BY_ROUTE, at, move || {
            let mut b = Bench::<E>::new(lpis)?;
            Ok(Box::new(move |calls| Ok(b.first(calls, None))))
        });
        group.add(who, FIRST_BY_EVENT, at, move || {
            let mut b = Bench::<E>::new(lpis)?;
            let domain = b.domain();
            Ok(Box::new(move |calls| Ok(b.first(calls, Some(&domain)))))
        });
    }
    group.add(who, "pin, and a look-up that finds no device", None, || {
        let b = Bench::<E>::new(1)?;
        let domain = b.domain();
        repeat(move || b.unmapped(&domain))
    });
}

/// Creates a machine with an ITS, and LPIs mapped by its driver.
fn machine<E: Engine>(lpis: u32) -> Result<(ViaIts<E>, <ViaIts<E> as Engine>::Msi)> {
    let config = Config {
        lpis,
        max_lpis: lpis,
        max_bytes: u64::MAX,
        max_events: lpis,
        device_bits: 4,
        event_bits: 17,
        ..Config::with_vcpus(1)
    };
    let gic = ViaIts::<E>::new(&config, std::sync::Arc::new(NoKick))?;
    let mut msi = gic.msi()?;
    for n in 0..lpis {
        let (intid, config) = (Intid(LPI_BASE + n), LpiConfig::enabled(0xa0));
        msi.map(DeviceId(8), EventId(n), intid, VcpuId(0), config)?;
    }
    Ok((gic, msi))
}

fn translated<E: Engine>(who: &'static str, group: &mut Group) {
    for lpis in SIZES {
        let at = Some((u64::from(lpis), "mapped"));
        group.add(who, TRANSLATER, at, move || {
            let (gic, msi) = machine::<E>(lpis)?;
            let injector = gic.injector()?;
            let domain = msi.domain();
            for n in 0..lpis {
                let _ = injector.inject(&domain, DeviceId(8), EventId(n));
            }
            let mut rng = Rng::new(1, 0);
            repeat(move || {
                let _keep = &msi;
                gic.write_translater(&injector, DeviceId(8), EventId(rng.below(lpis)));
            })
        });
    }
}

pub(super) fn cycle() -> Group {
    let mut group = Group::new("full cycle");
    each_engine!(cycles, &mut group);
    for lpis in SIZES {
        let at = Some((u64::from(lpis), "mapped"));
        group.add(LINES, CYCLE, at, move || super::lines::loads(lpis));
    }
    group
}

fn cycles<E: Engine>(_: PhantomData<E>, who: &'static str, group: &mut Group) {
    for lpis in SIZES {
        group.add(who, CYCLE, Some((u64::from(lpis), "mapped")), move || {
            let mut b = Bench::<E>::new(lpis)?;
            repeat(move || b.cycle())
        });
    }
    for pending in [16, 1024, 65_536] {
        group.add(who, ONE_TAKEN, Some((pending.into(), "pending")), move || {
            let mut b = Bench::<E>::new(pending)?;
            b.pend(pending as usize);
            repeat(move || b.entry_with_pending())
        });
    }
}

pub(super) fn entry() -> Group {
    let mut group = Group::new("entry");
    each_engine!(entries, &mut group);
    group
}

fn entries<E: Engine>(_: PhantomData<E>, who: &'static str, group: &mut Group) {
    for pending in [0, 1, 16, 1024, 65_536] {
        group.add(who, NOTHING_TAKEN, Some((pending.into(), "pending")), move || {
            let mut b = Bench::<E>::new(pending.max(1))?;
            b.pend(pending as usize);
            repeat(move || b.idle_entry())
        });
    }
}

/// Number of injected events among all mapped ones: few, so that the accessed memory stays the
/// same.
const HOT: usize = 256;

pub(super) fn number_of_events() -> Group {
    let mut group = Group::new("number of events");
    for events in [1, 16, 256, 4096, 65_536, 1 << 20] {
        for (who, make) in [
            (SHIPPED, hot::<Shipped> as fn(u32, bool) -> Result<Kernel>),
            (LOCKED, hot::<LockedVgic>),
        ] {
            let at = Some((u64::from(events), "mapped"));
            group.add(who, "256 hot events, by MsiRoute", at, move || make(events, false));
            group.add(who, "256 hot events, by device and event", at, move || make(events, true));
        }
    }
    group
}

/// Injects a few of many mapped events, by route or by look-up. The vCPU takes none of them.
fn hot<E: Engine>(events: u32, look_up: bool) -> Result<Kernel> {
    let config = Config {
        lpis: events,
        max_lpis: events,
        max_bytes: u64::MAX,
        max_events: events,
        device_bits: 4,
        event_bits: 20,
        ..Config::with_vcpus(1)
    };
    let engine = E::new(&config, std::sync::Arc::new(NoKick))?;
    let mut vcpu = engine.vcpu(VcpuId(0))?;
    vcpu.open();
    let mut msi = engine.msi()?;
    for n in 0..events {
        let (intid, config) = (Intid(LPI_BASE + n), LpiConfig::enabled(0xa0));
        msi.map(DeviceId(8), EventId(n), intid, VcpuId(0), config)?;
    }
    let mut chosen: Vec<u32> = (0..events).collect();
    Rng::new(1, 1).shuffle(&mut chosen);
    chosen.truncate(HOT);
    let routes = chosen
        .iter()
        .map(|&n| msi.route(DeviceId(8), EventId(n)))
        .collect::<Result<Vec<_>, _>>()?;
    let (injector, domain) = (engine.injector()?, msi.domain());
    let mut next = 0;
    Ok(Box::new(move |calls| {
        let _keep = (&msi, &vcpu);
        Ok(time_of(calls, || {
            next = if next + 1 == chosen.len() { 0 } else { next + 1 };
            let _ = if look_up {
                injector.inject(&domain, DeviceId(8), EventId(chosen[next]))
            } else {
                injector.inject_route(&routes[next])
            };
        }))
    }))
}
