//! Counts heap bytes on request.

#![allow(unsafe_code)] // A global allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use anyhow::{Context, Result};
use vgic_core::engine::{Config, Engine, LpiConfig, MsiControl};
use vgic_core::ids::{DeviceId, EventId, Intid, LPI_BASE, VcpuId};
use vgic_core::locked::LockedVgic;

use super::data::Memory;
use super::paths::{ARM_VGIC, LOCKED, SHIPPED, Shipped};
use super::peer::Peer;
use crate::cost::NoKick;
use crate::its::ViaIts;

/// The system's allocator, with a count that is off by default, so that timed code does not pay for
/// it.
#[derive(Debug)]
pub struct Counting;

static ON: AtomicBool = AtomicBool::new(false);
static BYTES: AtomicI64 = AtomicI64::new(0);

fn count(bytes: i64) {
    // Relaxed: one thread allocates while this is on.
    if ON.load(Ordering::Relaxed) {
        BYTES.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: all calls go to the system allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Returns the heap bytes that the result of `f` still holds.
fn bytes_of<T>(f: impl FnOnce() -> Result<T>) -> Result<u64> {
    BYTES.store(0, Ordering::Relaxed);
    ON.store(true, Ordering::Relaxed);
    let kept = f();
    ON.store(false, Ordering::Relaxed);
    let bytes = BYTES.load(Ordering::Relaxed);
    drop(kept?);
    anyhow::ensure!(bytes != 0, "nothing was allocated: is the counting allocator in place?");
    u64::try_from(bytes).context("less than nothing is left")
}

fn config(lpis: u32, per_device: u32) -> Config {
    let devices = lpis.div_ceil(per_device);
    Config {
        lpis,
        max_lpis: lpis,
        max_bytes: u64::MAX,
        max_devices: devices,
        max_events: lpis,
        device_bits: (u32::BITS - devices.leading_zeros()).max(1) as u8,
        event_bits: (u32::BITS - per_device.leading_zeros()).max(1) as u8,
        ..Config::with_vcpus(4)
    }
}

/// Returns the cost of mappings, beyond an engine without any.
fn by_host<E: Engine>(lpis: u32, per_device: u32) -> Result<u64> {
    let engine = E::new(&config(lpis, per_device), Arc::new(NoKick))?;
    let mut msi = engine.msi()?;
    bytes_of(|| {
        for n in 0..lpis {
            let (device, event) = (DeviceId(n / per_device), EventId(n % per_device));
            let (intid, target) = (Intid(LPI_BASE + n), VcpuId((n % 4) as u16));
            msi.map(device, event, intid, target, LpiConfig::enabled(0xa0))?;
        }
        Ok(msi)
    })
}

/// Returns the cost of mappings made by a guest's commands, including the ITS's own records.
fn by_its<E: Engine>(lpis: u32, per_device: u32) -> Result<u64> {
    let gic = ViaIts::<E>::new(&config(lpis, per_device), Arc::new(NoKick))?;
    let mut driver = gic.msi()?;
    // The guest's own memory is not counted.
    driver.prepare(lpis.div_ceil(per_device), per_device);
    bytes_of(|| {
        driver.build(lpis.div_ceil(per_device), per_device)?;
        Ok(driver)
    })
}

/// Measures every engine, with dense and with sparse mappings.
///
/// # Errors
/// If an engine fails.
pub fn all(peer: Option<&Peer>, quick: bool) -> Result<Vec<Memory>> {
    let sizes: &[u32] = if quick { &[64, 1024] } else { &[64, 1024, 8192, 65_536, 262_144] };
    let mut all = Vec::new();
    type Measure = fn(u32, u32) -> Result<u64>;
    let who: [(String, Measure); 4] = [
        (SHIPPED.to_owned(), by_host::<Shipped>),
        (format!("{SHIPPED}, mapped through its ITS"), by_its::<Shipped>),
        (LOCKED.to_owned(), by_host::<LockedVgic>),
        (format!("{LOCKED}, mapped through the ITS"), by_its::<LockedVgic>),
    ];
    for (who, measure) in who {
        for events_per_device in [1024, 4] {
            let measure = |&lpis: &u32| Ok((lpis, measure(lpis, events_per_device.min(lpis))?));
            let bytes = sizes.iter().map(measure).collect::<Result<BTreeMap<_, _>>>()?;
            all.push(Memory { who: who.clone(), events_per_device, bytes });
        }
    }
    if let Some(peer) = peer {
        let ask = |&lpis: &u32| Ok((lpis, peer.ask(&format!("memory {lpis}"))?));
        // More LPIs would take the peer minutes.
        let sizes = sizes.iter().filter(|&&lpis| lpis <= 65_536);
        let bytes = sizes.map(ask).collect::<Result<BTreeMap<_, _>>>()?;
        all.push(Memory { who: ARM_VGIC.to_owned(), events_per_device: 65_536, bytes });
    }
    Ok(all)
}
