//! Selection of the addresses that get a vCPU's hardware breakpoints.
//!
//! The vectors come first: without an interrupt controller in the kernel, an access to the CPU
//! interface arrives there as an UNDEF. The remaining breakpoints go to the accesses that are made
//! most often. A breakpoint stops the vCPU before the instruction, so the guest takes no exception
//! at all, and fewer than half as many calls into KVM are needed.

use super::cpu::{Debug, MOST_BREAKPOINTS};
use super::exception::{FROM_EL1H, FROM_EL1T};

/// Vector tables that are tracked for one vCPU: a kernel runs with one, and may use another one
/// while EL0 runs.
const TABLES: usize = 2;
/// Accesses that are counted, to find out which ones are made often.
const CANDIDATES: usize = 16;
/// Accesses at one address that justify a breakpoint of its own.
const OFTEN: u32 = 16;

/// The role of an address that has a breakpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// A vector for exceptions from EL1. The value is the address of its table.
    Vector(u64),
    /// An access to the CPU interface.
    Access,
}

#[derive(Clone, Copy, Debug)]
struct Table {
    address: u64,
    /// An access has come through this table.
    proven: bool,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    address: u64,
    hits: u32,
}

#[derive(Debug)]
pub(super) struct Breakpoints {
    /// The number of breakpoints of the CPU.
    most: usize,
    /// The last one is the newest.
    tables: Vec<Table>,
    accesses: Vec<Count>,
    candidates: Vec<Count>,
}

impl Breakpoints {
    /// Creates the selection for a CPU with `most` breakpoints. At least one is used.
    pub(super) fn new(most: usize) -> Self {
        let most = most.clamp(1, MOST_BREAKPOINTS);
        Self { most, tables: Vec::new(), accesses: Vec::new(), candidates: Vec::new() }
    }

    /// Removes all tables and accesses.
    pub(super) fn clear(&mut self) {
        self.tables.clear();
        self.accesses.clear();
        self.candidates.clear();
    }

    /// Adds a vector table, in place of the oldest one if there is no room, and removes the
    /// accesses that lose their breakpoints. Returns whether the table is new.
    pub(super) fn add_table(&mut self, vbar: u64) -> bool {
        if self.tables.iter().any(|table| table.address == vbar) {
            return false;
        }
        if self.tables.len() == TABLES.min(self.most) {
            self.tables.remove(0);
        }
        self.tables.push(Table { address: vbar, proven: false });
        let room = self.room();
        self.accesses.truncate(room);
        true
    }

    /// Removes a vector table that is no longer in use.
    pub(super) fn drop_table(&mut self, vbar: u64) {
        self.tables.retain(|table| table.address != vbar);
    }

    /// Records the first access that comes through a table. Removes the tables that no access has
    /// come through, such as the one in use at reset: a table that is in use after all is found
    /// again. Removes the accesses, too: the table may be another kernel's, with its text
    /// elsewhere. Returns whether any table or access was removed.
    pub(super) fn prove(&mut self, vbar: u64) -> bool {
        let found = self.tables.iter_mut().find(|table| table.address == vbar && !table.proven);
        let Some(table) = found else { return false };
        table.proven = true;
        let before = self.tables.len() + self.accesses.len();
        self.tables.retain(|table| table.proven);
        self.accesses.clear();
        self.candidates.clear();
        self.tables.len() < before
    }

    /// Whether exceptions from EL1 with SP_EL0 are trapped as well. Few guests run like that, so
    /// they must not take the last breakpoint.
    fn with_el1t(&self) -> bool {
        self.most >= 4 && !self.tables.is_empty()
    }

    /// The number of breakpoints that are not on vectors.
    fn room(&self) -> usize {
        self.most - self.tables.len() - usize::from(self.with_el1t())
    }

    fn vectors(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let el1t = self.tables.last().filter(|_| self.with_el1t());
        let at = |offset| move |table: &Table| (table.address, table.address.wrapping_add(offset));
        self.tables.iter().map(at(FROM_EL1H)).chain(el1t.map(at(FROM_EL1T)))
    }

    /// Returns the breakpoints to set.
    pub(super) fn debug(&self) -> Debug {
        let vectors = self.vectors().map(|(_, vector)| vector);
        let all = vectors.chain(self.accesses.iter().map(|access| access.address));
        let mut debug = Debug::default();
        debug.breakpoints.iter_mut().zip(all).for_each(|(to, address)| *to = Some(address));
        debug
    }

    /// Returns the role of an address. `None`: it has no breakpoint.
    pub(super) fn find(&mut self, address: u64) -> Option<Place> {
        if let Some(access) = self.accesses.iter_mut().find(|access| access.address == address) {
            access.hits = access.hits.saturating_add(1);
            return Some(Place::Access);
        }
        let table = self.vectors().find(|&(_, vector)| vector == address);
        table.map(|(table, _)| Place::Vector(table))
    }

