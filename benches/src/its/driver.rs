//! A guest's ITS driver: the control side of a domain that sends commands through the queue in
//! guest memory.
//!
//! As in Linux, an LPI belongs to one event, collection n targets vCPU n, each operation ends with
//! a SYNC, and the driver polls GITS_CREADR until the ITS has performed all commands.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use vgic_core::engine::{Engine, Error, LpiConfig, LpiState, MsiControl, Part};
use vgic_core::gic::{Gic, GicBus};
use vgic_core::ids::{DeviceId, EventId, Intid, LPI_BASE, VcpuId};
use vgic_core::its::{CollectionId, Command, Fault, Its, ItsPort, ItsRoute, ItsTrace, RdBase};
use vgic_core::memory::GuestMemory;

use super::layout::{GITS, Layout, QUEUE_SIZE};
use super::ram::Ram;

pub(super) const CWRITER: u64 = GITS + 0x88;
const CREADR: u64 = GITS + 0x90;
/// The valid bit of a level 1 entry.
const VALID: u64 = 1 << 63;
const COMMAND_SIZE: u64 = 32;
/// Reads of GITS_CREADR before the driver reports that the ITS hangs.
const POLLS: u32 = 1_000_000;

/// The first command that failed since the last [`Watch::take`]. A guest does not see a failure
/// unless the ITS stalls.
#[derive(Default)]
pub(super) struct Watch(Mutex<Option<Fault>>);

impl Watch {
    fn take(&self) -> Option<Fault> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ItsTrace for Watch {
    fn command(&self, _its: usize, _command: Option<Command>, result: Result<(), Fault>) {
        if let Err(fault) = result {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
        }
    }
}

/// The driver of one ITS.
pub struct Driver<E: Engine> {
    bus: GicBus<E>,
    its: Its<E>,
    /// The host's control side, for operations that are not the guest's: reclaiming, and inspecting
    /// LPIs.
    host: E::Msi,
    ram: Arc<Ram>,
    layout: Layout,
    watch: Arc<Watch>,
    vcpus: u16,
    /// Offset in the queue of the next command.
    end: u64,
    devices: BTreeSet<DeviceId>,
    events: BTreeMap<(DeviceId, EventId), Intid>,
    lpis: BTreeMap<Intid, (DeviceId, EventId)>,
}

impl<E: Engine> Driver<E> {
    /// Creates the driver of an enabled ITS with an empty queue, and maps the collections.
    pub(super) fn new(
        gic: &Gic<E>,
        bus: GicBus<E>,
        ram: Arc<Ram>,
        layout: Layout,
        watch: Arc<Watch>,
        vcpus: u16,
    ) -> Result<Self, Error> {
        let its = gic.its(0).expect("it was set up");
        let host = gic.engine().msi()?;
        let (devices, events, lpis) = Default::default();
        let mut new =
            Self { bus, its, host, ram, layout, watch, vcpus, end: 0, devices, events, lpis };
        for vcpu in (0..vcpus).map(VcpuId) {
            let (collection, rdbase) = (collection(vcpu), processor(vcpu));
            new.give(Command::Mapc { collection, valid: true, rdbase }, vcpu)
                .expect("there is a redistributor for every vCPU");
        }
        Ok(new)
    }

    /// Queues a command and a SYNC, and waits until the ITS has performed them.
    fn give(&mut self, command: Command, at: VcpuId) -> Result<(), Fault> {
        self.put(command);
        self.put(Command::Sync(processor(at)));
        self.ring()
    }

    /// Writes a command into the queue.
    fn put(&mut self, command: Command) {
        let place = self.layout.queue + self.end;
        self.ram.write(place, &command.encode()).expect("the queue is in memory");
        self.end = (self.end + COMMAND_SIZE) % QUEUE_SIZE;
    }

    /// Publishes the queued commands to the ITS, and waits until it has performed them.
    fn ring(&mut self) -> Result<(), Fault> {
        self.bus.write(VcpuId(0), CWRITER, &self.end.to_le_bytes()).expect("a register");
        for _ in 0..POLLS {
            let mut creadr = [0; 8];
            self.bus.read(VcpuId(0), CREADR, &mut creadr).expect("a register");
            if u64::from_le_bytes(creadr) == self.end {
                return self.watch.take().map_or(Ok(()), Err);
            }
            thread::yield_now();
        }
        panic!("the ITS hangs");
    }

    /// Writes the guest's own tables for a later [`Driver::build`] with the same arguments.
    pub fn prepare(&mut self, devices: u32, events: u32) {
        for n in 0..devices * events {
            self.write_property(Intid(LPI_BASE + n), LpiConfig::enabled(0xa0));
        }
        for device in (0..devices).map(DeviceId) {
            if let Some((entry, page)) = self.layout.level1(device) {
                self.ram.store(entry, VALID | page);
            }
        }
        // Writes the whole queue, so that its memory is allocated.
        for at in (0..QUEUE_SIZE).step_by(8) {
            self.ram.store(self.layout.queue + at, 0);
        }
    }

