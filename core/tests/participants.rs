//! The largest machines that set-up accepts can be attached: all vCPUs, ITSs, and the host's
//! handles.

use std::sync::Arc;

use vgic_core::Vgic;
use vgic_core::engine::{Config, Engine, Error, Kick};
use vgic_core::gic::{Affinity, Gic, GicBus, GicCpu, Model, Setup, SetupError};
use vgic_core::ids::{MAX_VCPUS, VcpuId};
use vgic_core::its::ItsConfig;
use vgic_core::memory::{GuestMemory, MemoryError};

struct NoKick;
impl Kick for NoKick {
    fn kick(&self, _: VcpuId) {}
}

struct NoMemory;
impl GuestMemory for NoMemory {
    fn read(&self, address: u64, _: &mut [u8]) -> Result<(), MemoryError> {
        Err(MemoryError { address })
    }
    fn write(&self, address: u64, _: &[u8]) -> Result<(), MemoryError> {
        Err(MemoryError { address })
    }
}

fn setup(vcpus: u16, itss: u64, handles: u16) -> Setup {
    let mut setup = Setup::new(48);
    setup.create(Model::V3).unwrap();
    setup.set_bounds(Config { participants: handles, ..Config::default() });
    (0..vcpus).for_each(|n| _ = setup.add_vcpu(Affinity(n.into())).unwrap());
    setup.set_distributor(0x0800_0000).unwrap();
    setup.add_redistributors(0x1_0000_0000, vcpus.into()).unwrap();
    setup.set_memory(Arc::new(NoMemory)).unwrap();
    for n in 0..itss {
        setup.add_its(ItsConfig::at(0x10_0000_0000 + n * 0x2_0000)).unwrap();
    }
    setup
}

fn attached<E: Engine>() {
    for (itss, handles) in [(0, 1), (4, 300)] {
        let gic: Gic<E> = setup(MAX_VCPUS, itss, handles).init(Arc::new(NoKick)).unwrap();
        let cpus: Vec<GicCpu<E>> = (0..MAX_VCPUS).map(|n| gic.cpu(VcpuId(n)).unwrap()).collect();
        let buses: Vec<GicBus<E>> = (0..handles).map(|_| gic.bus().unwrap()).collect();
        assert_eq!((cpus.len(), buses.len()), (512, handles.into()));
    }
}

#[test]
fn the_largest_machine_can_be_attached() {
    attached::<Vgic>();
}

#[cfg(feature = "locked")]
#[test]
fn the_largest_machine_can_be_attached_locked() {
    attached::<vgic_core::locked::LockedVgic>();
}

#[test]
fn bounds_are_bounds() {
    let gic: Gic<Vgic> = setup(2, 1, 3).init(Arc::new(NoKick)).unwrap();
    let _cpus = [0, 1].map(|n| gic.cpu(VcpuId(n)).unwrap());
    let buses: Vec<_> = (0..8).map_while(|_| gic.bus().ok()).collect();

    assert_eq!(buses.len(), 3);
    assert_eq!(gic.bus().err(), Some(Error::TooManyParticipants));
}

#[test]
fn what_cannot_be_is_refused_at_set_up() {
    let refused = setup(2, 1, u16::MAX).init::<Vgic>(Arc::new(NoKick)).err();
    let all = 2 * 2 + 2 + 1 + usize::from(u16::MAX);
    assert_eq!(refused, Some(SetupError::Participants(all)));
    assert!(refused.unwrap().to_string().contains("65542"));
}
