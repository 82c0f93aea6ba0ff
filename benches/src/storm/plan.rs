//! The shape and length of one storm, and the engine's configuration that follows from them.

use std::ops::Range;
use std::time::Duration;

use vgic_core::engine::{Config, LpiConfig};
use vgic_core::ids::{DeviceId, EventId, INTID_END, Intid, LPI_BASE, Priority, VcpuId};

use super::ledger::Ledger;

/// Most LPIs of a storm.
pub const MAX_LPIS: u32 = INTID_END - LPI_BASE;

/// Most priorities that LPIs can be spread over. The lowest of the [`Priority::LEVELS`] is left
/// out, as no value of the guest's priority mask lets it through.
pub const MAX_PRIORITIES: u8 = Priority::LEVELS as u8 - 1;

/// The end of a storm.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Length {
    /// After this number of injections of each event.
    Iterations(u64),
    /// After this time.
    Time(Duration),
}

/// One storm.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// Number of vCPUs, each a thread.
    pub vcpus: u16,
    /// Number of devices, each an injector thread unless [`Plan::threads`] says otherwise.
    pub devices: u32,
    /// Events per device, each with its own LPI.
    pub events: u32,
    /// Number of injector threads that the devices are divided among. `None`: one per device.
    pub threads: Option<u32>,
    /// The end of the storm.
    pub length: Length,
    /// List registers of each vCPU.
    pub lrs: u8,
    /// Number of priorities that the LPIs are spread over, at most [`MAX_PRIORITIES`].
    pub priorities: u8,
    /// Most events that each injector thread injects, chosen at random. The others are mapped, but
    /// never injected. `None`: all are injected.
    pub hot: Option<u32>,
    /// Whether all mappings and injections go through an ITS; the mappings are made by its
    /// commands.
    pub its: bool,
    /// Whether each injection looks up (DeviceID, EventID). Otherwise injectors hold routes.
    pub lookup: bool,
    /// Whether events are unmapped, mapped again and moved during the storm.
    pub churn: bool,
    /// Whether an event is injected only when its last injection has been seen, so that none is
    /// coalesced.
    pub paced: bool,
    /// How long an idle vCPU polls before it sleeps.
    pub halt_poll: Duration,
    /// Seed of all random choices.
    pub seed: u64,
    /// The time without a delivery, once the injectors are done, after which missing LPIs count as
    /// lost.
    pub stall: Duration,
    /// Whether the storm shows no progress bar of its own.
    pub quiet: bool,
}

impl Default for Plan {
    /// A storm of one event, injected once.
    fn default() -> Self {
        Self {
            vcpus: 1,
            devices: 1,
            events: 1,
            threads: None,
            length: Length::Iterations(1),
            lrs: 4,
            priorities: 1,
            hot: None,
            its: false,
            lookup: false,
            churn: false,
            paced: false,
            halt_poll: Duration::ZERO,
            seed: 1,
            stall: Duration::from_secs(5),
            quiet: false,
        }
    }
}

impl Plan {
    /// Returns the number of events of all devices, which is the number of LPIs.
    pub fn lpis(&self) -> u32 {
        self.devices * self.events
    }

    /// Returns the number of injector threads.
    pub fn threads(&self) -> u32 {
        self.threads.unwrap_or(self.devices).clamp(1, self.devices)
    }

    /// Returns the indices of an injector thread's events, which are those of whole devices.
    pub fn events_of(&self, thread: u32) -> Range<u32> {
        let first = |thread: u32| {
            let device = u64::from(thread) * u64::from(self.devices) / u64::from(self.threads());
            device as u32 * self.events
        };
        first(thread)..first(thread + 1)
    }

    /// Returns the number of injections, if the plan fixes it.
    pub fn injections(&self) -> Option<u64> {
        match self.length {
            Length::Iterations(iterations) => Some(u64::from(self.lpis()) * iterations),
            Length::Time(_) => None,
        }
    }