    /// Counts an access that came to a vector. Returns whether it has just got a breakpoint.
    pub(super) fn count(&mut self, address: u64) -> bool {
        let hits = match self.candidates.iter_mut().position(|count| count.address == address) {
            Some(index) => {
                self.candidates[index].hits += 1;
                self.candidates[index].hits
            }
            None => {
                if self.candidates.len() == CANDIDATES {
                    self.candidates.remove(0);
                }
                self.candidates.push(Count { address, hits: 1 });
                1
            }
        };
        if hits < OFTEN {
            return false;
        }
        self.candidates.retain(|count| count.address != address);
        if self.accesses.len() < self.room() {
            self.accesses.push(Count { address, hits: 0 });
            return true;
        }
        // Replace the access that was made least often since the last comparison, if it was made
        // less often than this one.
        let least = self.accesses.iter_mut().min_by_key(|access| access.hits);
        let replaced =
            least.filter(|access| access.hits < OFTEN).map(|access| access.address = address);
        self.accesses.iter_mut().for_each(|access| access.hits = 0);
        replaced.is_some()
    }

    /// Removes an address that no longer holds an access.
    pub(super) fn drop_access(&mut self, address: u64) {
        self.accesses.retain(|access| access.address != address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(breakpoints: &Breakpoints) -> Vec<u64> {
        breakpoints.debug().breakpoints.into_iter().flatten().collect()
    }

    fn often(breakpoints: &mut Breakpoints, address: u64) -> bool {
        (0..OFTEN).fold(false, |any, _| any | breakpoints.count(address))
    }

    #[test]
    fn the_two_newest_tables() {
        let mut all = Breakpoints::new(6);
        assert!(all.add_table(0) && all.add_table(0x1000) && !all.add_table(0));
        assert_eq!(set(&all), [0x200, 0x1200, 0x1000]);
        assert!(all.add_table(0x2000));
        assert_eq!(set(&all), [0x1200, 0x2200, 0x2000]);
        assert_eq!(all.find(0x1200), Some(Place::Vector(0x1000)));
        assert_eq!(all.find(0x2000), Some(Place::Vector(0x2000)));
        assert_eq!(all.find(0x1000), None);
    }

    #[test]
    fn a_table_that_is_in_use() {
        let mut all = Breakpoints::new(6);
        all.add_table(0);
        all.add_table(0x1000);
        assert!(all.prove(0x1000) && !all.prove(0x1000));
        assert_eq!(set(&all), [0x1200, 0x1000]);
        // The access belongs to the old text, and goes once another kernel's table is in use.
        assert!(often(&mut all, 0x8000));
        assert_eq!(set(&all), [0x1200, 0x1000, 0x8000]);
        all.add_table(0x2000);
        assert!(all.prove(0x2000));
        assert_eq!(set(&all), [0x1200, 0x2200, 0x2000]);
        all.add_table(0x2000);
        assert!(!all.prove(0x2000));
        all.add_table(0x3000);
        assert_eq!(set(&all), [0x2200, 0x3200, 0x3000]);
    }

    #[test]
    fn one_breakpoint_is_enough() {
        let mut all = Breakpoints::new(1);
        assert!(all.add_table(0) && all.add_table(0x1000));
        assert!(!often(&mut all, 0x8000));
        assert_eq!(set(&all), [0x1200]);
    }

    #[test]
    fn accesses_that_are_made_often() {
        let mut all = Breakpoints::new(4);
        all.add_table(0x1000);
        assert!(often(&mut all, 0x8000) && often(&mut all, 0x8004));
        assert_eq!(set(&all), [0x1200, 0x1000, 0x8000, 0x8004]);
        // At first, both addresses are used as often as the new one; later, the second is used less
        // often.
        (0..OFTEN).for_each(|_| _ = all.find(0x8000));
        (0..OFTEN).for_each(|_| _ = all.find(0x8004));
        assert!(!often(&mut all, 0x8008));
        (0..OFTEN).for_each(|_| _ = all.find(0x8000));
        assert!(often(&mut all, 0x8008));
        assert_eq!(set(&all), [0x1200, 0x1000, 0x8000, 0x8008]);
        // Another table takes the breakpoint of one access.
        all.add_table(0x2000);
        assert_eq!(set(&all), [0x1200, 0x2200, 0x2000, 0x8000]);
        all.drop_access(0x8000);
        assert_eq!(set(&all), [0x1200, 0x2200, 0x2000]);
    }

    #[test]
    fn never_more_than_there_are() {
        for most in 0..20 {
            let mut all = Breakpoints::new(most);
            for n in 0..64 {
                all.add_table(n << 12 & 0x3000);
                often(&mut all, 0x8000 + n * 4);
                assert!(set(&all).len() <= most.clamp(1, 16));
            }
        }
    }
}
