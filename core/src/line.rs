//! A kick as a level: how a host that drives a vCPU's interrupt line from outside reaches its guest.
//!
//! Where the guest's accesses to its CPU interface trap (an interrupt controller in user space), a vCPU that is in the guest does not
//! have to leave it to take an interrupt: whoever posts one raises the vCPU's line, the guest takes the exception and reads IAR, and that
//! access brings the vCPU's thread back to its mailbox. [`LineCell`] is what the threads agree by on who raises the line, and
//! whether at all.
//!
//! # The word
//!
//! | bits | | written by |
//! |---|---|---|
//! | 0..16 | `THRESHOLD` of Group 0 and of Group 1 | the owner, when it enters |
//! | 16 | `IN`: the vCPU is in the guest, or on its way | the owner |
//! | 17 | `NOTE`: something came while it was out | anyone sets, the owner clears |
//! | 18 | `KICKED`: it is being called out | anyone sets, the owner clears when it leaves |
//! | 19 | `LEVEL`: what the line is to be | the owner while it is out; anyone raises while it is in |
//! | 20 | `BUSY`: somebody is telling the hardware | whoever sets it clears it |
//! | 21 | `AGAIN`: the owner has told the hardware as well; whoever is at it does it once more | the owner sets, `BUSY` clears |
//! | 22, 23 | `CALL`: an offer of that group calls the vCPU out, as its line is another one (FIQ) | the owner, when it enters |
//!
//! All changes are read-modify-writes of the one word, AcqRel: of two that meet, one is first, and the second sees what the first's
//! thread did before it.
//!
//! # Nothing is lost
//!
//! A producer publishes (the mailbox), then asks the word. The owner drains, sets the level, then enters:
//!
//! * The producer is first: it has set `NOTE`, so [`LineCell::enter`] fails, and the owner, which has acquired the word,
//!   drains once more and sees what was published.
//! * The owner is first: the producer sees `IN` and the thresholds. They do not change while the vCPU is in, since the guest changes
//!   what they come from by accesses that trap. An interrupt that does not pass them cannot be signaled before the next exit, and
//!   [`LineCell::leave`] comes before the owner drains. For one that does pass, the line goes up, and the guest's acknowledge
//!   brings the owner out.
//! * The line is up already, or somebody is at it: then the owner's next look at the word comes after this producer's write to it.
//!
//! # One at the hardware
//!
//! The call that sets the hardware's line is not part of the word, and calls of two threads could overtake each other. So only who has `BUSY`
//! makes it, and clears `BUSY` only when what it told the hardware is still what the line is to be. Other producers change `LEVEL`, and go on.
//! While `BUSY` is clear, the hardware has `LEVEL`.
//!
//! The owner does not wait for who is at it, who may have been preempted: it tells the hardware as well ([`Due::Tell`]). It is out then, so
//! `LEVEL` stays as it has set it until its call is over. `AGAIN` makes the other one, whose last call may have come before or after the owner's,
//! make another one; that is `LEVEL`, too.
//!
//! Progress: lock-free. An interrupt that a producer has posted is at the hardware when that producer has run, or the owner has
//! been out.

use crate::ids::{Group, Priority};
use crate::sync::{AtomicU64, Ordering, update};

const IN: u64 = 1 << 16;
const NOTE: u64 = 1 << 17;
const KICKED: u64 = 1 << 18;
const LEVEL: u64 = 1 << 19;
const BUSY: u64 = 1 << 20;
const AGAIN: u64 = 1 << 21;
const CALL: [u64; 2] = [1 << 22, 1 << 23];
/// Everything that describes a vCPU that is in.
const VISIT: u64 = 0xffff | IN | KICKED | CALL[0] | CALL[1];

/// What a vCPU's CPU interface would signal while it is in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Thresholds {
    /// Of each group: an interrupt whose priority is numerically below this is signaled; 0 if none is.
    pub below: [u8; 2],
    /// Of each group: it is not signaled by the line that the cell is for, so that an offer has to call the vCPU out.
    pub elsewhere: [bool; 2],
}

impl Thresholds {
    fn bits(self) -> u64 {
        let call = |n: usize| if self.elsewhere[n] { CALL[n] } else { 0 };
        u64::from(u16::from_le_bytes(self.below)) | call(0) | call(1)
    }
}

