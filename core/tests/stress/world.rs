//! The host, the guest, and the books of what was sent and what came.

#![allow(clippy::disallowed_types)] // the tests take turns

use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::{env, hint, panic};

use vgic_core::Vgic;
use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::reclaim::Reclaim;

/// Runs one test at a time: the threads of one test are enough for a machine.
pub(crate) fn alone(test: impl FnOnce()) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    test();
}

/// `n`, scaled by `VGIC_STRESS_SCALE` percent, and at least 1.
pub(crate) fn scaled(n: u32) -> u32 {
    // Without optimisation everything takes several times as long.
    let default = if cfg!(debug_assertions) { 20 } else { 100 };
    let percent = match env::var("VGIC_STRESS_SCALE") {
        Ok(percent) => percent.parse().expect("VGIC_STRESS_SCALE is a number of percent"),
        Err(_) => default,
    };
    (u64::from(n) * percent / 100).max(1) as u32
}

/// Numbers that look random (xorshift).
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

    /// Below `n`.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    /// Lets others go first, now and then.
    pub(crate) fn dawdle(&mut self) {
        match self.below(32) {
            0 => thread::yield_now(),
            1..12 => (0..self.below(200)).for_each(|_| hint::spin_loop()),
            _ => {}
        }
    }
}

/// What was sent and what came, for one interrupt.
#[derive(Default)]
pub(crate) struct Book {
    /// Injections begun. The number of an injection stands for the data that it announces.
    sent: AtomicU64,
    /// Injections that were answered with `Pending`.
    pending: AtomicU64,
    /// How often the guest took it.
    taken: AtomicU64,
    /// What the guest found in `sent` when it took it last.
    seen: AtomicU64,
    /// The vCPU that took it last.
    taken_by: AtomicU32,
    /// A guest has taken it, and not ended it yet.
    in_service: AtomicBool,
    /// Data in memory, of which only the interrupt says that it is there.
    letter: UnsafeCell<u64>,
    /// The last letter that was read.
    answered: AtomicU64,
}

// SAFETY: `letter` belongs to the one injector that writes letters (`Storm::write`) while `answered` equals `sent`, and
// otherwise to the guest that takes the interrupt.
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

    /// Begins a new page; returns sent, seen, pending, taken, answered.
    pub(crate) fn turn_page(&self) -> [u64; 5] {
        [&self.sent, &self.seen, &self.pending, &self.taken, &self.answered]
            .map(|n| n.swap(0, Ordering::Relaxed))
    }

    #[allow(unsafe_code)]
    fn write_letter(&self, letter: u64) {
        // SAFETY: see the Sync above. Nothing but the engine orders this before the guest's reading.
        unsafe { *self.letter.get() = letter };
    }

    #[allow(unsafe_code)]
    fn read_letter(&self) -> u64 {
        // SAFETY: as above.
        unsafe { *self.letter.get() }
    }
}

/// What the host knows of a vCPU.
#[derive(Default)]
struct HostVcpu {
    kicked: AtomicBool,
    entries: AtomicU64,
    lpis_taken: AtomicU64,
}

/// SPIs that have a book, and all private interrupts.
const WIRED: u32 = 64;

/// The host of one VM.
pub(crate) struct Host {
    vcpus: Vec<HostVcpu>,
    books: Vec<Book>,
    rules: Rules,
}

/// What is checked when an interrupt is taken.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rules {
    /// No interrupt may be taken by two vCPUs at once.
    pub(crate) exclusive: bool,
    /// Each is a letter (see [`Storm::write`]).
    pub(crate) letters: bool,
}

impl Kick for Host {
    fn kick(&self, vcpu: VcpuId) {
        // Release: pairs with the Acquire of `Guest::turn`, as the contract of a kick wants it.
        self.vcpus[vcpu.index()].kicked.swap(true, Ordering::AcqRel);
        // A real one is a system call.
        dawdle();
    }
}

/// Lets others go first, now and then.
fn dawdle() {
    thread_local! {
        static RNG: Cell<u64> = const { Cell::new(1) };
    }
    let mut rng = Rng(RNG.get());
    rng.dawdle();
    RNG.set(rng.0);
}

