//! The shape and the bounds of an engine, and why it refuses something.

use crate::arch::ids::{self, DeviceId, EventId, Intid, VcpuId};

/// The shape and the bounds of one VM's interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Number of vCPUs, 1 to [`ids::MAX_VCPUS`].
    pub vcpus: u16,
    /// Number of SPIs, 0 to 988: INTIDs 32 up.
    pub spis: u16,
    /// Number of extended PPIs of each vCPU, 0 to 64: INTIDs 1056 up.
    pub eppis: u16,
    /// Number of extended SPIs, 0 to 1024: INTIDs 4096 up.
    pub espis: u16,
    /// Number of LPI INTIDs, 0 to 2^24 - 8192: INTIDs 8192 up. They cost no memory until they are
    /// mapped.
    pub lpis: u32,
    /// Most LPIs that exist at one time, including those that wait to be reclaimed. An LPI that
    /// only an idle route still remembers does not count.
    pub max_lpis: u32,
    /// DeviceID bits of each MSI domain, 1 to 32.
    pub device_bits: u8,
    /// EventID bits of each device, 1 to 32.
    pub event_bits: u8,
    /// Most devices that exist at one time in all MSI domains.
    pub max_devices: u32,
    /// Most events that are mapped at one time in all MSI domains.
    pub max_events: u32,
    /// Most heap bytes of the mappings: [`Usage::bytes`](super::Usage::bytes), with retired
    /// objects, and the heap's own overhead. A mapping is refused when this bound or another one
    /// is reached.
    ///
    /// With N = 544 bytes for a node of a tree of 64, and one level for each 6 bits of a key (the
    /// first level is part of its tree), the objects of mappings cost, on a 64-bit machine:
    ///
    /// | object | bytes |
    /// |---|---|
    /// | an LPI | 128 |
    /// | each started 2,048 INTIDs of which one is mapped | 2,300 |
    /// | nodes of the tree of LPIs | N for each started 64, 64^2, ... INTIDs with a mapped one |
    /// | a device with a mapped event or a route | 640 |
    /// | nodes of the tree of devices | N for each started 64 DeviceIDs, ... |
    /// | nodes of a device's events | N for each started 64 EventIDs, ... |
    /// | one more retired object | 32 |
    ///
    /// An ITS has two domains: one for its events, and one for events of unmapped collections. Its
    /// own maps cost 12 to 24 bytes for an event, some 100 for each run of neighbors (64 at most),
    /// 160 for a device, 40 for a collection.
    ///
    /// So a machine of 1,000 devices with 32 neighboring events each needs 6 MiB. 65,536 devices of
    /// 16 events, 4,096 apart, would need 1.2 GiB, which is refused. The fixed parts of a machine
    /// are not counted, and neither are routes, which are the host's own. Several ITSs that map at
    /// the same time can exceed the bound by a few mappings: a node for each level.
    pub max_bytes: u64,
    /// Most retired objects (LPIs, blocks of pending bits, tree nodes, devices) that wait to be
    /// reclaimed before mappings are refused. They wait while a thread is pinned, such as one that
    /// was preempted in the middle of an injection.
    pub max_garbage: u32,
    /// Most participants at one time, 1 to 32,767: injectors, MSI controls and vCPU interfaces. In
    /// a [`Setup`](crate::gic::Setup) this is the number of the host's own; the handles of the
    /// machine's vCPUs and ITSs are added. Each has a slot (two cache lines) in the fixed-slot
    /// reclamation backend; crossbeam-epoch has no bound.
    pub participants: u16,
}

impl Default for Config {
    /// One vCPU, 32 SPIs, 2^16 INTIDs and as many LPIs as fit in them, 16-bit DeviceIDs and
    /// EventIDs. No guest can make such an engine use more than 64 MiB.
    fn default() -> Self {
        Self {
            vcpus: 1,
            spis: 32,
            eppis: 0,
            espis: 0,
            lpis: (1 << 16) - ids::LPI_BASE,
            max_lpis: 1 << 16,
            device_bits: 16,
            event_bits: 16,
            max_devices: 1 << 16,
            max_events: 1 << 20,
            max_bytes: 48 << 20,
            max_garbage: 1 << 16,
            participants: 256,
        }
    }
}