/// What a producer has to do for a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Due {
    /// Nothing: the vCPU looks by itself in time.
    Nothing,
    /// Its owner tells the hardware the level, once. Somebody else is at it, and sees to it that what the hardware is told last is right.
    Tell,
    /// The line's new level has to be told to the hardware: [`LineCell::drive`], at once.
    Drive,
    /// The vCPU has to be called out of the guest, by a signal or the like. Nobody else does it.
    Call,
}

/// The line of one vCPU. See the [module](self).
#[derive(Debug)]
pub struct LineCell(AtomicU64);

impl Default for LineCell {
    fn default() -> Self {
        Self::new()
    }
}

impl LineCell {
    /// The vCPU is out, and its line is low.
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// An interrupt of this group and priority has been posted to the vCPU.
    pub fn offer(&self, group: Group, priority: Priority) -> Due {
        let group = group as usize;
        let passes = |word: u64| priority.byte() < (word >> (8 * group)) as u8;
        // A read-modify-write even where nothing changes: the owner's next one sees what was published before.
        let old = update(&self.0, |word| {
            if word & IN == 0 {
                word | NOTE
            } else if !passes(word) {
                word
            } else if word & CALL[group] != 0 {
                word | KICKED
            } else if word & LEVEL != 0 {
                word
            } else {
                word | LEVEL | BUSY
            }
        });
        if old & IN == 0 || !passes(old) {
            Due::Nothing
        } else if old & CALL[group] != 0 {
            if old & KICKED == 0 { Due::Call } else { Due::Nothing }
        } else if old & (LEVEL | BUSY) == 0 {
            Due::Drive
        } else {
            // It is up, or who is at it sees the new level before it is done.
            Due::Nothing
        }
    }

    /// Gives `BUSY` back if the line is still to be at `told`, and nobody else has told the hardware anything.
    fn give_back(&self, told: bool) -> bool {
        let same = |word: u64| {
            (word & LEVEL != 0) == told && (word & AGAIN == 0 || cfg!(mutant = "line_told_once"))
        };
        let old = update(&self.0, |word| if same(word) { word & !BUSY } else { word });
        same(old)
    }

    /// The vCPU has to come to its mailbox, whatever the line says.
    pub fn kick(&self) -> Due {
        let old = update(&self.0, |word| if word & IN == 0 { word | NOTE } else { word | KICKED });
        if old & IN != 0 && old & KICKED == 0 { Due::Call } else { Due::Nothing }
    }

    /// Tells the hardware, by `set`, what the line is to be, until that is so. For whom [`Due::Drive`] was returned to.
    pub fn drive(&self, mut set: impl FnMut(bool)) {
        loop {
            let level = update(&self.0, |word| word & !AGAIN) & LEVEL != 0;
            set(level);
            if cfg!(mutant = "line_driven_once") {
                update(&self.0, |word| word & !BUSY);
                return;
            }
            if self.give_back(level) {
                return;
            }
        }
    }

    /// The owner, out of the guest, has found what the line is to be.
    pub fn set_level(&self, level: bool) -> Due {
        let wanted = if level { LEVEL } else { 0 };
        let old = update(&self.0, |word| {
            let at_it = if word & BUSY != 0 {
                AGAIN
            } else if word & LEVEL != wanted {
                BUSY
            } else {
                0
            };
            word & !LEVEL | wanted | at_it
        });
        if old & BUSY != 0 {
            Due::Tell
        } else if old & LEVEL != wanted {
            Due::Drive
        } else {
            Due::Nothing
        }
    }

    /// The owner, out of the guest, is about to drain its mailbox: what has come until now, it sees there, and what comes later makes
    /// [`LineCell::enter`] fail. Saves a failure, and is not needed for anything else.
    pub fn look(&self) {
        update(&self.0, |word| word & !NOTE);
    }

    /// The owner is about to enter the guest. Fails if something has come that it has not seen: it drains its mailbox, and tries again.
    #[must_use]
    pub fn enter(&self, thresholds: Thresholds) -> bool {
        let old = update(&self.0, |word| {
            if word & NOTE != 0 && !cfg!(mutant = "line_enter_forgets_note") {
                word & !NOTE
            } else {
                word & !(VISIT | NOTE) | IN | thresholds.bits()
            }
        });
        old & NOTE == 0 || cfg!(mutant = "line_enter_forgets_note")
    }

