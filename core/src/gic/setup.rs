//! Builds an interrupt controller from the shape of a machine.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Affinity, Frames, Gic, MsiFrame, Place, SetupError, Shared};
use crate::arch::ids::{PRIVATE_INTIDS, VcpuId};
use crate::arch::lr::MAX_LRS;
use crate::engine::{Config, Engine, Gates, Injector, Kick};
use crate::frames::gicv2::{dist::DistV2, v2m::V2m};
use crate::frames::gicv3::{dist::DistV3, redist::Redist};
use crate::frames::its::unit::Unit;
use crate::frames::its::{FRAME, ItsConfig, ItsTrace};
use crate::frames::lpi_tables::LpiControl;
use crate::frames::machine::Machine;
use crate::frames::regions::Regions;
use crate::host::memory::GuestMemory;

/// The architecture version that the guest sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Model {
    /// GICv2 (IHI 0048B), with up to 8 vCPUs.
    V2 = 5,
    /// GICv3 (IHI 0069), without security states and without legacy operation.
    V3 = 7,
}

impl TryFrom<u32> for Model {
    type Error = SetupError;

    /// Converts Linux's `KVM_DEV_TYPE_ARM_VGIC_V2` or `KVM_DEV_TYPE_ARM_VGIC_V3`.
    fn try_from(device_type: u32) -> Result<Self, SetupError> {
        match device_type {
            5 => Ok(Self::V2),
            7 => Ok(Self::V3),
            other => Err(SetupError::UnknownType(other)),
        }
    }
}

/// Size and alignment of GICv2's distributor and of a GICv2m frame, and the alignment of GICC.
const V2_FRAME: (u64, u64) = (0x1000, 0x1000);
/// Size of GICC. Its second page holds GICC_DIR (IHI 0048B, 4.4.15).
const V2_CPU_SIZE: u64 = 0x2000;
/// Size of a GICv3 frame. RD_base and SGI_base are two of them (IHI 0069, 12.10).
const V3_FRAME: u64 = 0x1_0000;
/// Size of the two frames of a redistributor.
const REDIST_SIZE: u64 = 2 * V3_FRAME;

/// The shape of a machine, from which [`Setup::init`] makes a [`Gic`].
#[derive(Clone)]
pub struct Setup {
    model: Option<Model>,
    config: Config,
    lrs: usize,
    affinities: Vec<Affinity>,
    regions: Regions<Place>,
    dist: Option<u64>,
    cpu: Option<u64>,
    v2m: Vec<MsiFrame>,
    memory: Option<Arc<dyn GuestMemory>>,
    its: Vec<ItsConfig>,
    its_trace: Option<Arc<dyn ItsTrace>>,
    /// Addresses of the redistributors that there is room for, and the numbers of those that end a
    /// region.
    redists: Vec<u64>,
    last_redists: Vec<u32>,
    firmware: bool,
}

impl Setup {
    /// An empty machine in an address space of `ipa_bits` bits (1 to 63).
    pub fn new(ipa_bits: u32) -> Self {
        Self {
            model: None,
            config: Config::default(),
            lrs: MAX_LRS,
            affinities: Vec::new(),
            regions: Regions::new(ipa_bits),
            dist: None,
            cpu: None,
            v2m: Vec::new(),
            memory: None,
            its: Vec::new(),
            its_trace: None,
            redists: Vec::new(),
            last_redists: Vec::new(),
            firmware: false,
        }
    }

    /// Chooses the model. Call this before all other methods that depend on the model.
    ///
    /// # Errors
    /// [`SetupError::AlreadyCreated`], [`SetupError::VcpusCreated`].
    pub fn create(&mut self, model: Model) -> Result<(), SetupError> {
        if self.model.is_some() {
            return Err(SetupError::AlreadyCreated);
        }
        if !self.affinities.is_empty() {
            return Err(SetupError::VcpusCreated);
        }
        self.model = Some(model);
        Ok(())
    }

