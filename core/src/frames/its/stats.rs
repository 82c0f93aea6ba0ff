//! Counters of an ITS, and hooks that a host may set.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::command::{Command, Fault, Kind};
use crate::arch::ids::{DeviceId, EventId};
use crate::engine::Injected;
use crate::sync::Tally;

/// Hooks for a host that observes its ITSs. They run on the thread that does the work, and must not
/// call the ITS.
pub trait ItsTrace: Send + Sync + 'static {
    /// A command was performed, or had no effect. `command` is `None` if it could not be read or
    /// decoded. `its` is the ITS's number, in the order in which the ITSs were set up.
    fn command(&self, its: usize, command: Option<Command>, result: Result<(), Fault>) {
        let _ = (its, command, result);
    }

    /// The MSI (`device`, `event`) was translated. Called only with the feature `trace`. Without
    /// it, this hook costs injections nothing.
    fn translation(&self, its: usize, device: DeviceId, event: EventId, injected: Injected) {
        let _ = (its, device, event, injected);
    }

    /// An MSI had no effect: the event or its collection is not mapped, or the ITS is not enabled.
    fn untranslated(&self, its: usize, device: DeviceId, event: EventId) {
        let _ = (its, device, event);
    }
}

/// Counters of an ITS since it was made.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ItsStats {
    /// Number of commands of each kind that had their effect. Kinds with a count of 0 are left out.
    pub commands: Vec<(&'static str, u64)>,
    /// Number of commands of each kind that had no effect, for each reason. Counts of 0 are left
    /// out.
    pub faults: Vec<(&'static str, &'static str, u64)>,
    /// Number of MSIs that had no effect.
    pub untranslated: u64,
    /// Number of entries of mapped devices and events that could not be cleared in the guest's
    /// tables when they were unmapped.
    pub unwritten: u64,
    /// Number of LPIs that may have lost their pending state when their collection was unmapped,
    /// because a bound of the VM was reached.
    pub unparked: u64,
}

impl ItsStats {
    /// The number of commands of a kind that had their effect.
    pub fn commands_of(&self, kind: Kind) -> u64 {
        self.commands.iter().find(|(name, _)| *name == kind.name()).map_or(0, |&(_, n)| n)
    }

    /// The number of commands that had no effect for this reason.
    pub fn faults_of(&self, fault: Fault) -> u64 {
        self.faults.iter().filter(|(_, name, _)| *name == fault.name()).map(|&(_, _, n)| n).sum()
    }
}

/// The live counters.
pub(crate) struct Counters {
    /// For each kind: commands with an effect, then one counter for each fault.
    commands: Box<[Tally]>,
    untranslated: Tally,
    unwritten: Tally,
    unparked: Tally,
}

const COLUMNS: usize = 1 + Fault::ALL.len();

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            commands: (0..Kind::ALL.len() * COLUMNS).map(|_| Tally::default()).collect(),
            untranslated: Tally::default(),
            unwritten: Tally::default(),
            unparked: Tally::default(),
        }
    }

    pub(crate) fn command(&self, kind: Kind, result: Result<(), Fault>) {
        let column = result.map_or_else(|fault| 1 + fault as usize, |()| 0);
        self.commands[kind as usize * COLUMNS + column].add_one();
    }

    pub(crate) fn untranslated(&self) {
        self.untranslated.add_one();
    }

    pub(crate) fn unwritten(&self) {
        self.unwritten.add_one();
    }

    pub(crate) fn unparked(&self) {
        self.unparked.add_one();
    }

    pub(crate) fn get(&self) -> ItsStats {
        let at = |kind: Kind, column: usize| self.commands[kind as usize * COLUMNS + column].get();
        let commands = Kind::ALL.iter().map(|&kind| (kind.name(), at(kind, 0)));
        let faults = Kind::ALL.iter().flat_map(|&kind| {
            Fault::ALL
                .iter()
                .map(move |&fault| (kind.name(), fault.name(), at(kind, 1 + fault as usize)))
        });
        ItsStats {
            commands: commands.filter(|&(_, n)| n > 0).collect(),
            faults: faults.filter(|&(_, _, n)| n > 0).collect(),
            untranslated: self.untranslated.get(),
            unwritten: self.unwritten.get(),
            unparked: self.unparked.get(),
        }
    }
}