impl Config {
    /// The default shape with `vcpus` vCPUs.
    pub fn with_vcpus(vcpus: u16) -> Self {
        Self { vcpus, ..Self::default() }
    }

    /// Checks each field by itself.
    pub(crate) fn check_ranges(&self) -> Result<(), Error> {
        let checks: [(bool, &'static str); 11] = [
            (self.vcpus >= 1 && self.vcpus <= ids::MAX_VCPUS, "vcpus"),
            (u32::from(self.spis) <= ids::SPI_END - ids::PRIVATE_INTIDS, "spis"),
            (u32::from(self.eppis) <= ids::EPPI_END - ids::EPPI_BASE, "eppis"),
            (u32::from(self.espis) <= ids::ESPI_END - ids::ESPI_BASE, "espis"),
            (self.lpis <= ids::INTID_END - ids::LPI_BASE, "lpis"),
            (self.device_bits >= 1 && self.device_bits <= 32, "device_bits"),
            (self.event_bits >= 1 && self.event_bits <= 32, "event_bits"),
            // Each may hold an LPI for a moment; those are counted together with routes (`refs`).
            (self.participants >= 1 && self.participants < 1 << 15, "participants"),
            (self.max_lpis >= 1, "max_lpis"),
            // References to one LPI are counted in 32 bits.
            (self.max_events <= 1 << 31, "max_events"),
            (self.max_garbage >= 1, "max_garbage"),
        ];
        match checks.iter().find(|(ok, _)| !ok) {
            Some((_, field)) => Err(Error::Config(field)),
            None => Ok(()),
        }
    }
}

/// Why a control operation was refused. An operation that returns an error has changed nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of [`Config`] is out of its range.
    #[error("configuration field `{0}` is out of its range")]
    Config(&'static str),
    /// A field of [`Config`] is too small for the rest of it.
    #[error("configuration field `{field}` must be {least} at least")]
    Needs {
        /// The name of the field.
        field: &'static str,
        /// Its least value.
        least: u64,
    },
    /// There is no such vCPU.
    #[error("vCPU {} does not exist", .0.0)]
    NoSuchVcpu(VcpuId),
    /// The vCPU's interface is in use: a vCPU has one owner at a time.
    #[error("the interface of vCPU {} is in use", .0.0)]
    VcpuInUse(VcpuId),
    /// No participant slot is free ([`Config::participants`]).
    #[error("all participant slots are in use")]
    TooManyParticipants,
    /// The INTID is not one that the operation works on, or is beyond the configured number.
    #[error("INTID {0} is out of range here")]
    IntidRange(Intid),
    /// The DeviceID does not fit in [`Config::device_bits`].
    #[error("DeviceID {:#x} is out of range", .0.0)]
    DeviceRange(DeviceId),
    /// The EventID does not fit in [`Config::event_bits`].
    #[error("EventID {:#x} is out of range", .0.0)]
    EventRange(EventId),
    /// The event is mapped already.
    #[error("the event is mapped already")]
    EventMapped,
    /// Nothing is mapped there.
    #[error("nothing is mapped there")]
    NotMapped,
    /// [`Config::max_lpis`] LPIs are mapped.
    #[error("the VM's limit on LPIs is reached")]
    TooManyLpis,
    /// [`Config::max_devices`] devices exist.
    #[error("the VM's limit on devices is reached")]
    TooManyDevices,
    /// [`Config::max_events`] events are mapped.
    #[error("the VM's limit on mapped events is reached")]
    TooManyEvents,
    /// [`Config::max_bytes`] are in use.
    #[error("the VM's limit on memory is reached")]
    TooManyBytes,
    /// Reclamation has to catch up. There would be room if all unmapped objects had been freed, or
    /// [`Config::max_garbage`] retired objects wait to be freed. They are held by vCPUs that have
    /// them in a mailbox or list register, and by threads in the middle of an injection. Try again
    /// after these have continued.
    #[error("too much waits to be reclaimed; try again")]
    TooMuchGarbage,
}