    fn model(&self, only: Model) -> Result<(), SetupError> {
        match self.model {
            None => Err(SetupError::NotCreated),
            Some(model) if model == only => Ok(()),
            Some(_) => Err(SetupError::WrongModel),
        }
    }

    /// Sets the bounds of the engine.
    ///
    /// The numbers of vCPUs and of interrupts other than LPIs are not taken from `bounds`: they
    /// have methods of their own. [`Config::participants`] counts only the host's handles here:
    /// each [`Gic::bus`], and each injector or MSI domain of [`Gic::engine`]. The handles that the
    /// machine itself needs are added to that.
    pub fn set_bounds(&mut self, bounds: Config) {
        let Config { vcpus, spis, espis, eppis, .. } = self.config;
        self.config = Config { vcpus, spis, espis, eppis, ..bounds };
    }

    /// Sets the number of extended PPIs of each vCPU (0, 32 or 64) and of extended SPIs (a multiple
    /// of 32, up to 1024). GICv3 only (IHI 0069, 2.2).
    ///
    /// # Errors
    /// [`SetupError::NotCreated`], [`SetupError::WrongModel`], [`SetupError::Value`].
    pub fn set_extended(&mut self, eppis: u16, espis: u16) -> Result<(), SetupError> {
        self.model(Model::V3)?;
        if eppis > 64 || espis > 1024 || !(eppis | espis).is_multiple_of(32) {
            return Err(SetupError::Value("number of extended interrupts"));
        }
        (self.config.eppis, self.config.espis) = (eppis, espis);
        Ok(())
    }

    /// Sets the number of SPIs: a multiple of 32 up to 960, or 988.
    ///
    /// # Errors
    /// [`SetupError::Value`].
    pub fn set_spis(&mut self, spis: u16) -> Result<(), SetupError> {
        if spis != 988 && (spis > 960 || !spis.is_multiple_of(32)) {
            return Err(SetupError::Value("number of SPIs"));
        }
        self.config.spis = spis;
        Ok(())
    }

    /// Sets the number of list registers of the software CPU interfaces: 1 to 16. The default is
    /// 16.
    ///
    /// # Errors
    /// [`SetupError::Value`].
    pub fn set_lrs(&mut self, lrs: usize) -> Result<(), SetupError> {
        if lrs == 0 || lrs > MAX_LRS {
            return Err(SetupError::Value("number of list registers"));
        }
        self.lrs = lrs;
        Ok(())
    }

    /// Adds a vCPU and returns its number. Numbers count from 0.
    ///
    /// # Errors
    /// [`SetupError::NotCreated`], [`SetupError::TooManyVcpus`], [`SetupError::AffinityTaken`].
    pub fn add_vcpu(&mut self, affinity: Affinity) -> Result<VcpuId, SetupError> {
        let most = match self.model.ok_or(SetupError::NotCreated)? {
            Model::V2 => 8,
            Model::V3 => crate::arch::ids::MAX_VCPUS,
        };
        let id = self.affinities.len() as u16;
        if id == most {
            return Err(SetupError::TooManyVcpus(most));
        }
        if self.affinities.contains(&affinity) {
            return Err(SetupError::AffinityTaken(affinity));
        }
        self.affinities.push(affinity);
        Ok(VcpuId(id))
    }

    /// Sets the address of the distributor, which takes 4 KiB (GICv2) or 64 KiB (GICv3).
    ///
    /// # Errors
    /// [`SetupError::NotCreated`], [`SetupError::AddressSet`]. If the frame does not fit there:
    /// [`SetupError::OutOfRange`], [`SetupError::Misaligned`], [`SetupError::Overlap`].
    pub fn set_distributor(&mut self, base: u64) -> Result<(), SetupError> {
        let (size, align) = match self.model.ok_or(SetupError::NotCreated)? {
            Model::V2 => V2_FRAME,
            Model::V3 => (V3_FRAME, V3_FRAME),
        };
        if self.dist.is_some() {
            return Err(SetupError::AddressSet);
        }
        self.regions.insert(base, size, align, Place::Dist)?;
        self.dist = Some(base);
        Ok(())
    }

