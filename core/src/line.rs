//! How a vCPU is called that is in its guest, for a host that drives the vCPU's interrupt lines.
//!
//! Where the guest's accesses to its CPU interface trap (an interrupt controller in user space), a vCPU in the guest has to come out for
//! an interrupt only if its line is low and would go up: while the line is up, the guest's next read of IAR brings the vCPU's thread back to its
//! mailbox, and what is not signaled now is not until another access that traps. [`LineCell`] is what the threads agree by on who calls the
//! vCPU out, and whether at all. The lines themselves are driven by the vCPU's own thread, while it is out.
//!
//! # The word
//!
//! | bits | | written by |
//! |---|---|---|
//! | 7:0, 15:8 | `BELOW` of Group 0 and of Group 1: an interrupt of a priority below it calls the vCPU out | the owner, when it enters |
//! | 23:16, 31:24 | `NOTE` of Group 0 and of Group 1: the most urgent that came while it was out, complemented; 0: none came | anyone raises, the owner clears |
//! | 32 | `IN`: the vCPU is in the guest, or on its way | the owner |
//! | 33 | `CALLED`: it is being called out | anyone sets, the owner clears |
//! | 34 | `KICKED`: others wait for it to look at its mailbox | anyone sets, the owner clears |
//!
//! All changes are read-modify-writes of the one word, AcqRel: of two that meet, one is first, and the second sees what the first's
//! thread did before it.
//!
//! # Nothing is lost
//!
//! A producer publishes (the mailbox), then tells the cell. The owner looks, drains, sets the lines, then enters:
//!
//! * The producer is first: it has left a note. [`LineCell::enter`] fails if what is noted would have called the vCPU out; the owner has
//!   acquired the word, drains once more, and sees what was published.
//! * The owner is first: the producer sees `IN` and the thresholds. They do not change while the vCPU is in, since the guest changes
//!   what they come from by accesses that trap. An interrupt that does not pass them changes nothing before the next exit, and
//!   [`LineCell::leave`] comes before the owner drains. One that does calls the vCPU out: of those who see that, the first.
//!
//! A note that would not have called the vCPU out does not keep it from entering, so whoever sends without pause does not keep it out:
//! what has been drained is signaled, with the line up, and what follows does not pass any more.
//!
//! Progress: lock-free.

use crate::ids::{Group, Priority};
use crate::sync::{AtomicU64, update};

const IN: u64 = 1 << 32;
const CALLED: u64 = 1 << 33;
const KICKED: u64 = 1 << 34;

/// Where a group's threshold and note are.
const BELOW: [u32; 2] = [0, 8];
const NOTE: [u32; 2] = [16, 24];

/// What would call a vCPU out of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Thresholds {
    /// Of each group: an interrupt whose priority is numerically below this would be signaled, by a line that is low; 0 if none would, or the
    /// line is up.
    pub below: [u8; 2],
}

impl Thresholds {
    const fn bits(self) -> u64 {
        (self.below[0] as u64) << BELOW[0] | (self.below[1] as u64) << BELOW[1]
    }
}

/// The byte at `shift`.
const fn byte(word: u64, shift: u32) -> u8 {
    (word >> shift) as u8
}

/// Whether an interrupt of this group and priority calls out.
const fn passes(word: u64, group: usize, priority: u8) -> bool {
    priority < byte(word, BELOW[group])
}

/// With a note of this interrupt, if no more urgent one is there.
const fn noted(word: u64, group: usize, priority: u8) -> u64 {
    // Priorities end in zeroes (`Priority::BITS`), so this is never 0.
    let note = !priority;
    if byte(word, NOTE[group]) < note && !cfg!(mutant = "line_keeps_the_first_note") {
        word & !(0xff << NOTE[group]) | (note as u64) << NOTE[group]
    } else if byte(word, NOTE[group]) == 0 {
        word | (note as u64) << NOTE[group]
    } else {
        word
    }
}

/// Whether a vCPU that enters with these thresholds would be called out for what has been noted.
const fn is_due(word: u64, thresholds: Thresholds) -> bool {
    let (zero, one) = (byte(word, NOTE[0]), byte(word, NOTE[1]));
    let bits = thresholds.bits();
    word & KICKED != 0
        || (zero != 0 && passes(bits, 0, !zero))
        || (one != 0 && passes(bits, 1, !one))
}

/// Calls a vCPU out of its guest. See the [module](self).
#[derive(Debug)]
pub struct LineCell(AtomicU64);

impl Default for LineCell {
    fn default() -> Self {
        Self::new()
    }
}

impl LineCell {
    /// The vCPU is out.
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// An interrupt of this group and priority has been posted to the vCPU. Returns whether the caller has to call it out of the guest, by a signal or
    /// the like; nobody else does.
    #[must_use]
    pub fn offer(&self, group: Group, priority: Priority) -> bool {
        let (group, priority) = (group as usize, priority.byte());
        // A read-modify-write even where nothing changes: the owner's next one sees what was published before.
        let old = update(&self.0, |word| {
            if word & IN == 0 {
                noted(word, group, priority)
            } else if passes(word, group, priority) {
                word | CALLED
            } else {
                word
            }
        });
        old & (IN | CALLED) == IN && passes(old, group, priority)
    }