    /// Maps devices and their events by MAPD and MAPTI, each event with its own LPI, spread over
    /// the vCPUs. Sends as many commands as the queue has room for, followed by one SYNC. The
    /// driver does not record these mappings.
    ///
    /// # Errors
    /// If a command has no effect.
    pub fn build(&mut self, devices: u32, events: u32) -> Result<(), Error> {
        // Leaves room for a MAPD, a MAPTI and a SYNC, and for one empty entry: a full queue looks
        // empty.
        let room = QUEUE_SIZE / COMMAND_SIZE - 4;
        let mut waiting = 0;
        for device in (0..devices).map(DeviceId) {
            let (size, itt) = (self.layout.event_bits - 1, self.layout.itt(device));
            self.put(Command::Mapd { device, valid: true, size, itt });
            waiting += 1;
            for event in 0..events {
                let n = device.0 * events + event;
                let (intid, vcpu) =
                    (Intid(LPI_BASE + n), VcpuId((n % u32::from(self.vcpus)) as u16));
                let collection = collection(vcpu);
                self.put(Command::Mapti { device, event: EventId(event), intid, collection });
                waiting += 1;
                if waiting >= room {
                    self.put(Command::Sync(processor(vcpu)));
                    self.ring().map_err(unexpected)?;
                    waiting = 0;
                }
            }
        }
        self.put(Command::Sync(processor(VcpuId(0))));
        self.ring().map_err(unexpected)
    }

    fn check_vcpu(&self, vcpu: VcpuId) -> Result<(), Error> {
        if vcpu.0 < self.vcpus { Ok(()) } else { Err(Error::NoSuchVcpu(vcpu)) }
    }

    /// Writes an LPI's byte in the configuration table.
    fn write_property(&self, intid: Intid, config: LpiConfig) {
        let byte = config.priority.byte() & 0xfc | u8::from(config.enabled);
        self.ram.write(self.layout.property(intid), &[byte]).expect("the table is in memory");
    }

    /// Maps a new device by MAPD; does nothing for a known one.
    fn add_device(&mut self, device: DeviceId) -> Result<(), Error> {
        if self.devices.contains(&device) {
            return Ok(());
        }
        if let Some((entry, page)) = self.layout.level1(device) {
            self.ram.store(entry, VALID | page);
        }
        let (size, itt) = (self.layout.event_bits - 1, self.layout.itt(device));
        match self.give(Command::Mapd { device, valid: true, size, itt }, VcpuId(0)) {
            Ok(()) => {
                self.devices.insert(device);
                Ok(())
            }
            Err(Fault::TooManyDevices) => Err(Error::TooManyDevices),
            Err(Fault::DeviceRange) => Err(Error::DeviceRange(device)),
            Err(fault) => unexpected(fault),
        }
    }

    fn event_of(&self, intid: Intid) -> Result<(DeviceId, EventId), Error> {
        self.lpis.get(&intid).copied().ok_or(Error::NotMapped)
    }

    fn is_mapped(&self, device: DeviceId, event: EventId) -> Result<(), Error> {
        let found = self.events.contains_key(&(device, event));
        if found { Ok(()) } else { Err(Error::NotMapped) }
    }

    /// Performs a command on a mapped event.
    fn command(&mut self, command: Command, at: VcpuId) -> Result<(), Error> {
        self.give(command, at).or_else(|fault| match fault {
            Fault::DeviceUnmapped | Fault::EventUnmapped => Err(Error::NotMapped),
            fault => unexpected(fault),
        })
    }
}

/// Panics: only a bug in the driver causes this fault.
fn unexpected<T>(fault: Fault) -> T {
    panic!("a command had no effect: {}", fault.name())
}

/// Returns the RDbase of a vCPU: its processor number, as GITS_TYPER.PTA is 0.
fn processor(vcpu: VcpuId) -> RdBase {
    RdBase(vcpu.0.into())
}

fn collection(vcpu: VcpuId) -> CollectionId {
    CollectionId(vcpu.0)
}

impl<E: Engine> MsiControl for Driver<E> {
    type Domain = ItsPort<E>;
    type Route = ItsRoute<E>;

    fn domain(&self) -> ItsPort<E> {
        self.its.port()
    }

