//! The host, and its records of the interrupts that were sent and that arrived.

use std::cell::{Cell, UnsafeCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::{env, hint, thread};

use vgic_core::engine::*;
use vgic_core::ids::*;

use crate::threads::Stage;

/// Returns `n`, scaled by `VGIC_STRESS_SCALE` percent, and at least 1.
pub(crate) fn scaled(n: u32) -> u32 {
    // Builds without optimization take several times as long.
    let default = if cfg!(debug_assertions) { 20 } else { 100 };
    let percent = match env::var("VGIC_STRESS_SCALE") {
        Ok(percent) => percent.parse().expect("VGIC_STRESS_SCALE is a number of percent"),
        Err(_) => default,
    };
    (u64::from(n) * percent / 100).max(1) as u32
}

/// A generator of pseudo-random numbers (xorshift).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `n`.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    /// Lets other threads go first, now and then.
    pub(crate) fn dawdle(&mut self) {
        match self.below(32) {
            0 => thread::yield_now(),
            1..12 => (0..self.below(200)).for_each(|_| hint::spin_loop()),
            _ => {}
        }
    }
}

/// The record of one interrupt.
#[derive(Default)]
pub(crate) struct Book {
    /// The number of injections begun. The number of an injection stands for the data that it
    /// announces.
    sent: AtomicU64,
    /// The number of injections that returned `Pending`.
    pending: AtomicU64,
    /// The number of times that the guest took the interrupt.
    taken: AtomicU64,
    /// The value of `sent` that the guest found when it last took the interrupt.
    seen: AtomicU64,
    /// The vCPU that last took the interrupt.
    taken_by: AtomicU32,
    /// Set while a guest has taken the interrupt and not ended it yet.
    in_service: AtomicBool,
    /// Data in memory that only the interrupt announces.
    letter: UnsafeCell<u64>,
    /// The last letter that was read.
    answered: AtomicU64,
}

// SAFETY: while `answered` equals `sent`, `letter` belongs to the one injector that writes letters,
// and otherwise to the guest that takes the interrupt.
#[allow(unsafe_code)]
unsafe impl Sync for Book {}

impl Book {
    pub(crate) fn send(&self, inject: impl FnOnce() -> Injected) -> Injected {
        self.sent.fetch_add(1, Ordering::Relaxed);
        let result = inject();
        if result == Injected::Pending {
            self.pending.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    pub(crate) fn taken_by(&self) -> u32 {
        self.taken_by.load(Ordering::Relaxed)
    }

    /// Begins a new page. Returns sent, seen, pending, taken, answered.
    pub(crate) fn turn_page(&self) -> [u64; 5] {
        [&self.sent, &self.seen, &self.pending, &self.taken, &self.answered]
            .map(|n| n.swap(0, Ordering::Relaxed))
    }

    /// Writes the next letter, unless the last one has not been read yet. Returns whether it did.
    /// The caller, which is the only writer here, injects in that case.
    #[allow(unsafe_code)]
    pub(crate) fn write(&self) -> bool {
        let sent = self.sent.load(Ordering::Relaxed);
        // Acquire: pairs with the Release of `Host::has_taken`.
        let free = self.answered.load(Ordering::Acquire) == sent;
        if free {
            // SAFETY: see the Sync above. Nothing but the engine orders this before the guest's
            // reading.
            unsafe { *self.letter.get() = sent + 1 };
        }
        free
    }

    #[allow(unsafe_code)]
    fn read_letter(&self) -> u64 {
        // SAFETY: as above.
        unsafe { *self.letter.get() }
    }
}

/// The host's data about a vCPU.
#[derive(Default)]
struct HostVcpu {
    kicked: AtomicBool,
    entries: AtomicU64,
    lpis_taken: AtomicU64,
}

/// The number of wired INTIDs with a book: all private interrupts, and SPIs below 64.
const WIRED: u32 = 64;

/// The host of one VM.
pub(crate) struct Host {
    vcpus: Vec<HostVcpu>,
    books: Vec<Book>,
    rules: Rules,
}

/// The checks that are made when an interrupt is taken.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rules {
    /// No SPI may be taken by two vCPUs at once. (LPIs have no active state: an LPI that is moved
    /// may be.)
    pub(crate) exclusive: bool,
    /// Each injection announces a letter (see [`Book::write`]).
    pub(crate) letters: bool,
}

impl Kick for Host {
    fn kick(&self, vcpu: VcpuId) {
        // Release: pairs with the Acquire of `take_kick`, as the contract of a kick requires.
        self.vcpus[vcpu.index()].kicked.swap(true, Ordering::AcqRel);
        // A real kick is a system call.
        dawdle();
    }
}

/// Lets other threads go first, now and then. Any thread may call it.
pub(crate) fn dawdle() {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static RNG: Cell<Option<Rng>> = const { Cell::new(None) };
    }
    let rng = || Rng::new(THREADS.fetch_add(1, Ordering::Relaxed));
    let mut rng = RNG.take().unwrap_or_else(rng);
    rng.dawdle();
    RNG.set(Some(rng));
}