/// An engine that dawdles in its critical moments, if it has been built to be watched.
pub(crate) trait Build: Engine {
    fn build(config: &Config, kick: Arc<dyn Kick>) -> Self {
        Self::new(config, kick).expect("a good configuration")
    }
}

#[cfg(feature = "locked")]
impl Build for vgic_core::locked::LockedVgic {}

#[cfg(not(feature = "trace"))]
impl<R: Reclaim> Build for Vgic<R> {}

#[cfg(feature = "trace")]
impl<R: Reclaim> Build for Vgic<R> {
    fn build(config: &Config, kick: Arc<dyn Kick>) -> Self {
        use vgic_core::trace::{TraceEvent, Tracer};
        /// Whenever a reference is taken or given back, what belongs to that is half done.
        struct Dawdler;
        impl Tracer for Dawdler {
            fn event(&self, _: &TraceEvent) {
                dawdle();
            }
        }
        Self::with_tracer(config, kick, Arc::new(Dawdler)).expect("a good configuration")
    }
}

impl Host {
    pub(crate) fn new(vcpus: u16, lpis: u32, rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            vcpus: (0..vcpus).map(|_| HostVcpu::default()).collect(),
            books: (0..WIRED + lpis).map(|_| Book::default()).collect(),
            rules,
        })
    }

    /// The book of an interrupt. If there are more LPIs than books, they share them.
    pub(crate) fn book(&self, intid: Intid) -> &Book {
        let lpis = self.books.len() - WIRED as usize;
        match intid.0.checked_sub(LPI_BASE) {
            Some(n) => &self.books[WIRED as usize + n as usize % lpis],
            None => &self.books[intid.0 as usize],
        }
    }

    pub(crate) fn entries(&self, vcpu: usize) -> u64 {
        // Acquire: pairs with the Release of `Guest::enter`.
        self.vcpus[vcpu].entries.load(Ordering::Acquire)
    }

    /// LPIs that the guest has taken on one vCPU.
    pub(crate) fn lpis_taken(&self, vcpu: usize) -> u64 {
        self.vcpus[vcpu].lpis_taken.load(Ordering::Relaxed)
    }

    /// Makes a vCPU go through an entry and an exit that begin after now. False if the stage ends first.
    pub(crate) fn pass_through(&self, stage: &Stage, vcpu: usize) -> bool {
        // The first may have begun already.
        let until = self.entries(vcpu) + 2;
        stage.until(|| {
            self.kick(VcpuId(vcpu as u16));
            self.entries(vcpu) >= until
        })
    }

    /// With nothing going on: every injection was followed by a delivery, and none was delivered twice.
    pub(crate) fn balance(&self) {
        self.close_books(true);
    }

    /// The same, where what is pending may be withdrawn.
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

/// One vCPU: its thread's loop, and its guest.
pub(crate) struct Guest<E: Engine> {
    pub(crate) vcpu: E::Vcpu,
    pub(crate) cpu: CpuInterface,
    pub(crate) id: usize,
    pub(crate) host: Arc<Host>,
    pub(crate) rng: Rng,
    /// Taken, but not ended before the last exit.
    held: Option<Intid>,
    /// It does not wait for a kick: something is pending, or the guest has just done something.
    busy: bool,
    /// The guest never leaves before it has taken and ended everything, and writes it down.
    pub(crate) diligent: bool,
    pub(crate) log: Vec<Intid>,
}

impl<E: Engine> Guest<E> {
    /// Enters the guest if there is a reason to; returns whether there was.
    pub(crate) fn turn(&mut self) -> bool {
        let kicked = self.host.vcpus[self.id].kicked.swap(false, Ordering::AcqRel);
        let go = kicked || self.busy;
        if go {
            self.enter();
        }
        go
    }

    /// One entry and exit.
    pub(crate) fn enter(&mut self) {
        let flushed = self.vcpu.flush(&mut self.cpu);
        let acted = self.run_guest();
        self.vcpu.fold(&mut self.cpu);
        self.busy = flushed.pending > 0 || acted;
        // Release: pairs with the Acquire of `Host::entries`.
        self.host.vcpus[self.id].entries.fetch_add(1, Ordering::Release);
    }

