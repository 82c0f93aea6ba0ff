//! Decides when a running vCPU must be called out of its guest, for hosts that drive its IRQ and
//! FIQ lines.
//!
//! Where the guest's accesses to its CPU interface trap (an interrupt controller in user space), a
//! vCPU in the guest has to leave for an interrupt only if its line is low and would go up. While
//! the line is up, the guest's next read of IAR brings the vCPU's thread back to its mailbox. An
//! interrupt that is not signaled now is not signaled before another trapped access.
//! [`LineCell`] is the word by which the threads agree on whether to call the vCPU out, and which
//! of them does. The vCPU's own thread drives the lines, while it is out of the guest.
//!
//! # The word
//!
//! | bits | content | writers |
//! |---|---|---|
//! | 7:0, 15:8 | `BELOW` of each group: more urgent ones call the vCPU out | owner, at entry |
//! | 23:16, 31:24 | `NOTE` of each group: see below | any thread raises, the owner clears |
//! | 32 | `IN`: the vCPU is in the guest, or about to be | owner |
//! | 33 | `CALLED`: called out of this visit | the caller sets, the owner clears |
//! | 34 | `KICKED`: threads wait for it to look at its mailbox | any thread, the owner clears |
//! | 63:35 | `VISIT`: number of this visit to the guest, modulo 2^29 | owner, at entry |
//!
//! `NOTE` is the priority of the most urgent interrupt that came while the vCPU was out,
//! complemented; 0 means none. All changes are read-modify-writes of the one word, AcqRel: of two
//! that meet, one is first, and the second sees all that the first one's thread did before it.
//!
//! # Nothing is lost
//!
//! A producer publishes (the mailbox), then tells the cell. The owner looks, drains, sets the
//! lines, then enters:
//!
//! * The producer is first: it has left a note. [`LineCell::enter`] fails if the noted interrupt
//!   would have called the vCPU out. The owner has acquired the word, drains again, and sees the
//!   published interrupt.
//! * The owner is first: the producer sees `IN` and the thresholds. They do not change while the
//!   vCPU is in, because the guest changes their sources by accesses that trap. An interrupt that
//!   does not pass them changes nothing before the next exit, and [`LineCell::leave`] comes before
//!   the owner drains. An interrupt that passes calls the vCPU out, unless that is known to have
//!   been done.
//!
//! A thread that has called the vCPU out reports it afterwards ([`LineCell::called`]). Until then,
//! every other thread with a reason to call does so as well: the first may have been preempted in
//! between, and no interrupt waits for the thread of another one. `VISIT` tells a report of an
//! earlier visit apart. (A thread that stops between its signal and `called` would have to continue
//! exactly 2^29 visits later to be mistaken.)
//!
//! A note that would not have called the vCPU out does not keep it from entering. So a producer
//! that sends without pause does not keep it out: the drained interrupts are signaled, with the
//! line up, and later ones no longer pass.
//!
//! Progress: lock-free. Models: `delivery_line`.

use crate::arch::ids::{Group, Priority};
use crate::sync::{AtomicU64, update};

const IN: u64 = 1 << 32;
const CALLED: u64 = 1 << 33;
const KICKED: u64 = 1 << 34;
const ONE_VISIT: u64 = 1 << 35;
const VISIT: u64 = !(ONE_VISIT - 1);

/// The shifts of a group's threshold and note.
const BELOW: [u32; 2] = [0, 8];
const NOTE: [u32; 2] = [16, 24];

/// The priorities that call a vCPU out of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Thresholds {
    /// For each group: an interrupt whose priority is numerically below this would be signaled, by
    /// a line that is low. 0 if none would, or if the line is up.
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

/// Whether an interrupt of this group and priority calls the vCPU out.
const fn passes(word: u64, group: usize, priority: u8) -> bool {
    priority < byte(word, BELOW[group])
}

/// Returns the word with a note of this interrupt, unless one at least as urgent is noted.
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

/// Seeded bug: a thread that is about to call the vCPU out keeps others from doing so.
const fn seeded(word: u64) -> u64 {
    if cfg!(mutant = "calling_left_to_the_first") { word | CALLED } else { word }
}