    fn map(
        &mut self,
        device: DeviceId,
        event: EventId,
        intid: Intid,
        target: VcpuId,
        config: LpiConfig,
    ) -> Result<(), Error> {
        self.check_vcpu(target)?;
        if !intid.is_lpi() || intid.0 >> self.layout.id_bits != 0 {
            return Err(Error::IntidRange(intid));
        }
        if self.events.contains_key(&(device, event)) || self.lpis.contains_key(&intid) {
            return Err(Error::EventMapped);
        }
        self.add_device(device)?;
        self.write_property(intid, config);
        let collection = collection(target);
        match self.give(Command::Mapti { device, event, intid, collection }, target) {
            Ok(()) => {
                self.events.insert((device, event), intid);
                self.lpis.insert(intid, (device, event));
                Ok(())
            }
            Err(Fault::TooManyLpis) => Err(Error::TooManyLpis),
            Err(Fault::TooManyBytes) => Err(Error::TooManyBytes),
            Err(Fault::TooManyEvents) => Err(Error::TooManyEvents),
            Err(Fault::TooManyDevices) => Err(Error::TooManyDevices),
            Err(Fault::EventRange) => Err(Error::EventRange(event)),
            Err(Fault::IntidRange) => Err(Error::IntidRange(intid)),
            Err(fault) => unexpected(fault),
        }
    }

    fn unmap(&mut self, device: DeviceId, event: EventId) -> Result<(), Error> {
        let intid = self.events.remove(&(device, event)).ok_or(Error::NotMapped)?;
        self.lpis.remove(&intid);
        self.command(Command::Discard(device, event), VcpuId(0))
    }

    /// Fails: an LPI belongs to one event in this driver.
    fn share(&mut self, _: DeviceId, _: EventId, _: Intid) -> Result<(), Error> {
        Err(Error::EventMapped)
    }

    /// Unmaps the event: its LPI has no other event that would keep it mapped.
    fn detach(&mut self, device: DeviceId, event: EventId) -> Result<(), Error> {
        self.unmap(device, event)
    }

    fn unmap_device(&mut self, device: DeviceId) -> usize {
        if !self.devices.remove(&device) {
            return 0;
        }
        let (first, last) = ((device, EventId(0)), (device, EventId(u32::MAX)));
        let events: Vec<_> = self.events.range(first..=last).map(|(&event, _)| event).collect();
        for event in &events {
            let intid = self.events.remove(event);
            intid.map(|intid| self.lpis.remove(&intid));
        }
        self.give(Command::Mapd { device, valid: false, size: 0, itt: 0 }, VcpuId(0))
            .unwrap_or_else(unexpected);
        events.len()
    }

    fn retarget(&mut self, device: DeviceId, event: EventId, target: VcpuId) -> Result<(), Error> {
        self.check_vcpu(target)?;
        self.is_mapped(device, event)?;
        let collection = collection(target);
        self.command(Command::Movi { device, event, collection }, target)
    }

    /// Moves all LPIs with one command.
    fn move_some(&mut self, from: VcpuId, to: VcpuId, _: Intid, _: u32) -> Result<Part, Error> {
        self.check_vcpu(from)?;
        self.check_vcpu(to)?;
        let mut part = Part::default();
        self.host.lpis_from(Intid(LPI_BASE), &mut |lpi| {
            part.looked += 1;
            part.changed += u32::from(lpi.target == from && from != to);
            ControlFlow::Continue(())
        });
        self.command(Command::Movall { from: processor(from), to: processor(to) }, to)?;
        Ok(part)
    }

    fn set_config(&mut self, intid: Intid, config: LpiConfig) -> Result<(), Error> {
        let (device, event) = self.event_of(intid)?;
        self.write_property(intid, config);
        self.command(Command::Inv(device, event), VcpuId(0))
    }

    fn target_of(&self, intid: Intid) -> Option<VcpuId> {
        self.host.target_of(intid)
    }

    fn set_pending(&mut self, intid: Intid, pending: bool) -> Result<(), Error> {
        let (device, event) = self.event_of(intid)?;
        if pending {
            self.command(Command::Int(device, event), VcpuId(0))
        } else {
            self.clear(device, event)
        }
    }

    fn silence(&mut self, intid: Intid) -> bool {
        self.host.silence(intid)
    }

    fn lpis_from(&self, from: Intid, f: &mut dyn FnMut(LpiState) -> ControlFlow<()>) {
        self.host.lpis_from(from, f);
    }

    fn some_lpis(&self, from: Intid, most: u32, f: &mut dyn FnMut(LpiState)) -> Part {
        self.host.some_lpis(from, most, f)
    }

    fn clear(&mut self, device: DeviceId, event: EventId) -> Result<(), Error> {
        self.is_mapped(device, event)?;
        self.command(Command::Clear(device, event), VcpuId(0))
    }

    fn route(&mut self, device: DeviceId, event: EventId) -> Result<ItsRoute<E>, Error> {
        self.its.route(device, event)
    }

    fn check_bytes(&mut self, bytes: usize) -> Result<(), Error> {
        self.host.check_bytes(bytes)
    }

    fn count_bytes(&mut self, more: usize, less: usize) {
        self.host.count_bytes(more, less);
    }

    fn collect(&mut self) {
        self.host.collect();
    }
}