impl Host {
    pub(crate) fn new(vcpus: u16, lpis: u32, rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            vcpus: (0..vcpus).map(|_| HostVcpu::default()).collect(),
            books: (0..WIRED + lpis).map(|_| Book::default()).collect(),
            rules,
        })
    }

    /// Returns the book of an interrupt. If there are more LPIs than books, they share them.
    pub(crate) fn book(&self, intid: Intid) -> &Book {
        let lpis = self.books.len() - WIRED as usize;
        match intid.0.checked_sub(LPI_BASE) {
            Some(n) => &self.books[WIRED as usize + n as usize % lpis],
            None => &self.books[intid.0 as usize],
        }
    }

    /// Takes a vCPU's kick. Returns whether there was one.
    pub(crate) fn take_kick(&self, vcpu: usize) -> bool {
        self.vcpus[vcpu].kicked.swap(false, Ordering::AcqRel)
    }

    /// Records that a vCPU has completed an entry and exit.
    pub(crate) fn has_exited(&self, vcpu: usize) {
        // Release: pairs with the Acquire of `entries`.
        self.vcpus[vcpu].entries.fetch_add(1, Ordering::Release);
    }

    /// Records that the guest has acknowledged an interrupt.
    pub(crate) fn has_taken(&self, vcpu: usize, intid: Intid) {
        let book = self.book(intid);
        if self.rules.exclusive && intid.is_spi() {
            let twice = book.in_service.swap(true, Ordering::Relaxed);
            assert!(!twice, "vCPU {vcpu} takes {intid}, which is in service");
        }
        book.taken.fetch_add(1, Ordering::Relaxed);
        book.taken_by.store(vcpu as u32, Ordering::Relaxed);
        book.seen.fetch_max(book.sent.load(Ordering::Relaxed), Ordering::Relaxed);
        if intid.is_lpi() {
            self.vcpus[vcpu].lpis_taken.fetch_add(1, Ordering::Relaxed);
        }
        if self.rules.letters {
            let letter = book.read_letter();
            assert_eq!(letter, book.sent.load(Ordering::Relaxed), "{intid}: an old letter");
            // Release: pairs with the Acquire of `write`.
            book.answered.store(letter, Ordering::Release);
        }
    }

    /// Records that the guest is about to end an interrupt.
    pub(crate) fn is_ended(&self, vcpu: usize, intid: Intid) {
        if self.rules.exclusive && intid.is_spi() {
            let served = self.book(intid).in_service.swap(false, Ordering::Relaxed);
            assert!(served, "vCPU {vcpu} ends {intid}, which is not in service");
        }
    }

    pub(crate) fn entries(&self, vcpu: usize) -> u64 {
        // Acquire: pairs with the Release of `has_exited`.
        self.vcpus[vcpu].entries.load(Ordering::Acquire)
    }

    /// Returns the number of LPIs that the guest has taken on one vCPU.
    pub(crate) fn lpis_taken(&self, vcpu: usize) -> u64 {
        self.vcpus[vcpu].lpis_taken.load(Ordering::Relaxed)
    }

    /// Makes a vCPU go through an entry and an exit that begin after now. Returns false if the
    /// stage ends first.
    pub(crate) fn pass_through(&self, stage: &Stage, vcpu: usize) -> bool {
        // The first entry may have begun already.
        let until = self.entries(vcpu) + 2;
        stage.until(|| {
            self.kick(VcpuId(vcpu as u16));
            self.entries(vcpu) >= until
        })
    }

    /// Checks that every injection was followed by a delivery, and that none was delivered twice.
    /// No other thread may run.
    pub(crate) fn balance(&self) {
        self.close_books(true);
    }

    /// Checks that no injection was delivered twice. Pending interrupts may have been withdrawn.
    pub(crate) fn balance_without_losses(&self) {
        self.close_books(false);
    }

    fn close_books(&self, all_arrive: bool) {
        for (n, book) in self.books.iter().enumerate() {
            let [sent, seen, pending, taken, answered] = book.turn_page();
            assert!(answered == sent || !self.rules.letters, "book {n}: a letter was not read");
            if all_arrive {
                assert_eq!(
                    seen, sent,
                    "book {n}: injections begun, and the last one that was seen"
                );
            }
            assert!(
                taken <= pending,
                "book {n}: taken {taken} times, made pending {pending} times"
            );
            assert!(!book.in_service.load(Ordering::Relaxed), "book {n}: never ended");
        }
    }
}
