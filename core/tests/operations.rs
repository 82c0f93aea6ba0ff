//! Keeps `perf-reports/operations.md` true, which lists the atomic operations and the allocations
//! of each operation.
//!
//! `VGIC_UPDATE=1 cargo test -p vgic-core --features count-ops --test operations` rewrites the
//! table.

#![allow(unsafe_code)] // A global allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::{env, fs};

use vgic_core::Vgic;
use vgic_core::counted::{Counts, counted, is_counting};
use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::*;
use vgic_core::ids::*;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is forwarded to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_counting() {
            ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        }
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

struct NoKick;

impl Kick for NoKick {
    fn kick(&self, _: VcpuId) {}
}

const DEVICE: DeviceId = DeviceId(8);
const LPIS: u32 = 64;

/// A VM with LPIs that are mapped to vCPU 0.
struct Vm {
    vcpu: <Vgic as Engine>::Vcpu,
    cpu: CpuInterface,
    injector: <Vgic as Engine>::Injector,
    msi: <Vgic as Engine>::Msi,
    routes: Vec<<Vgic as Engine>::Route>,
}

impl Vm {
    fn new() -> Self {
        let config = Config { lpis: 2 * LPIS, ..Config::with_vcpus(2) };
        let vgic = Vgic::new(&config, Arc::new(NoKick)).unwrap();
        let mut msi = vgic.msi().unwrap();
        let mut routes = Vec::new();
        for n in 0..LPIS {
            let (event, intid) = (EventId(n), Intid(LPI_BASE + n));
            msi.map(DEVICE, event, intid, VcpuId(0), LpiConfig::enabled(0xa0)).unwrap();
            routes.push(msi.route(DEVICE, event).unwrap());
        }
        let mut vcpu = vgic.vcpu(VcpuId(0)).unwrap();
        vcpu.open();
        let mut cpu = CpuInterface::new(4).unwrap();
        cpu.set_pmr(0xff);
        cpu.set_igrpen1(1);
        let injector = vgic.injector().unwrap();
        let mut vm = Self { vcpu, cpu, injector, msi, routes };
        // The routes have their LPIs, and the vCPU knows its list registers.
        for n in 0..LPIS {
            vm.inject(n);
        }
        while vm.visit() {}
        vm
    }

    fn inject(&self, n: u32) {
        let _ = self.injector.inject_route(&self.routes[n as usize]);
    }

    fn flush(&mut self) {
        self.vcpu.flush(&mut self.cpu);
    }

    /// Takes and ends one interrupt as the guest. Returns whether there was one.
    fn take(&mut self) -> bool {
        let intid = self.cpu.iar1();
        if intid.is_lpi() {
            let _ = self.cpu.eoir1(intid);
        }
        intid.is_lpi()
    }

    fn fold(&mut self) {
        self.vcpu.fold(&mut self.cpu);
    }

    fn visit(&mut self) -> bool {
        self.flush();
        let taken = self.take();
        self.fold();
        taken
    }
}

type Step = fn(&mut Vm);

