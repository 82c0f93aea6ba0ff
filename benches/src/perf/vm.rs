//! A large machine, from its creation to its last mapped LPI.

use std::sync::Arc;
use std::time::Instant;

use vgic_core::engine::{Config, Engine};
use vgic_core::locked::LockedVgic;

use super::path::{Group, Kernel};
use super::paths::{LOCKED, SHIPPED, Shipped};
use crate::cost::NoKick;
use crate::its::ViaIts;
use anyhow::Result;

/// The path's name.
pub const BUILT: &str = "machine of 64 vCPUs with an ITS, all LPIs mapped by commands";

/// LPIs of the largest machine.
pub const LPIS: u32 = 65_536;

const DEVICES: u32 = 64;

pub(super) fn machines() -> Group {
    let mut group = Group::new("machine");
    for lpis in [DEVICES, LPIS] {
        let at = Some((u64::from(lpis), "LPIs"));
        group.add(SHIPPED, BUILT, at, move || build::<Shipped>(lpis));
        group.add(LOCKED, BUILT, at, move || build::<LockedVgic>(lpis));
    }
    group
}

/// Times the creation and the mappings, without the drop and without the guest's writes to its own
/// tables.
fn build<E: Engine>(lpis: u32) -> Result<Kernel> {
    let events = lpis / DEVICES;
    let config = Config {
        lpis,
        max_lpis: lpis,
        max_bytes: u64::MAX,
        max_events: lpis,
        max_devices: DEVICES,
        device_bits: 6,
        event_bits: (u32::BITS - events.leading_zeros()) as u8,
        ..Config::with_vcpus(64)
    };
    Ok(Box::new(move |calls| {
        let mut time = std::time::Duration::ZERO;
        for _ in 0..calls {
            let start = Instant::now();
            let gic = ViaIts::<E>::new(&config, Arc::new(NoKick))?;
            let mut driver = gic.msi()?;
            time += start.elapsed();
            driver.prepare(DEVICES, events);
            let start = Instant::now();
            driver.build(DEVICES, events)?;
            time += start.elapsed();
        }
        Ok(time)
    }))
}
