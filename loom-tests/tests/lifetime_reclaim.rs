//! The reclamation facade alone: an object that a pinned reader reaches is not freed before the
//! reader unpins.
//!
//! An object is a cell that loom watches. A reader that finds it linked reads it. A writer that
//! unlinked it writes it once its grace period is over. If these two accesses are not ordered, loom
//! reports a causality violation.
#![cfg(any(loom, shuttle))]
// loom's cells are not `Sync`. The models share them with other threads nevertheless, because
// `loom::thread::spawn` does not require `Send`.
#![allow(clippy::arc_with_non_send_sync)]

use std::ptr;
use std::sync::Arc;
use vgic_core::reclaim::{Epoch, Participant, Pin, Reclaim, Slots};
use vgic_loom_tests::model;
use vgic_loom_tests::sched::cell::UnsafeCell;
use vgic_loom_tests::sched::sync::atomic::{AtomicPtr, Ordering};
use vgic_loom_tests::sched::thread;

/// A shared pointer, and the object that it points to, or pointed to.
struct Shared {
    link: AtomicPtr<UnsafeCell<()>>,
    object: Arc<UnsafeCell<()>>,
}

impl Shared {
    fn new() -> Arc<Self> {
        let object = Arc::new(UnsafeCell::new(()));
        Arc::new(Self { link: AtomicPtr::new(Arc::as_ptr(&object).cast_mut()), object })
    }

    /// Follows the pointer and reads the object, for a pinned reader. Relaxed: only the pin orders
    /// the accesses.
    fn read(&self, _pin: &Pin) {
        if !self.link.load(Ordering::Relaxed).is_null() {
            self.object.with(|_| ());
        }
    }

    /// Reads the object if the caller has reached it by `follow`.
    fn use_again(&self, reached: bool, _pin: &Pin) {
        if reached {
            self.object.with(|_| ());
        }
    }

    fn follow(&self, _pin: &Pin) -> bool {
        !self.link.load(Ordering::Relaxed).is_null()
    }

    /// Unlinks the object, and frees it if its grace period ends soon. Returns whether it was
    /// freed.
    fn unlink_and_free<R: Reclaim>(&self, reclaim: &R, participant: &R::Participant) -> bool {
        self.link.store(ptr::null_mut(), Ordering::Relaxed);
        let grace = reclaim.begin(participant);
        (0..2).any(|_| {
            let over = reclaim.is_over(participant, &grace);
            if over {
                self.object.with_mut(|_| ());
            }
            over
        })
    }
}

/// A reader that pins `times` times against a writer. Afterwards, no pin holds a grace period up.
fn read_vs_free<R: Reclaim>(times: usize) {
    let (reclaim, shared) = (Arc::new(R::new(2)), Shared::new());
    let (me, you) = (reclaim.register().unwrap(), reclaim.register().unwrap());
    let linked = Arc::clone(&shared);
    let reader = thread::spawn(move || {
        for _ in 0..times {
            linked.read(&you.pin());
        }
        you
    });
    shared.unlink_and_free(&*reclaim, &me);
    let _you = reader.join().unwrap();
    let grace = reclaim.begin(&me);
    assert!((0..4).any(|_| reclaim.is_over(&me, &grace)), "nobody is pinned");
}

#[test]
fn slots_read_vs_free() {
    model(8, 928, || read_vs_free::<Slots>(1));
}

#[test]
fn epoch_read_vs_free() {
    model(2, 875, || read_vs_free::<Epoch>(1));
}

/// The reader unpins and pins again in between: the second pin is another one.
#[test]
fn slots_pinned_again() {
    model(4, 6_687, || read_vs_free::<Slots>(2));
}

#[test]
fn epoch_pinned_again() {
    model(2, 1_240, || read_vs_free::<Epoch>(2));
}

/// The end of an inner pin is not the end of the outer one.
fn nested<R: Reclaim>() {
    let (reclaim, shared) = (Arc::new(R::new(2)), Shared::new());
    let (me, you) = (reclaim.register().unwrap(), reclaim.register().unwrap());
    let linked = Arc::clone(&shared);
    let reader = thread::spawn(move || {
        let outer = you.pin();
        let reached = linked.follow(&outer);
        linked.read(&you.pin());
        linked.use_again(reached, &outer);
        drop(outer);
        you
    });
    shared.unlink_and_free(&*reclaim, &me);
    drop(reader.join().unwrap());
}

#[test]
fn slots_nested_pins() {
    model(8, 1_026, nested::<Slots>);
}

#[test]
fn epoch_nested_pins() {
    model(2, 931, nested::<Epoch>);
}

/// A participant is dropped, and another takes its slot: the reads of the first one are ordered
/// before the free as well.
#[test]
fn slots_registered_again() {
    model(3, 11_827, || {
        let (reclaim, shared) = (Arc::new(Slots::new(2)), Shared::new());
        let (me, first) = (reclaim.register().unwrap(), reclaim.register().unwrap());
        assert!(reclaim.register().is_none(), "there are two slots");
        let (registry, linked) = (Arc::clone(&reclaim), Arc::clone(&shared));
        let reader = thread::spawn(move || {
            linked.read(&first.pin());
            drop(first);
            let second = registry.register().expect("the slot is free again");
            linked.read(&second.pin());
            second
        });
        shared.unlink_and_free(&*reclaim, &me);
        drop(reader.join().unwrap());
    });
}

/// Two threads register at once, and read: each has a slot of its own, so neither ends the other's
/// pin.
#[test]
fn slots_registered_at_once() {
    model(2, 25_755, || {
        let (reclaim, shared) = (Arc::new(Slots::new(3)), Shared::new());
        let me = reclaim.register().unwrap();
        let readers = [(); 2].map(|()| {
            let (registry, linked) = (Arc::clone(&reclaim), Arc::clone(&shared));
            thread::spawn(move || {
                let participant = registry.register().expect("there are three slots");
                linked.read(&participant.pin());
                participant
            })
        });
        shared.unlink_and_free(&*reclaim, &me);
        let participants = readers.map(|reader| reader.join().unwrap());
        assert!(reclaim.register().is_none(), "all three are taken");
        drop(participants);
    });
}

/// Three participants: a reader, a writer, and a thread that waits for an earlier grace period and
/// so advances the epoch at any moment.
#[test]
fn slots_read_vs_free_vs_advance() {
    model(3, 67_924, || {
        let (reclaim, shared) = (Arc::new(Slots::new(3)), Shared::new());
        let (me, you, third) =
            (reclaim.register().unwrap(), reclaim.register().unwrap(), reclaim.register().unwrap());
        let (linked, clock) = (Arc::clone(&shared), Arc::clone(&reclaim));
        let reader = thread::spawn(move || {
            linked.read(&you.pin());
            you
        });
        let advancer = thread::spawn(move || {
            let grace = clock.begin(&third);
            let _ = clock.is_over(&third, &grace);
            third
        });
        shared.unlink_and_free(&*reclaim, &me);
        drop((reader.join().unwrap(), advancer.join().unwrap()));
    });
}

/// Two readers and a writer.
#[test]
fn slots_two_readers_vs_free() {
    model(3, 39_736, || {
        let (reclaim, shared) = (Arc::new(Slots::new(3)), Shared::new());
        let me = reclaim.register().unwrap();
        let readers = [(); 2].map(|()| {
            let (you, linked) = (reclaim.register().unwrap(), Arc::clone(&shared));
            thread::spawn(move || {
                linked.read(&you.pin());
                you
            })
        });
        shared.unlink_and_free(&*reclaim, &me);
        drop(readers.map(|reader| reader.join().unwrap()));
    });
}