/// The counted operations: the name, the preparation, the operation itself, and the words that its
/// read-modify-writes change if it is a part of the full cycle.
const OPERATIONS: &[(&str, Step, Step, &str)] = &[
    ("inject by MsiRoute", |_| (), |vm| vm.inject(0), "P, SIGNALED, mailbox"),
    ("entry that delivers it", |vm| vm.inject(0), Vm::flush, "drain, claim, take"),
    (
        "exit after its end",
        |vm| {
            vm.inject(0);
            vm.flush();
            vm.take();
        },
        Vm::fold,
        "disown",
    ),
    (
        "full cycle by MsiRoute",
        |_| (),
        |vm| {
            vm.inject(0);
            vm.visit();
        },
        "",
    ),
    ("inject by MsiRoute, coalesced", |vm| vm.inject(0), |vm| vm.inject(0), ""),
    (
        "inject by device and event",
        |_| (),
        |vm| {
            let _ = vm.injector.inject(&vm.msi.domain(), DEVICE, EventId(0));
        },
        "",
    ),
    (
        "inject by device and event, coalesced",
        |vm| vm.inject(0),
        |vm| {
            let _ = vm.injector.inject(&vm.msi.domain(), DEVICE, EventId(0));
        },
        "",
    ),
    (
        "inject, no such event",
        |_| (),
        |vm| {
            let _ = vm.injector.inject(&vm.msi.domain(), DEVICE, EventId(LPIS));
        },
        "",
    ),
    (
        "entry and exit, nothing pending",
        |_| (),
        |vm| {
            vm.flush();
            vm.fold();
        },
        "",
    ),
    (
        "entry and exit, 64 pending, nothing taken",
        |vm| {
            (0..LPIS).for_each(|n| vm.inject(n));
            vm.flush();
            vm.fold();
        },
        |vm| {
            vm.flush();
            vm.fold();
        },
        "",
    ),
    (
        "full cycle of one, 63 others pending",
        |vm| {
            (0..LPIS).for_each(|n| vm.inject(n));
            vm.visit();
            vm.inject(0);
        },
        |vm| {
            vm.visit();
            vm.inject(1);
        },
        "",
    ),
    ("entry that takes in 64", |vm| (0..LPIS).for_each(|n| vm.inject(n)), Vm::flush, ""),
    (
        "map an event to a new LPI",
        |_| (),
        |vm| {
            let (event, intid) = (EventId(LPIS), Intid(LPI_BASE + LPIS));
            vm.msi.map(DEVICE, event, intid, VcpuId(0), LpiConfig::enabled(0xa0)).unwrap();
        },
        "",
    ),
    ("unmap an event", |_| (), |vm| vm.msi.unmap(DEVICE, EventId(0)).unwrap(), ""),
    ("retarget, idle", |_| (), |vm| vm.msi.retarget(DEVICE, EventId(0), VcpuId(1)).unwrap(), ""),
    (
        "retarget, pending",
        |vm| vm.inject(0),
        |vm| {
            vm.msi.retarget(DEVICE, EventId(0), VcpuId(1)).unwrap();
        },
        "",
    ),
    ("clear, pending", |vm| vm.inject(0), |vm| vm.msi.clear(DEVICE, EventId(0)).unwrap(), ""),
];

const HEAD: &str = "# What an operation does to atomics

Counted, not timed: the same on every machine. `core/tests/operations.rs` counts again with every `cargo xtask test`, and fails if this table is
not what it finds; `VGIC_UPDATE=1 cargo test -p vgic-core --features count-ops --test operations` writes it anew. Of the lock-free engine
with fixed slots, without contention; fences are explicit ones; prefetches, which are hints, are not in it. Lines are cache lines of 64 bytes that hold atomics: how many are written says what an operation
costs others. The first three rows are the full cycle of one LPI, and the last column says of what their read-modify-writes are.

| operation | read-modify-writes | of which failed | fences | atomic stores | lines written | lines read or written | allocations | of |
|---|---|---|---|---|---|---|---|---|
";

#[test]
#[cfg_attr(feature = "counters", ignore = "the engine's own counters would be counted, too")]
fn the_table_is_true() {
    let mut table = HEAD.to_owned();
    for (name, before, step, words) in OPERATIONS {
        let mut vm = Vm::new();
        before(&mut vm);
        ALLOCATIONS.set(0);
        let counts = counted(|| step(&mut vm));
        let Counts { rmws, failed, fences, stores, lines_written, lines, .. } = counts;
        let allocations = ALLOCATIONS.get();
        // The allocator's placement of tables decides how many lines their words are on.
        let control = ["map", "unmap"].iter().any(|word| name.starts_with(word));
        let line = |n: u64| if control { "-".to_owned() } else { n.to_string() };
        let (written, touched) = (line(lines_written), line(lines));
        writeln!(
            table,
            "| {name} | {rmws} | {failed} | {fences} | {stores} | {written} | {touched} | {allocations} | {words} |"
        )
        .unwrap();
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../perf-reports/operations.md");
    if env::var_os("VGIC_UPDATE").is_some() {
        fs::write(&file, &table).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap();
    assert!(committed == table, "{} is not true any more. It should be:\n{table}", file.display());
}