    /// Powers the vCPU off, if its guest has nothing active. True if it did.
    pub(crate) fn close(&mut self) -> bool {
        if self.held.is_some() {
            return false;
        }
        self.vcpu.close(&mut self.cpu);
        // When it is powered on again, it is kicked if there is something for it. What it has mail for while it is
        // off is left from before.
        self.busy = self.vcpu.has_mail();
        true
    }

    /// Runs the guest until there is nothing to do, and returns what it took, in that order.
    pub(crate) fn serve(&mut self) -> Vec<Intid> {
        let diligent = std::mem::replace(&mut self.diligent, true);
        while self.turn() {}
        self.diligent = diligent;
        std::mem::take(&mut self.log)
    }

    /// What the guest does between an entry and an exit; returns whether it did anything.
    fn run_guest(&mut self) -> bool {
        let mut acted = false;
        if let Some(intid) = self.held.take() {
            self.end(intid);
            acted = true;
        }
        let habit = if self.diligent { u32::MAX } else { self.rng.below(8) };
        if habit < 2 {
            self.rng.dawdle();
        }
        while habit != 0
            && let Some(intid) = self.take()
        {
            acted = true;
            if habit < 4 {
                self.rng.dawdle();
            }
            if habit == 1 {
                self.held = Some(intid);
                break;
            }
            self.end(intid);
        }
        if habit < 4 {
            self.rng.dawdle();
        }
        acted
    }

    fn take(&mut self) -> Option<Intid> {
        let intid = self.cpu.iar1();
        if intid == Intid(SPURIOUS) {
            return None;
        }
        let book = self.host.book(intid);
        if self.host.rules.exclusive && !intid.is_private() {
            let twice = book.in_service.swap(true, Ordering::Relaxed);
            assert!(!twice, "vCPU {} takes {intid}, which is in service", self.id);
        }
        book.taken.fetch_add(1, Ordering::Relaxed);
        book.taken_by.store(self.id as u32, Ordering::Relaxed);
        book.seen.fetch_max(book.sent.load(Ordering::Relaxed), Ordering::Relaxed);
        if intid.is_lpi() {
            self.host.vcpus[self.id].lpis_taken.fetch_add(1, Ordering::Relaxed);
        }
        if self.host.rules.letters {
            let letter = book.read_letter();
            assert_eq!(letter, book.sent.load(Ordering::Relaxed), "{intid}: an old letter");
            // Release: pairs with the Acquire of `Storm::write`.
            book.answered.store(letter, Ordering::Release);
        }
        if self.diligent {
            self.log.push(intid);
        }
        Some(intid)
    }

    fn end(&mut self, intid: Intid) {
        if self.host.rules.exclusive && !intid.is_private() {
            let served = self.host.book(intid).in_service.swap(false, Ordering::Relaxed);
            assert!(served, "vCPU {} ends {intid}, which is not in service", self.id);
        }
        let _ = self.cpu.eoir1(intid);
    }
}

/// Whether an episode goes on.
#[derive(Default)]
pub(crate) struct Stage {
    over: AtomicBool,
    here: AtomicU32,
}

impl Stage {
    pub(crate) fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Waits for something; returns false if the episode ends first.
    pub(crate) fn until(&self, mut done: impl FnMut() -> bool) -> bool {
        loop {
            if done() {
                return true;
            }
            if !self.goes_on() {
                return false;
            }
            thread::yield_now();
        }
    }

    /// Waits until `n` threads are here.
    fn meet(&self, n: u32) {
        self.here.fetch_add(1, Ordering::AcqRel);
        let mut spins = 0;
        self.until(|| {
            while spins < 1000 && self.here.load(Ordering::Acquire) < n {
                spins += 1;
                hint::spin_loop();
            }
            self.here.load(Ordering::Acquire) >= n
        });
    }
}

/// Ends the episode: when it has come to its end, or when a thread panics, so that the others do not wait for it.
struct End<'a>(&'a Stage);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|what| panic::resume_unwind(what))
}