/// Whether a vCPU that enters with these thresholds would be called out for the noted interrupts.
const fn is_due(word: u64, thresholds: Thresholds) -> bool {
    let (zero, one) = (byte(word, NOTE[0]), byte(word, NOTE[1]));
    let bits = thresholds.bits();
    word & KICKED != 0
        || (zero != 0 && passes(bits, 0, !zero))
        || (one != 0 && passes(bits, 1, !one))
}

/// An obligation to call the vCPU out of the guest, by a signal or the like. Pass it to
/// [`LineCell::called`] afterwards.
#[derive(Debug)]
#[must_use = "the vCPU has to be called out"]
pub struct Call {
    visit: u64,
}

/// Agreement of all threads on calling one vCPU out of its guest: see the [module](self).
#[derive(Debug)]
pub struct LineCell(AtomicU64);

impl Default for LineCell {
    fn default() -> Self {
        Self::new()
    }
}

impl LineCell {
    /// Makes a cell for a vCPU that is out of the guest.
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Notes that an interrupt of this group and priority has been posted to the vCPU. Returns a
    /// [`Call`] if the caller has to call the vCPU out of the guest. Other threads may get one at
    /// the same time.
    #[must_use]
    pub fn offer(&self, group: Group, priority: Priority) -> Option<Call> {
        let (group, priority) = (group as usize, priority.byte());
        // A read-modify-write even where nothing changes: the owner's next one then sees
        // everything that was published before.
        let old = update(&self.0, |word| {
            if word & IN == 0 {
                noted(word, group, priority)
            } else if passes(word, group, priority) {
                seeded(word)
            } else {
                word
            }
        });
        Self::call(old, passes(old, group, priority))
    }

    /// Notes that the vCPU has to look at its mailbox, in any state of its lines. Returns as
    /// [`LineCell::offer`] does.
    #[must_use]
    pub fn kick(&self) -> Option<Call> {
        let old = update(&self.0, |w| KICKED | if w & IN == 0 { w } else { seeded(w) });
        Self::call(old, true)
    }

    fn call(word: u64, due: bool) -> Option<Call> {
        (due && word & (IN | CALLED) == IN).then_some(Call { visit: word & VISIT })
    }

    /// Reports that the vCPU has been called out. No other thread has to call it out of this visit.
    pub fn called(&self, call: Call) {
        let visit = |w| w & IN != 0 && w & VISIT == call.visit;
        update(&self.0, |w| {
            if visit(w) || cfg!(mutant = "called_in_any_visit") { w | CALLED } else { w }
        });
    }

    /// The owner, out of the guest, is about to drain its mailbox. It sees all earlier interrupts
    /// there; a later one can make [`LineCell::enter`] fail. Returns whether the vCPU was kicked
    /// since the last `look` or [`LineCell::leave`].
    pub fn look(&self) -> bool {
        self.out() & KICKED != 0
    }

    /// Marks the vCPU as out, without notes. Returns the old word.
    fn out(&self) -> u64 {
        update(&self.0, |w| w & VISIT)
    }

    /// The owner is about to enter the guest. Fails if there is an interrupt that it has to see
    /// first: it then [looks](LineCell::look), drains its mailbox, and tries again.
    #[must_use]
    pub fn enter(&self, thresholds: Thresholds) -> bool {
        let fails = |word| is_due(word, thresholds) && !cfg!(mutant = "line_enter_forgets_note");
        let entered = |w: u64| (w & VISIT).wrapping_add(ONE_VISIT) | IN | thresholds.bits();
        // `KICKED` stays for `look`.
        let next = |w| if fails(w) { w & (VISIT | KICKED) } else { entered(w) };
        let old = update(&self.0, next);
        !fails(old)
    }