    /// Sets the address of GICv2's CPU interface, which takes 8 KiB.
    ///
    /// # Errors
    /// [`SetupError::NotCreated`], [`SetupError::WrongModel`], [`SetupError::AddressSet`]. If the
    /// frame does not fit there: [`SetupError::OutOfRange`], [`SetupError::Misaligned`],
    /// [`SetupError::Overlap`].
    pub fn set_cpu_interface(&mut self, base: u64) -> Result<(), SetupError> {
        self.model(Model::V2)?;
        if self.cpu.is_some() {
            return Err(SetupError::AddressSet);
        }
        self.regions.insert(base, V2_CPU_SIZE, V2_FRAME.1, Place::Cpu)?;
        self.cpu = Some(base);
        Ok(())
    }

    /// Adds a GICv2m frame. Set the number of SPIs ([`Setup::set_spis`]) before.
    ///
    /// # Errors
    /// [`SetupError::NotCreated`], [`SetupError::WrongModel`]. [`SetupError::Value`] if the frame's
    /// SPIs do not exist or belong to another frame. If the frame does not fit there:
    /// [`SetupError::OutOfRange`], [`SetupError::Misaligned`], [`SetupError::Overlap`].
    pub fn add_msi_frame(&mut self, frame: MsiFrame) -> Result<(), SetupError> {
        self.model(Model::V2)?;
        let spis = |f: &MsiFrame| u32::from(f.first)..u32::from(f.first) + u32::from(f.count);
        let new = spis(&frame);
        let exist = frame.count > 0
            && new.start >= PRIVATE_INTIDS
            && new.end <= PRIVATE_INTIDS + u32::from(self.config.spis);
        let taken = |other: &MsiFrame| spis(other).start < new.end && new.start < spis(other).end;
        if !exist || self.v2m.iter().any(taken) {
            return Err(SetupError::Value("SPIs of the MSI frame"));
        }
        let number = self.v2m.len() as u16;
        self.regions.insert(frame.base, V2_FRAME.0, V2_FRAME.1, Place::V2m(number))?;
        self.v2m.push(frame);
        Ok(())
    }

    /// Sets the guest's memory, where the LPI tables are. This gives the machine LPIs, as many as
    /// the [bounds](Setup::set_bounds) say.
    ///
    /// Without an ITS, the guest makes LPIs pending through GICR_SETLPIR (IHI 0069, 12.11).
    ///
    /// # Errors
    /// [`SetupError::NotCreated`], [`SetupError::WrongModel`].
    pub fn set_memory(&mut self, memory: Arc<dyn GuestMemory>) -> Result<(), SetupError> {
        self.model(Model::V3)?;
        self.memory = Some(memory);
        Ok(())
    }

    /// Adds a region of redistributors, 128 KiB each, for `count` more vCPUs.
    ///
    /// # Errors
    /// [`SetupError::NotCreated`], [`SetupError::WrongModel`]. [`SetupError::Value`] if `count` is
    /// 0, or if the total exceeds the maximum number of vCPUs. If a frame does not fit there:
    /// [`SetupError::OutOfRange`], [`SetupError::Misaligned`], [`SetupError::Overlap`].
    pub fn add_redistributors(&mut self, base: u64, count: u32) -> Result<(), SetupError> {
        self.model(Model::V3)?;
        let first = self.redists.len() as u32;
        let end = first.saturating_add(count);
        if count == 0 || end > crate::arch::ids::MAX_VCPUS.into() {
            return Err(SetupError::Value("number of redistributors"));
        }
        // Work on copies: either all frames are added or none.
        let (mut regions, mut redists) = (self.regions.clone(), self.redists.clone());
        for (n, vcpu) in (first..end).enumerate() {
            let base = (n as u64).checked_mul(REDIST_SIZE).and_then(|n| base.checked_add(n));
            let base = base.ok_or(SetupError::OutOfRange(u64::MAX))?;
            regions.insert(base, REDIST_SIZE, V3_FRAME, Place::Redist(VcpuId(vcpu as u16)))?;
            redists.push(base);
        }
        (self.regions, self.redists) = (regions, redists);
        self.last_redists.push(end - 1);
        Ok(())
    }