/// What one thread does in an episode.
pub(crate) type Work<'a> = Box<dyn FnOnce(&Stage) + Send + 'a>;

/// Starts `work` at once, each piece on its own thread, and `run_vcpu` on one for each guest. The episode is over when all
/// work is done; then the guests go on until nothing is left to do.
pub(crate) fn together_with<E: Engine>(
    guests: &mut [Guest<E>],
    work: Vec<Work<'_>>,
    run_vcpu: impl Fn(&mut Guest<E>) + Sync,
) {
    let (stage, n) = (Stage::default(), work.len() as u32);
    let (stage, run_vcpu) = (&stage, &run_vcpu);
    thread::scope(|scope| {
        let end = End(stage);
        let start = |guest| {
            move || {
                let _end = End(stage);
                let guest: &mut Guest<E> = guest;
                while stage.goes_on() {
                    run_vcpu(guest);
                }
            }
        };
        let vcpus: Vec<_> = guests.iter_mut().map(|guest| scope.spawn(start(guest))).collect();
        let work = work.into_iter().map(|work| {
            scope.spawn(move || {
                // Not for a thread that has done its work.
                let end = End(stage);
                stage.meet(n);
                work(stage);
                std::mem::forget(end);
            })
        });
        let work: Vec<_> = work.collect();
        work.into_iter().for_each(join);
        drop(end);
        vcpus.into_iter().for_each(join);
    });
    settle(guests);
}

/// The same, with vCPUs that do nothing but run.
pub(crate) fn together<E: Engine>(guests: &mut [Guest<E>], work: Vec<Work<'_>>) {
    together_with(guests, work, |guest| {
        if !guest.turn() {
            thread::yield_now();
        }
    });
}

/// Lets each vCPU go on for as long as it was kicked or has something to do.
pub(crate) fn settle<E: Engine>(guests: &mut [Guest<E>]) {
    // Each takes its turn, so nothing short-circuits.
    while guests.iter_mut().map(Guest::turn).filter(|&went| went).count() > 0 {}
    for guest in guests {
        assert!(!guest.vcpu.has_mail(), "vCPU {} was not kicked for its mail", guest.id);
    }
}

pub(crate) const DEV: DeviceId = DeviceId(7);

/// The n-th LPI.
pub(crate) fn lpi(n: u32) -> Intid {
    Intid(LPI_BASE + n)
}

/// One VM.
pub(crate) struct World<E: Build> {
    pub(crate) guests: Vec<Guest<E>>,
    pub(crate) msi: E::Msi,
    pub(crate) host: Arc<Host>,
    pub(crate) vgic: E,
}

pub(crate) fn config(vcpus: u16) -> Config {
    Config { participants: 32, ..Config::with_vcpus(vcpus) }
}

impl<E: Build> World<E> {
    /// All vCPUs open, with `lrs` list registers each; books for `lpis` LPIs.
    pub(crate) fn new(config: &Config, lrs: usize, host: &Arc<Host>) -> Self {
        let vgic = E::build(config, host.clone());
        let guest = |id: u16| {
            let mut cpu = CpuInterface::new(lrs).expect("1 to 16");
            cpu.set_pmr(0xff);
            cpu.set_igrpen1(1);
            let mut vcpu = vgic.vcpu(VcpuId(id)).expect("a free vCPU");
            vcpu.open();
            let (host, rng) = (host.clone(), Rng::new(id.into()));
            let id = id.into();
            let (held, busy, diligent, log) = (None, false, false, Vec::new());
            Guest { vcpu, cpu, id, host, rng, held, busy, diligent, log }
        };
        let guests = (0..config.vcpus).map(guest).collect();
        let msi = vgic.msi().expect("room");
        Self { guests, msi, host: host.clone(), vgic }
    }

    /// `vcpus` vCPUs, and LPIs 0 to `lpis`, of one priority, dealt out to them: event n of [`DEV`] is LPI n.
    pub(crate) fn with_lpis(vcpus: u16, lrs: usize, lpis: u32) -> Self {
        let rules = Rules { exclusive: true, letters: false };
        Self::with_rules(vcpus, lrs, lpis, rules)
    }