    /// Returns the engine's configuration.
    pub fn config(&self) -> Config {
        let lpis = self.lpis();
        // Unmapped LPIs exist until they are reclaimed, so churn needs more room than the mapped
        // ones. A device is retired with its last event, once its injector has dropped its routes.
        let spare = |mapped: u32| if self.churn { mapped + 4096 } else { 0 };
        // The vCPUs, the injectors, the MSI domain, and the injector of the last round.
        let participants = u32::from(self.vcpus) + self.threads() + 2;
        Config {
            vcpus: self.vcpus,
            spis: 0,
            eppis: 0,
            espis: 0,
            lpis,
            max_lpis: lpis + spare(lpis),
            max_bytes: u64::MAX,
            device_bits: bits_for(self.devices),
            event_bits: bits_for(self.events),
            max_devices: self.devices + spare(self.devices),
            max_events: lpis,
            max_garbage: Config::default().max_garbage,
            participants: participants as u16,
        }
    }

    /// Returns the device and the EventID of an event's index.
    pub fn event(&self, index: u32) -> (DeviceId, EventId) {
        (DeviceId(index / self.events), EventId(index % self.events))
    }

    /// Returns the INTID of an event.
    pub fn intid(&self, index: u32) -> Intid {
        Ledger::intid(index)
    }

    /// Returns the vCPU that takes an event at first. Neighboring events have different vCPUs, as a
    /// device's queues do.
    pub fn target(&self, index: u32) -> VcpuId {
        VcpuId((index % u32::from(self.vcpus)) as u16)
    }

    /// Returns an event's configuration. Each vCPU gets every priority.
    pub fn config_of(&self, index: u32) -> LpiConfig {
        let level = if self.priorities == 1 {
            // The priority of every LPI in Linux (0xa0).
            Priority::new(0xa0).level() as u8
        } else {
            (index / u32::from(self.vcpus) % u32::from(self.priorities)) as u8
        };
        LpiConfig::enabled(level << (8 - Priority::BITS))
    }
}

/// Returns the number of bits that 0 to `count` - 1 need, at least 1.
fn bits_for(count: u32) -> u8 {
    (u32::BITS - (count - 1).leading_zeros()).max(1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits() {
        for (count, bits) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (1 << 20, 20)] {
            assert_eq!(bits_for(count), bits, "{count}");
        }
    }

    #[test]
    fn the_largest_plan_is_a_valid_configuration() {
        let plan = Plan {
            vcpus: 512,
            devices: 4096,
            events: MAX_LPIS / 4096,
            churn: true,
            ..Plan::default()
        };
        plan.config().check().unwrap();
        assert_eq!(plan.config().participants, 512 + 4096 + 2);
    }

    #[test]
    fn each_event_has_a_thread() {
        for (devices, threads) in [(1, None), (5, None), (5, Some(1)), (5, Some(3)), (2, Some(9))] {
            let plan = Plan { devices, threads, events: 3, ..Plan::default() };
            let all: Vec<u32> = (0..plan.threads()).flat_map(|t| plan.events_of(t)).collect();
            assert_eq!(all, (0..3 * devices).collect::<Vec<_>>());
            assert!((0..plan.threads()).all(|thread| !plan.events_of(thread).is_empty()));
        }
    }

    #[test]
    fn each_vcpu_gets_each_priority_and_the_lowest_is_not_used() {
        let plan = Plan { vcpus: 2, events: 64, priorities: MAX_PRIORITIES, ..Plan::default() };
        let levels = |vcpu: u16| {
            let mine = (0..plan.lpis()).filter(|i| plan.target(*i) == VcpuId(vcpu));
            let mut levels: Vec<_> = mine.map(|i| plan.config_of(i).priority.level()).collect();
            levels.sort_unstable();
            levels.dedup();
            levels
        };
        assert_eq!(levels(0), (0..31).collect::<Vec<_>>());
        assert_eq!(levels(0), levels(1));
    }
}