    /// The vCPU has to come to its mailbox, whatever its lines say. Returns as [`LineCell::offer`] does.
    #[must_use]
    pub fn kick(&self) -> bool {
        let old = update(&self.0, |word| word | KICKED | if word & IN != 0 { CALLED } else { 0 });
        old & (IN | CALLED) == IN
    }

    /// The owner, out of the guest, is about to drain its mailbox: what has come until now, it sees there, and what comes later can make
    /// [`LineCell::enter`] fail. Returns whether it was kicked since it left the guest.
    pub fn look(&self) -> bool {
        update(&self.0, |_| 0) & KICKED != 0
    }

    /// The owner is about to enter the guest. Fails if something has come that it has to see first: it [looks](LineCell::look), drains its mailbox, and
    /// tries again.
    #[must_use]
    pub fn enter(&self, thresholds: Thresholds) -> bool {
        let fails = |word| is_due(word, thresholds) && !cfg!(mutant = "line_enter_forgets_note");
        // That it was kicked stays for `look`.
        let next = |word| if fails(word) { word & KICKED } else { IN | thresholds.bits() };
        let old = update(&self.0, next);
        !fails(old)
    }

    /// The owner has left the guest, and is going to drain its mailbox. Returns whether it was kicked.
    pub fn leave(&self) -> bool {
        update(&self.0, |_| 0) & KICKED != 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const OPEN: Thresholds = Thresholds { below: [0xf0; 2] };
    const HIGH: Priority = Priority::new(0x20);
    const LOW: Priority = Priority::new(0xa0);

    #[test]
    fn one_call_for_a_visit() {
        let cell = LineCell::new();
        assert!(cell.enter(OPEN));
        assert!(cell.offer(Group::Group0, LOW));
        assert!(!cell.offer(Group::Group0, HIGH), "it is called already");
        assert!(!cell.offer(Group::Group1, HIGH));
        assert!(!cell.leave());
        assert!(cell.enter(OPEN));
        assert!(cell.offer(Group::Group0, LOW));
        assert!(!cell.kick(), "it is called already");
        assert!(cell.leave(), "but others wait");
        assert!(!cell.leave());
        assert!(cell.enter(OPEN));
        assert!(cell.kick(), "each visit has its own");
        assert!(!cell.kick() && !cell.offer(Group::Group1, HIGH));
    }

    #[test]
    fn what_is_not_signaled_does_nothing() {
        let cell = LineCell::new();
        assert!(cell.enter(Thresholds { below: [0xa0, 0] }));
        assert!(!cell.offer(Group::Group0, LOW), "not more urgent than what runs");
        assert!(!cell.offer(Group::Group1, HIGH), "the group is off, or its line is up");
        assert!(cell.offer(Group::Group0, HIGH));
    }

    #[test]
    fn what_comes_while_it_is_out_is_seen_before_it_enters() {
        let cell = LineCell::new();
        assert!(!cell.offer(Group::Group0, LOW));
        assert!(!cell.enter(OPEN));
        assert!(cell.enter(OPEN));
        assert!(!cell.leave());
        assert!(!cell.kick());
        assert!(!cell.enter(Thresholds::default()), "whatever the lines say");
        assert!(cell.look(), "it is told that others wait");
        assert!(cell.enter(OPEN));
        cell.leave();
        assert!(!cell.offer(Group::Group1, LOW) && !cell.kick());
        assert!(cell.look() && !cell.look());
        assert!(cell.enter(OPEN));
    }

    #[test]
    fn who_sends_without_pause_does_not_keep_it_out() {
        let cell = LineCell::new();
        let up = Thresholds { below: [0, 0xf0] };
        assert!(!cell.offer(Group::Group0, HIGH));
        assert!(cell.enter(up), "the line is up: the guest comes out by itself");
        cell.leave();
        let running = Thresholds { below: [0xa0, 0xf0] };
        assert!(!cell.offer(Group::Group0, LOW));
        assert!(cell.enter(running), "not more urgent than what runs");
        cell.leave();
        // The most urgent one counts, wherever it comes.
        for (first, second) in [(LOW, HIGH), (HIGH, LOW)] {
            assert!(!cell.offer(Group::Group0, first) && !cell.offer(Group::Group0, second));
            assert!(!cell.enter(running));
        }
        assert!(!cell.offer(Group::Group1, LOW));
        assert!(!cell.enter(running), "the other group's");
        assert!(cell.enter(running));
        assert!(!cell.offer(Group::Group0, LOW), "notes do not stay");
    }

    #[test]
    fn any_priority_leaves_a_note() {
        let least = Priority::new(0xff);
        let cell = LineCell::new();
        assert!(!cell.offer(Group::Group1, least));
        assert!(!cell.enter(Thresholds { below: [0, 0xff] }));
    }
}
