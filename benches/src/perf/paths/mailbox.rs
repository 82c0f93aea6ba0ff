//! The mailbox alone, beside queues that could replace it.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Mutex;

use crossbeam_queue::SegQueue;
use vgic_core::probe::Mail;

use super::SHIPPED;
use crate::cost::time_of;
use crate::perf::path::Group;

/// A call is one push and its share of a drain.
const WHAT: &str = "push, and its share of a drain";

pub(super) fn mailbox() -> Group {
    let mut group = Group::new("mailbox");
    for batch in [1, 16, 256] {
        let at = Some((u64::from(batch), "in a batch"));
        group.add(SHIPPED, WHAT, at, move || {
            let mut mail = Mail::new(batch);
            Ok(Box::new(move |calls| {
                Ok(time_of(calls.div_ceil(batch), || {
                    for n in 0..batch {
                        mail.push(n);
                    }
                    mail.drain(|n| {
                        black_box(n);
                    });
                }))
            }))
        });
        group.add("SegQueue", WHAT, at, move || {
            let queue = SegQueue::new();
            Ok(Box::new(move |calls| {
                Ok(time_of(calls.div_ceil(batch), || {
                    for n in 0..batch {
                        queue.push(n);
                    }
                    while let Some(n) = queue.pop() {
                        black_box(n);
                    }
                }))
            }))
        });
        group.add("Mutex<VecDeque>", WHAT, at, move || {
            // Drained as a whole, by exchanging it for an empty one, which is its fastest use.
            let (queue, mut taken) = (Mutex::new(VecDeque::new()), VecDeque::new());
            Ok(Box::new(move |calls| {
                Ok(time_of(calls.div_ceil(batch), || {
                    for n in 0..batch {
                        queue.lock().expect("nobody panics").push_back(n);
                    }
                    std::mem::swap(&mut *queue.lock().expect("nobody panics"), &mut taken);
                    for n in taken.drain(..) {
                        black_box(n);
                    }
                }))
            }))
        });
    }
    group
}