    /// The owner has left the guest, and will drain its mailbox. Returns whether the vCPU was
    /// kicked.
    pub fn leave(&self) -> bool {
        self.out() & KICKED != 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const OPEN: Thresholds = Thresholds { below: [0xf0; 2] };
    const HIGH: Priority = Priority::new(0x20);
    const LOW: Priority = Priority::new(0xa0);

    impl LineCell {
        /// Calls the vCPU out, if it has to be; returns whether it had to.
        fn calls(&self, call: Option<Call>) -> bool {
            call.map(|call| self.called(call)).is_some()
        }

        fn offers(&self, group: Group, priority: Priority) -> bool {
            self.calls(self.offer(group, priority))
        }

        fn kicks(&self) -> bool {
            self.calls(self.kick())
        }
    }

    #[test]
    fn one_call_for_a_visit() {
        let cell = LineCell::new();
        assert!(cell.enter(OPEN));
        assert!(cell.offers(Group::Group0, LOW));
        assert!(!cell.offers(Group::Group0, HIGH), "it is called already");
        assert!(!cell.offers(Group::Group1, HIGH));
        assert!(!cell.leave());
        assert!(cell.enter(OPEN));
        assert!(cell.offers(Group::Group0, LOW));
        assert!(!cell.kicks(), "it is called already");
        assert!(cell.leave(), "but others wait");
        assert!(!cell.leave());
        assert!(cell.enter(OPEN));
        assert!(cell.kicks(), "each visit has its own");
        assert!(!cell.kicks() && !cell.offers(Group::Group1, HIGH));
    }

    #[test]
    fn what_is_not_signaled_does_nothing() {
        let cell = LineCell::new();
        assert!(cell.enter(Thresholds { below: [0xa0, 0] }));
        assert!(!cell.offers(Group::Group0, LOW), "not more urgent than what runs");
        assert!(!cell.offers(Group::Group1, HIGH), "the group is off, or its line is up");
        assert!(cell.offers(Group::Group0, HIGH));
    }

    #[test]
    fn what_comes_while_it_is_out_is_seen_before_it_enters() {
        let cell = LineCell::new();
        assert!(!cell.offers(Group::Group0, LOW));
        assert!(!cell.enter(OPEN));
        assert!(cell.enter(OPEN));
        assert!(!cell.leave());
        assert!(!cell.kicks());
        assert!(!cell.enter(Thresholds::default()), "whatever the lines say");
        assert!(cell.look(), "it is told that others wait");
        assert!(cell.enter(OPEN));
        cell.leave();
        assert!(!cell.offers(Group::Group1, LOW) && !cell.kicks());
        assert!(cell.look() && !cell.look());
        assert!(cell.enter(OPEN));
    }

    #[test]
    fn who_sends_without_pause_does_not_keep_it_out() {
        let cell = LineCell::new();
        let up = Thresholds { below: [0, 0xf0] };
        assert!(!cell.offers(Group::Group0, HIGH));
        assert!(cell.enter(up), "the line is up: the guest comes out by itself");
        cell.leave();
        let running = Thresholds { below: [0xa0, 0xf0] };
        assert!(!cell.offers(Group::Group0, LOW));
        assert!(cell.enter(running), "not more urgent than what runs");
        cell.leave();
        // The most urgent one counts, wherever it comes.
        for (first, second) in [(LOW, HIGH), (HIGH, LOW)] {
            assert!(!cell.offers(Group::Group0, first) && !cell.offers(Group::Group0, second));
            assert!(!cell.enter(running));
        }
        assert!(!cell.offers(Group::Group1, LOW));
        assert!(!cell.enter(running), "the other group's");
        assert!(cell.enter(running));
        assert!(!cell.offers(Group::Group0, LOW), "notes do not stay");
    }

    #[test]
    fn any_priority_leaves_a_note() {
        let least = Priority::new(0xff);
        let cell = LineCell::new();
        assert!(!cell.offers(Group::Group1, least));
        assert!(!cell.enter(Thresholds { below: [0, 0xff] }));
    }

    #[test]
    fn who_stops_before_the_call_is_not_relied_on() {
        let cell = LineCell::new();
        assert!(cell.enter(OPEN));
        let stops = cell.offer(Group::Group0, LOW);
        let kick = cell.kick();
        assert!(stops.is_some() && cell.calls(kick), "nobody has called yet");
        assert!(!cell.offers(Group::Group1, HIGH) && !cell.kicks());
        cell.leave();
        assert!(cell.enter(OPEN));
        assert!(cell.calls(stops), "of the visit before");
        assert!(cell.offers(Group::Group1, HIGH), "which was another one");
        assert!(!cell.offers(Group::Group1, HIGH));
    }

    #[test]
    fn visits_wrap() {
        let cell = LineCell(AtomicU64::new(VISIT));
        for _ in 0..2 {
            assert!(cell.enter(OPEN));
            assert!(cell.offers(Group::Group0, LOW) && !cell.kicks());
            assert!(cell.leave());
        }
    }
}