    /// The owner has left the guest, and is going to drain its mailbox. Returns whether it was called out.
    pub fn leave(&self) -> bool {
        update(&self.0, |word| word & !VISIT) & KICKED != 0
    }

    /// Whether the line is to be up.
    pub fn level(&self) -> bool {
        // Acquire: as in `drive`.
        self.0.load(Ordering::Acquire) & LEVEL != 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const OPEN: Thresholds = Thresholds { below: [0xf0; 2], elsewhere: [false; 2] };
    const HIGH: Priority = Priority::new(0x20);
    const LOW: Priority = Priority::new(0xa0);

    fn told(cell: &LineCell, due: Due) -> Vec<bool> {
        let mut told = Vec::new();
        if due == Due::Drive {
            cell.drive(|level| told.push(level));
        }
        told
    }

    #[test]
    fn one_call_for_each_change_of_level() {
        let cell = LineCell::new();
        assert!(cell.enter(OPEN));
        let due = cell.offer(Group::Group0, LOW);
        assert_eq!(told(&cell, due), [true]);
        assert_eq!(cell.offer(Group::Group0, HIGH), Due::Nothing, "it is up");
        assert_eq!(cell.offer(Group::Group1, HIGH), Due::Nothing);
        assert!(!cell.leave());
        assert_eq!(cell.set_level(true), Due::Nothing);
        let due = cell.set_level(false);
        assert_eq!(told(&cell, due), [false]);
        assert_eq!(cell.set_level(false), Due::Nothing);
        assert_eq!(cell.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_not_signaled_does_nothing() {
        let cell = LineCell::new();
        assert!(cell.enter(Thresholds { below: [0xa0, 0], elsewhere: [false; 2] }));
        assert_eq!(cell.offer(Group::Group0, LOW), Due::Nothing, "not more urgent than what runs");
        assert_eq!(cell.offer(Group::Group1, HIGH), Due::Nothing, "the group is off");
        assert!(!cell.level());
        assert_eq!(cell.offer(Group::Group0, HIGH), Due::Drive);
    }

    #[test]
    fn what_comes_while_it_is_out_is_seen_before_it_enters() {
        let cell = LineCell::new();
        assert_eq!(cell.offer(Group::Group0, LOW), Due::Nothing);
        assert!(!cell.enter(OPEN));
        assert!(cell.enter(OPEN));
        cell.leave();
        assert_eq!(cell.kick(), Due::Nothing);
        assert!(!cell.enter(OPEN));
        assert!(cell.enter(OPEN));
    }

    #[test]
    fn one_call_out_of_the_guest() {
        let cell = LineCell::new();
        assert!(cell.enter(OPEN));
        assert_eq!(cell.kick(), Due::Call);
        assert_eq!(cell.kick(), Due::Nothing);
        assert!(cell.leave());
        assert!(cell.enter(OPEN));
        assert_eq!(cell.kick(), Due::Call, "each visit has its own");
        cell.leave();
        assert!(cell.enter(Thresholds { elsewhere: [true, false], ..OPEN }));
        assert_eq!(cell.offer(Group::Group0, LOW), Due::Call, "an FIQ is not this line's");
        assert_eq!(cell.offer(Group::Group0, LOW), Due::Nothing);
        assert_eq!(cell.offer(Group::Group1, LOW), Due::Drive);
    }

    #[test]
    fn who_is_at_the_hardware_follows_the_level() {
        let cell = LineCell::new();
        assert!(cell.enter(OPEN));
        assert_eq!(cell.offer(Group::Group0, LOW), Due::Drive);
        // Before the producer has come to it, the owner leaves, and wants the line low.
        cell.leave();
        assert_eq!(cell.set_level(false), Due::Tell);
        let mut told = Vec::new();
        cell.drive(|level| {
            told.push(level);
            if told.len() == 1 {
                // And high, while the hardware is being told.
                assert_eq!(cell.set_level(true), Due::Tell);
            }
        });
        assert_eq!(told, [false, true]);
    }
}