    /// Sets whether the guest begins with firmware, which sets up a GICv3 itself.
    ///
    /// With firmware, the guest finds the reset state: redistributors are asleep (GICR_WAKER; IHI
    /// 0069, 12.11), and interrupts are in Group 0. Without firmware, which is the default, the
    /// guest's first instruction belongs to a kernel, which finds the state that firmware would
    /// have left: redistributors are awake, and interrupts are in Group 1.
    ///
    /// # Errors
    /// [`SetupError::NotCreated`], [`SetupError::WrongModel`]: in GICv2 nothing depends on this.
    pub fn set_firmware(&mut self, firmware: bool) -> Result<(), SetupError> {
        self.model(Model::V3)?;
        self.firmware = firmware;
        Ok(())
    }

    /// Adds an ITS, which takes two frames of 64 KiB.
    ///
    /// An ITS needs the guest's [memory](Setup::set_memory), and [bounds](Setup::set_bounds) with
    /// at least as many DeviceID and EventID bits. [`Setup::init`] checks both.
    ///
    /// # Errors
    /// [`SetupError::NotCreated`], [`SetupError::WrongModel`]. [`SetupError::Value`] if a field of
    /// `its` is out of its range, or there are too many ITSs. If a frame does not fit there:
    /// [`SetupError::OutOfRange`], [`SetupError::Misaligned`], [`SetupError::Overlap`].
    pub fn add_its(&mut self, its: ItsConfig) -> Result<(), SetupError> {
        self.model(Model::V3)?;
        let checks = [
            (its.device_bits >= 1 && its.device_bits <= 32, "DeviceID bits of the ITS"),
            (its.event_bits >= 1 && its.event_bits <= 32, "EventID bits of the ITS"),
            (its.collection_bits >= 1 && its.collection_bits <= 16, "collection bits of the ITS"),
            (
                u32::from(its.hardware_collections) <= 1 << its.collection_bits.min(16),
                "collections of the ITS",
            ),
            (its.slice >= 1 && its.most >= 1, "work of the ITS"),
            (self.its.len() < usize::from(u16::MAX), "number of ITSs"),
        ];
        if let Some((_, what)) = checks.iter().find(|(ok, _)| !ok) {
            return Err(SetupError::Value(what));
        }
        // Work on a copy: either both frames are added or none.
        let mut regions = self.regions.clone();
        let number = self.its.len() as u16;
        regions.insert(its.base, FRAME, FRAME, Place::Its(number))?;
        let second = its.base.checked_add(FRAME).ok_or(SetupError::OutOfRange(its.base))?;
        regions.insert(second, FRAME, FRAME, Place::Translation(number))?;
        self.regions = regions;
        self.its.push(its);
        Ok(())
    }

    /// Sets the hooks that all ITSs call.
    pub fn set_its_trace(&mut self, trace: Arc<dyn ItsTrace>) {
        self.its_trace = Some(trace);
    }

    /// Checks the things that the ITSs and LPIs need from the rest of the machine.
    fn check_its(&self) -> Result<(), SetupError> {
        if !self.its.is_empty() && (self.memory.is_none() || self.config.lpis == 0) {
            return Err(SetupError::NotInitialised("an ITS needs guest memory and LPIs"));
        }
        // Each LPI needs an event of its own for when the guest sets it directly, or it is found in
        // a pending table.
        let bits = u32::from(self.config.device_bits) + u32::from(self.config.event_bits);
        if self.memory.is_some() && u64::from(self.config.lpis) > 1 << bits.min(63) {
            return Err(SetupError::Value("DeviceID and EventID bits"));
        }
        for its in &self.its {
            if its.device_bits > self.config.device_bits {
                return Err(SetupError::Value("DeviceID bits of the ITS"));
            }
            if its.event_bits > self.config.event_bits {
                return Err(SetupError::Value("EventID bits of the ITS"));
            }
        }
        Ok(())
    }

