//! The device tree: the command line, and the number of CPUs.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::println;

static BOOTARGS: AtomicU64 = AtomicU64::new(0);
static BOOTARGS_LEN: AtomicUsize = AtomicUsize::new(0);
static CPUS: AtomicUsize = AtomicUsize::new(1);

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;

/// Reads the values that payloads need. The tree must stay in its place.
pub fn read(tree: u64) {
    if tree == 0 || word_at(tree) != MAGIC {
        println!("no device tree at {tree:#x}: one CPU, no command line");
        return;
    }
    let mut at = tree + u64::from(word_at(tree + 8));
    let strings = tree + u64::from(word_at(tree + 12));
    let mut cpus = 0;
    // Only the names of nodes on the path matter: /cpus/cpu@N and /chosen.
    let (mut depth, mut in_cpus, mut in_chosen) = (0, false, false);
    loop {
        let token = word_at(at);
        at += 4;
        match token {
            BEGIN_NODE => {
                let name = c_string(at);
                depth += 1;
                match depth {
                    2 => (in_cpus, in_chosen) = (name == b"cpus", name == b"chosen"),
                    3 if in_cpus && name.starts_with(b"cpu@") => cpus += 1,
                    _ => {}
                }
                at = aligned(at + name.len() as u64 + 1);
            }
            END_NODE => depth -= 1,
            PROPERTY => {
                let (size, name) = (word_at(at), c_string(strings + u64::from(word_at(at + 4))));
                at += 8;
                if depth == 2 && in_chosen && name == b"bootargs" {
                    BOOTARGS.store(at, Relaxed);
                    BOOTARGS_LEN.store(size.saturating_sub(1) as usize, Relaxed);
                }
                at = aligned(at + u64::from(size));
            }
            NOP => {}
            _ => break,
        }
    }
    CPUS.store(cpus.max(1), Relaxed);
}

/// Returns the number of CPUs of the machine.
pub fn cpus() -> usize {
    CPUS.load(Relaxed)
}

/// Returns the command line.
pub fn bootargs() -> &'static str {
    let (at, len) = (BOOTARGS.load(Relaxed), BOOTARGS_LEN.load(Relaxed));
    if at == 0 {
        return "";
    }
    // SAFETY: these are the property's bytes, which are never changed.
    let bytes = unsafe { core::slice::from_raw_parts(at as *const u8, len) };
    core::str::from_utf8(bytes).unwrap_or("")
}

/// Returns whether the command line has this word.
pub fn word(wanted: &str) -> bool {
    bootargs().split(' ').any(|word| word == wanted)
}

/// Returns the text after `name=` on the command line.
pub fn value(name: &str) -> Option<&'static str> {
    let mut words = bootargs().split(' ');
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn word_at(address: u64) -> u32 {
    // SAFETY: the address is inside the tree, by its own offsets. Its words are aligned.
    u32::from_be(unsafe { (address as *const u32).read_volatile() })
}

fn c_string(address: u64) -> &'static [u8] {
    let start = address as *const u8;
    let mut len = 0;
    // SAFETY: the tree's strings end with a zero.
    unsafe {
        while start.add(len).read_volatile() != 0 {
            len += 1;
        }
        core::slice::from_raw_parts(start, len)
    }
}

fn aligned(address: u64) -> u64 {
    address.next_multiple_of(4)
}
