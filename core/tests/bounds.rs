//! A mapping that meets a bound while a retired object takes up room fails with an error that marks
//! this as temporary.
#![allow(clippy::disallowed_types)]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::reclaim::{Epoch, Reclaim, Slots};
use vgic_core::{Msi, MsiDomain, MsiRoute, Vgic};

const KEPT: DeviceId = DeviceId(1);
const FILLED: DeviceId = DeviceId(2);
const A: VcpuId = VcpuId(0);

type Work = Box<dyn FnOnce()>;

thread_local! {
    static WORK: RefCell<Option<Work>> = const { RefCell::new(None) };
    static MSI: RefCell<Option<Msi>> = const { RefCell::new(None) };
}

/// Runs `WORK` in a kick. The injector that kicks is pinned until that is done, so that nothing is
/// freed.
struct Works;

impl Kick for Works {
    fn kick(&self, _: VcpuId) {
        if let Some(work) = WORK.take() {
            work();
        }
    }
}

fn map(msi: &mut Msi, device: DeviceId, event: u32, lpi: u32) -> Result<(), Error> {
    msi.map(device, EventId(event), Intid(LPI_BASE + lpi), A, LpiConfig::enabled(0xa0))
}

/// Maps events until one is refused. Returns the number of mapped events.
fn fill(msi: &mut Msi, first_lpi: u32) -> u32 {
    let refused = (0..).find_map(|n| map(msi, FILLED, n, first_lpi + n).err().map(|e| (n, e)));
    let (n, error) = refused.unwrap();
    assert_eq!(error, Error::TooManyBytes, "nothing is dead");
    n
}

fn dead_makes_room_beside(routes: u32) {
    let bytes = Config { lpis: 1 << 13, event_bits: 12, device_bits: 8, ..Config::default() };
    let config = Config { max_bytes: 300 * 128 + 8 * bytes.bytes_of_one(), ..bytes };
    let vgic: Vgic = Vgic::new(&config, Arc::new(Works)).unwrap();
    let (mut msi, injector) = (vgic.msi().unwrap(), vgic.injector().unwrap());
    let (mut vcpu, mut lrs) = (vgic.vcpu(A).unwrap(), CpuInterface::new(4).unwrap());
    vcpu.open();
    map(&mut msi, DeviceId(0), 0, 0).unwrap();
    // These LPIs are mapped, and kept by routes.
    let route = |n| -> MsiRoute {
        map(&mut msi, KEPT, n, 1 + n).unwrap();
        let route = msi.route(KEPT, EventId(n)).unwrap();
        assert_eq!(injector.inject_route(&route), Injected::Pending);
        route
    };
    let routes: Vec<_> = (0..routes).map(route).collect();
    let mapped = fill(&mut msi, 1 + routes.len() as u32);
    assert!(mapped > 100, "{mapped} events");

    // The mailbox is empty, so that the next injection kicks.
    vcpu.flush(&mut lrs);
    vcpu.fold(&mut lrs);
    let domain = msi.domain();
    let gone = (0..100).map(EventId);
    WORK.set(Some(Box::new(move || {
        gone.for_each(|event| msi.unmap(FILLED, event).unwrap());
        assert_eq!(map(&mut msi, FILLED, 0, 5000), Err(Error::TooMuchGarbage), "it passes");
        assert_eq!(msi.check_bytes(config.bytes_of_one() as usize), Err(Error::TooMuchGarbage));
        MSI.set(Some(msi));
    })));
    assert_eq!(injector.inject(&domain, DeviceId(0), EventId(0)), Injected::Pending);
    assert!(WORK.take().is_none(), "the host was called");
    let mut msi = MSI.take().unwrap();
    assert_eq!(map(&mut msi, FILLED, 0, 5000), Ok(()), "it has passed");
}

#[test]
fn the_dead_make_room() {
    dead_makes_room_beside(0);
}

#[test]
fn the_dead_make_room_beside_what_routes_keep() {
    dead_makes_room_beside(150);
}

/// Once no thread is pinned any more, the objects that were unmapped while an injector was pinned
/// make room at once, for every kind of request.
fn room_when_nobody_is_pinned<R: Reclaim>(
    config: Config,
    events: u32,
    ask: fn(&mut Msi<R>, &Config) -> Result<(), Error>,
) where
    Vgic<R>: Engine<Msi = Msi<R>>,
    <Vgic<R> as Engine>::Injector: Injector<Domain = MsiDomain<R>>,
{
    let vgic: Vgic<R> = Vgic::new(&config, Arc::new(Works)).unwrap();
    let (mut msi, injector) = (vgic.msi().unwrap(), vgic.injector().unwrap());
    let mut vcpu = vgic.vcpu(A).unwrap();
    vcpu.open();
    let map = |msi: &mut Msi<R>, device, event: u32| {
        let intid = Intid(LPI_BASE + event);
        msi.map(device, EventId(event), intid, A, LpiConfig::enabled(0xa0))
    };
    map(&mut msi, KEPT, 0).unwrap();
    let mapped = (1..events).take_while(|&n| map(&mut msi, FILLED, n).is_ok()).count();
    let (domain, back) = (msi.domain(), Rc::new(RefCell::new(None)));
    WORK.set(Some(Box::new({
        let (back, config) = (back.clone(), config.clone());
        move || {
            assert_eq!(msi.unmap_device(FILLED), mapped);
            assert_eq!(ask(&mut msi, &config), Err(Error::TooMuchGarbage), "one is pinned");
            *back.borrow_mut() = Some(msi);
        }
    })));
    assert_eq!(injector.inject(&domain, KEPT, EventId(0)), Injected::Pending);
    let mut msi = back.take().expect("the host was called");
    assert_eq!(ask(&mut msi, &config), Ok(()));
}

#[test]
fn a_route_waits_for_what_is_dead() {
    let config = Config { max_garbage: 60, ..Config::default() };
    fn ask<R: Reclaim>(msi: &mut Msi<R>, _: &Config) -> Result<(), Error>
    where
        Msi<R>: MsiControl,
    {
        msi.route(DeviceId(3), EventId(0)).map(drop)
    }
    room_when_nobody_is_pinned::<Slots>(config.clone(), 100, ask);
    room_when_nobody_is_pinned::<Epoch>(config, 100, ask);
}

#[test]
fn bytes_beside_the_mappings_wait_for_what_is_dead() {
    let one = Config::default().bytes_of_one();
    let config = Config { max_bytes: 2 * one + 300 * 128, ..Config::default() };
    fn ask<R: Reclaim>(msi: &mut Msi<R>, config: &Config) -> Result<(), Error>
    where
        Msi<R>: MsiControl,
    {
        msi.check_bytes(config.bytes_of_one() as usize)
    }
    room_when_nobody_is_pinned::<Slots>(config.clone(), 1000, ask);
    room_when_nobody_is_pinned::<Epoch>(config, 1000, ask);
}