    /// The number of participants: two handles for each vCPU, two for each ITS, one for LPIs, and
    /// the host's.
    fn participants(&self) -> Result<u16, SetupError> {
        let own = 2 * (self.affinities.len() + self.its.len()) + 1;
        let all = own + usize::from(self.config.participants);
        u16::try_from(all).map_err(|_| SetupError::Participants(all))
    }

    /// Makes the controller. All vCPUs are powered off, and all state is that of a reset.
    ///
    /// # Errors
    /// [`SetupError::NotCreated`], [`SetupError::NotInitialised`] if something is missing,
    /// [`SetupError::Value`] if the bounds do not fit the ITSs and LPIs,
    /// [`SetupError::Participants`], [`SetupError::Engine`].
    pub fn init<E: Engine>(&self, kick: Arc<dyn Kick>) -> Result<Gic<E>, SetupError> {
        let missing = |what| Err(SetupError::NotInitialised(what));
        let model = self.model.ok_or(SetupError::NotCreated)?;
        if self.affinities.is_empty() {
            return missing("there are no vCPUs");
        }
        if self.dist.is_none() {
            return missing("the distributor has no address");
        }
        let vcpus = self.affinities.len() as u16;
        let Config { spis, espis, eppis, .. } = self.config;
        let lpis = if self.memory.is_some() { self.config.lpis } else { 0 };
        self.check_its()?;
        let affinities = self.affinities.clone().into();
        let redists = self.redists.iter().take(vcpus.into()).copied().collect();
        let (itss, firmware) = (self.its.len(), self.firmware);
        let machine = Machine { spis, espis, eppis, lpis, itss, affinities, redists, firmware };
        let frames = match model {
            Model::V2 if self.cpu.is_none() => return missing("the CPU interface has no address"),
            Model::V2 => Frames::V2 {
                dist: DistV2::new(&machine),
                v2m: self.v2m.iter().map(V2m::new).collect(),
            },
            Model::V3 if self.redists.len() < usize::from(vcpus) => {
                return missing("not all vCPUs have a redistributor");
            }
            Model::V3 => {
                let last = |n: u16| n + 1 == vcpus || self.last_redists.contains(&n.into());
                let dist = DistV3::new(&machine);
                let redist = |n| Redist::new(&machine, VcpuId(n), last(n), dist.state());
                let redists: Box<[Redist]> = (0..vcpus).map(redist).collect();
                Frames::V3 { dist, redists }
            }
        };
        let participants = self.participants()?;
        let config = Config { vcpus, participants, ..self.config.clone() };
        let engine = E::new(&config, Arc::clone(&kick))?;
        let injector = engine.injector()?;
        for vcpu in (0..vcpus).map(VcpuId) {
            // Nothing is forwarded until the guest enables it.
            injector.update_gates(vcpu, |_| Gates::CLOSED)?;
        }
        match &frames {
            Frames::V2 { dist, v2m } => {
                dist.reset(&injector, vcpus, v2m.iter().flat_map(V2m::spis))?;
            }
            Frames::V3 { .. } => DistV3::reset(&machine, &injector)?,
        }
        let memory = self.memory.as_ref().filter(|_| lpis > 0).map(Arc::clone);
        let lpis =
            memory.map(|memory| LpiControl::new(&engine, &self.config, memory)).transpose()?;
        let unit =
            |(n, its): (usize, &ItsConfig)| Unit::new(n, *its, &engine, self.its_trace.clone());
        let units = self.its.iter().enumerate().map(unit).collect::<Result<_, _>>()?;
        Ok(Gic(Arc::new(Shared {
            units,
            lpis,
            engine,
            machine,
            regions: self.regions.clone(),
            frames,
            host: kick,
            lrs: self.lrs,
        })))
    }
}
