//! An engine that misbehaves on purpose: the storm must notice.

#![allow(dead_code, unused_imports)] // each test program uses a part

mod forgetful;

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use vgic_core::engine::{
    Config, Engine, Error, Gates, Injected, Injector, Kick, Usage, Wired, WiredConfig,
};
use vgic_core::ids::{DeviceId, EventId, Intid, VcpuId};

pub(crate) use forgetful::Forgetful;

/// A fault of an injector.
pub(crate) trait Fault: Clone + Send + Sync + 'static {
    /// Returns the result that replaces injection `n` (from 0) of an injector, or `None` for no
    /// fault.
    fn strike(n: u64) -> Option<Injected>;
}

/// Engine `E` with fault `F`.
#[derive(Clone)]
pub(crate) struct Faulty<E, F>(E, PhantomData<F>);

/// An injector with fault `F`.
pub(crate) struct FaultyInjector<I, F> {
    inner: I,
    count: Cell<u64>,
    fault: PhantomData<F>,
}

impl<E: Engine, F: Fault> Engine for Faulty<E, F> {
    type Vcpu = E::Vcpu;
    type Msi = E::Msi;
    type Domain = E::Domain;
    type Route = E::Route;
    type Injector = FaultyInjector<E::Injector, F>;

    const NAME: &'static str = E::NAME;

    fn new(config: &Config, kick: Arc<dyn Kick>) -> Result<Self, Error> {
        E::new(config, kick).map(|engine| Self(engine, PhantomData))
    }

    fn vcpu(&self, vcpu: VcpuId) -> Result<E::Vcpu, Error> {
        self.0.vcpu(vcpu)
    }

    fn msi(&self) -> Result<E::Msi, Error> {
        self.0.msi()
    }

    fn injector(&self) -> Result<Self::Injector, Error> {
        let inner = self.0.injector()?;
        Ok(FaultyInjector { inner, count: Cell::new(0), fault: PhantomData })
    }

    fn usage(&self) -> Usage {
        self.0.usage()
    }
}

impl<I: Injector, F: Fault> FaultyInjector<I, F> {
    fn next(&self) -> Option<Injected> {
        let n = self.count.get();
        self.count.set(n + 1);
        F::strike(n)
    }
}

/// Generates methods that forward to the inner injector.
macro_rules! delegate {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> Result<$result, Error> {
            self.inner.$name($($arg),*)
        })*
    };
}

impl<I: Injector, F: Fault> Injector for FaultyInjector<I, F> {
    type Domain = I::Domain;
    type Route = I::Route;

    fn inject(&self, domain: &I::Domain, device: DeviceId, event: EventId) -> Injected {
        self.next().unwrap_or_else(|| self.inner.inject(domain, device, event))
    }

    fn inject_route(&self, route: &I::Route) -> Injected {
        self.next().unwrap_or_else(|| self.inner.inject_route(route))
    }

    fn update(
        &self,
        wired: Wired,
        f: impl Fn(WiredConfig) -> WiredConfig,
    ) -> Result<WiredConfig, Error> {
        self.inner.update(wired, f)
    }

    fn update_gates(&self, vcpu: VcpuId, f: impl Fn(Gates) -> Gates) -> Result<(), Error> {
        self.inner.update_gates(vcpu, f)
    }

    delegate! {
        set_level(wired: Wired, high: bool) -> ();
        pulse(wired: Wired) -> Injected;
        clear_pulse(wired: Wired) -> ();
        configure(wired: Wired, config: WiredConfig) -> ();
        config(wired: Wired) -> WiredConfig;
        line(wired: Wired) -> bool;
        is_pending(wired: Wired) -> bool;
        is_active(wired: Wired) -> bool;
        set_active(wired: Wired, active: bool) -> ();
        pulse_from(vcpu: VcpuId, sgi: Intid, senders: u8) -> ();
        clear_from(vcpu: VcpuId, sgi: Intid, senders: u8) -> ();
        senders(vcpu: VcpuId, sgi: Intid) -> u8;
        map_phys(wired: Wired, pintid: u16) -> ();
        unmap_phys(wired: Wired) -> ();
        phys(wired: Wired) -> Option<u16>;
    }
}