    pub(crate) fn with_rules(vcpus: u16, lrs: usize, lpis: u32, rules: Rules) -> Self {
        let mut world = Self::new(&config(vcpus), lrs, &Host::new(vcpus, lpis, rules));
        (0..lpis).for_each(|n| map::<E>(&mut world.msi, n, n % u32::from(vcpus), 0xa0));
        world
    }

    /// A thread's means to inject LPIs 0 to `lpis`.
    pub(crate) fn storm(&mut self, lpis: u32, seed: u64) -> Storm<E> {
        Storm {
            injector: self.vgic.injector().expect("room"),
            domain: self.msi.domain(),
            routes: (0..lpis).map(|n| self.msi.route(DEV, EventId(n)).expect("room")).collect(),
            host: self.host.clone(),
            rng: Rng::new(seed + 100),
        }
    }

    /// With nothing going on: each LPI below `lpis` is injected, and delivered, once.
    pub(crate) fn probe(&mut self, storm: &mut Storm<E>, lpis: u32) {
        for n in 0..lpis {
            assert_eq!(storm.inject(n), Injected::Pending, "LPI {n} was not pending");
        }
        settle(&mut self.guests);
        for n in 0..lpis {
            assert_eq!(self.host.book(lpi(n)).taken(), 1, "LPI {n} was injected once");
        }
        self.host.balance();
    }

    /// Unmaps everything of [`DEV`]: then nothing is left, though the vCPUs are still there.
    pub(crate) fn wind_up(mut self) {
        self.msi.unmap_device(DEV);
        settle(&mut self.guests);
        nothing_left(&self.vgic, &mut self.msi);
    }
}

/// With nothing mapped and nothing going on: everything is reclaimed.
pub(crate) fn nothing_left<E: Engine>(vgic: &E, msi: &mut E::Msi) {
    // One call need not see the end of a grace period, and what is freed can leave garbage of its own.
    let mut calls = 0;
    while vgic.usage() != Usage::default() && calls < 32 {
        msi.collect();
        calls += 1;
    }
    assert_eq!(vgic.usage(), Usage::default());
}

/// Maps event `n` of [`DEV`] to LPI `n`.
pub(crate) fn map<E: Engine>(msi: &mut E::Msi, n: u32, target: u32, priority: u8) {
    let (target, config) = (VcpuId(target as u16), LpiConfig::enabled(priority));
    msi.map(DEV, EventId(n), lpi(n), target, config).expect("a good mapping");
}

/// One thread's means to inject.
pub(crate) struct Storm<E: Engine> {
    pub(crate) injector: E::Injector,
    pub(crate) domain: E::Domain,
    routes: Vec<E::Route>,
    host: Arc<Host>,
    pub(crate) rng: Rng,
}

impl<E: Engine> Storm<E> {
    /// Injects LPI `n`, by table or by route.
    pub(crate) fn inject(&mut self, n: u32) -> Injected {
        let by_route = self.rng.one_in(2);
        self.host.book(lpi(n)).send(|| {
            if by_route {
                self.injector.inject_route(&self.routes[n as usize])
            } else {
                self.injector.inject(&self.domain, DEV, EventId(n))
            }
        })
    }

    /// Injects LPI `n` as an announcement of a letter, unless the last letter has not been read yet. For the one storm that
    /// writes to `n`.
    pub(crate) fn write(&mut self, n: u32) {
        let host = self.host.clone();
        let book = host.book(lpi(n));
        let sent = book.sent.load(Ordering::Relaxed);
        // Acquire: pairs with the Release of `Guest::take`.
        if book.answered.load(Ordering::Acquire) == sent {
            book.write_letter(sent + 1);
            assert_eq!(self.inject(n), Injected::Pending, "the last one was taken");
        }
    }

    /// Injects LPIs below `lpis` at random, `times` times.
    pub(crate) fn run(&mut self, lpis: u32, times: u32) {
        for _ in 0..times {
            let n = self.rng.below(lpis);
            let _ = self.inject(n);
            self.rng.dawdle();
        }
    }
}
