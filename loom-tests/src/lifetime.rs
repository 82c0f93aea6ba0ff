//! Helpers for the models of lifetimes: VMs of a few sizes, several MSI domains, and a vCPU with
//! its guest.
//!
//! The model's main thread makes and drops all handles outside the explored part. Threads take the
//! handles, and give them back when they are joined.

use std::sync::Arc;

use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::lr::{ListRegisters, LrState};
use vgic_core::reclaim::Slots;
use vgic_core::{MsiDomain, MsiRoute, VgicInjector};

use crate::{Guest, NoKick, VcpuInterface, Vgic};

/// The control side of an MSI domain.
pub type Msi = vgic_core::Msi<Slots>;

/// The first vCPU.
pub const A: VcpuId = VcpuId(0);
/// The second vCPU.
pub const B: VcpuId = VcpuId(1);
/// The device of most models.
pub const DEV: DeviceId = DeviceId(0);
/// The event of most models.
pub const EV: EventId = EventId(0);
/// The LPI of most models.
pub const LPI: Intid = Intid(LPI_BASE);
/// An enabled LPI.
pub const ON: LpiConfig = LpiConfig::enabled(0xa0);

/// A VM. Every other handle must be gone when [`end`](Self::end) is called.
pub struct Vm(Vgic);

impl Vm {
    /// Creates a VM with trees of one level. `participants` counts all handles except the one that
    /// `end` uses. There should be no more participants than the model uses, because a thread that
    /// asks whether a grace period is over looks at each of them.
    pub fn new(vcpus: u16, participants: u16) -> Self {
        Self::with(Config { participants, ..Self::shape(vcpus) })
    }

    /// The configuration that `new` uses, with three participants.
    pub fn shape(vcpus: u16) -> Config {
        let participants = 3;
        Config {
            vcpus,
            participants,
            spis: 0,
            lpis: 2,
            device_bits: 1,
            event_bits: 1,
            ..Config::default()
        }
    }

    /// Creates a VM of another shape.
    pub fn with(config: Config) -> Self {
        let config = Config { participants: config.participants + 1, ..config };
        Self(Vgic::new(&config, Arc::new(NoKick)).unwrap())
    }

    /// Creates a domain.
    pub fn msi(&self) -> Msi {
        self.0.msi().unwrap()
    }

    /// Creates a domain with one event mapped.
    pub fn mapped(&self) -> Msi {
        let mut msi = self.msi();
        map(&mut msi, EV, LPI);
        msi
    }

    /// Creates an open vCPU.
    pub fn cpu(&self, id: VcpuId) -> Cpu {
        let mut vcpu = self.0.vcpu(id).unwrap();
        vcpu.open();
        Cpu { vcpu, guest: Guest::default() }
    }

    /// Creates an injector.
    pub fn injector(&self) -> VgicInjector<Slots> {
        self.0.injector().unwrap()
    }

    /// Creates a handle with which a thread raises an event of a domain by looking it up.
    pub fn source(&self, msi: &Msi, event: EventId) -> Source {
        Source { injector: self.injector(), way: Way::LookUp(msi.domain(), event) }
    }

    /// Creates a handle with which a thread raises an event of a domain through a resolved route.
    pub fn route(&self, msi: &mut Msi, event: EventId) -> Source {
        let route = msi.route(DEV, event).unwrap();
        Source { injector: self.injector(), way: Way::Route(route) }
    }

    /// The numbers of objects that exist.
    pub fn usage(&self) -> Usage {
        self.0.usage()
    }

    /// Ends the model, when every other handle is gone: no object may be left.
    pub fn end(self) {
        crate::end(self.0);
    }
}

/// Maps an event of the device to an LPI for the first vCPU.
pub fn map(msi: &mut Msi, event: EventId, intid: Intid) {
    msi.map(DEV, event, intid, A, ON).unwrap();
}

enum Way {
    LookUp(MsiDomain<Slots>, EventId),
    Route(MsiRoute<Slots>),
}

/// The handle with which one thread raises one event.
pub struct Source {
    injector: VgicInjector<Slots>,
    way: Way,
}

impl Source {
    /// Raises the event.
    pub fn fire(&self) -> Injected {
        match &self.way {
            Way::LookUp(domain, event) => self.injector.inject(domain, DEV, *event),
            Way::Route(route) => self.injector.inject_route(route),
        }
    }
}

/// A vCPU with its guest.
pub struct Cpu {
    /// The vCPU.
    pub vcpu: VcpuInterface,
    guest: Guest,
}

impl Cpu {
    /// Enters the guest. Returns how many interrupts are pending in the list registers.
    pub fn enter(&mut self) -> usize {
        self.vcpu.flush(&mut self.guest).pending
    }

    /// The guest acknowledges and ends every pending interrupt. Returns how many there were.
    pub fn serve(&mut self) -> usize {
        self.guest.serve()
    }

    /// The guest moves every list register in the state `from` to the state `to`. Returns how many
    /// there were.
    fn step(&mut self, from: LrState, to: LrState) -> usize {
        let mut n = 0;
        for i in 0..self.guest.count() {
            let lr = self.guest.read(i);
            if lr.state() == from {
                self.guest.write(i, lr.with_state(to));
                n += 1;
            }
        }
        n
    }

    /// The guest acknowledges every pending interrupt. Returns how many there were.
    pub fn acknowledge(&mut self) -> usize {
        self.step(LrState::Pending, LrState::Active)
    }

    /// The guest ends the interrupts that it has acknowledged. They are LPIs: an exit since the
    /// acknowledge has taken them out of their list registers.
    pub fn eoi(&mut self) {
        self.step(LrState::Active, LrState::Invalid);
    }

    /// Powers the vCPU off.
    pub fn close(&mut self) {
        self.vcpu.close(&mut self.guest);
    }

    /// Exits the guest.
    pub fn leave(&mut self) {
        self.vcpu.fold(&mut self.guest);
    }

    /// Enters, lets the guest take every interrupt in the list registers, and exits. Returns how
    /// many interrupts it took.
    pub fn run(&mut self) -> usize {
        self.enter();
        let taken = self.serve();
        self.leave();
        taken
    }

    /// Runs until no interrupt and no mail is left. Returns how many interrupts the guest took.
    pub fn settle(&mut self) -> usize {
        let mut all = 0;
        // Bounded, so that a seeded bug ends in a failure.
        for _ in 0..8 {
            let taken = self.run();
            all += taken;
            if taken == 0 && !self.vcpu.has_mail() {
                return all;
            }
        }
        panic!("a vCPU without an end to its mail");
    }
}
