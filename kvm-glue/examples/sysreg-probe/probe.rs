#![allow(unsafe_code)] // A guest's code, as part of this program, and its memory.

use std::process::ExitCode;
use std::slice;
use std::sync::Arc;
use std::thread;

use kvm_bindings::{kvm_userspace_memory_region, kvm_vcpu_init};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vgic_kvm::core::Vgic;
use vgic_kvm::core::engine::Kick;
use vgic_kvm::core::gic::{Affinity, Gic, GicCpu, Model, Setup};
use vgic_kvm::core::ids::VcpuId;
use vgic_kvm::error::open_kvm;
use vgic_kvm::memory::VmMemory;
use vgic_kvm::sysreg::kvm::{KvmCpu, breakpoints};
use vgic_kvm::sysreg::{Cpu, ExitFor, Handled, Reg, TrapStats, Traps, Vectors};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

std::arch::global_asm!(".pushsection .rodata", include_str!("guest.s"), ".popsection");

unsafe extern "C" {
    static probe_guest: u8;
    static probe_guest_end: u8;
    static probe_second: u8;
}

type Memory = Arc<GuestMemoryMmap<()>>;
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: u64 = 0x40_0000;
/// Read-only, when there are tables; what follows is writable.
const TEXT: u64 = RAM;
const NOTES: u64 = RAM + 0x20_0000;
const RESULT: u64 = RAM + 0x21_0000;
const SECOND: u64 = RAM + 0x21_1000;
const STACK: u64 = RAM + 0x23_0000;
const TABLES: u64 = RAM + 0x30_0000;
const DOORBELL: u64 = 0x0900_0000;
const GICD: u64 = 0x0800_0000;
const GICR: u64 = 0x080a_0000;
/// Where the text is seen in the upper half.
const UPPER: u64 = 0xffff_ff80_0000_0000;

/// SPSR: EL1h, all masked.
const EL1H: u64 = 0x3c5;
/// An exception leaves the flags as they are (ARM DDI 0487, D1.3.5), and so do the traps; QEMU's CPUs clear them.
const NZCV: u64 = 0xf << 28;
const PSCI_0_2: u32 = 1 << 2;
const POWER_OFF: u32 = 1;

const MAIR: u64 = 0x6030_0000_0013_c510;

struct NoKick;
impl Kick for NoKick {
    fn kick(&self, _: VcpuId) {}
}

/// What a guest is to do.
#[derive(Clone, Copy, Debug)]
struct Guest {
    /// Accesses are made, and trapped.
    trapped: bool,
    /// A vector begins with a store instead of an instruction that is emulated.
    push: bool,
    /// In the upper half, by tables; otherwise with the MMU off.
    upper: bool,
    /// With another vCPU.
    second: bool,
    /// Breakpoints to be used.
    breakpoints: usize,
}

struct Outcome {
    notes: Vec<[u64; 8]>,
    taken: [u64; 2],
    /// At each phase.
    stats: Vec<(u32, TrapStats, u64)>,
    second: Option<(TrapStats, u64)>,
}

fn text() -> &'static [u8] {
    // SAFETY: both symbols are of guest.s, one after the other.
    unsafe {
        let start = &raw const probe_guest;
        slice::from_raw_parts(start, (&raw const probe_guest_end).offset_from_unsigned(start))
    }
}

fn gic() -> Result<Gic<Vgic>> {
    let mut setup = Setup::new(40);
    setup.create(Model::V3)?;
    setup.set_spis(32)?;
    for n in 0..2 {
        setup.add_vcpu(Affinity(n))?;
    }
    setup.set_distributor(GICD)?;
    setup.add_redistributors(GICR, 2)?;
    Ok(setup.init(Arc::new(NoKick))?)
}

fn create(vm: &VmFd, n: u64) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(n)?;
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init)?;
    init.features[0] |= PSCI_0_2 | if n > 0 { POWER_OFF } else { 0 };
    vcpu.vcpu_init(&init)?;
    Ok(vcpu)
}

/// 4 KiB, 39 bits. Text is read-only for both exception levels, so that both may execute it.
fn tables(memory: &Memory, vcpu: &VcpuFd) -> Result<()> {
    let (low, high, level2) = (TABLES, TABLES + 0x1000, TABLES + 0x2000);
    let write = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at));
    // Devices; then two blocks of 2 MiB, inner shareable, accessed, attribute 1: of the text, and of data that EL0 does not see.
    write(low, 0x401)?;
    write(low + 8, level2 | 3)?;
    write(high, level2 | 3)?;
    write(level2, TEXT | 0x7c5)?;
    write(level2 + 8, NOTES | 0x705)?;
    vcpu.set_one_reg(MAIR, &0xff00_u64.to_le_bytes())?;
    let cpu = &mut KvmCpu(vcpu);
    cpu.set(Reg::Tcr, 25 | 25 << 16 | 2 << 30 | 2 << 32 | 0x3500_3500)?;
    cpu.set(Reg::Ttbr0, low)?;
    cpu.set(Reg::Ttbr1, high)?;
    let sctlr = cpu.get(Reg::Sctlr)?;
    cpu.set(Reg::Sctlr, sctlr | 0x1005)?;
    Ok(())
}

fn start(guest: &Guest, memory: &Memory, vcpu: &VcpuFd) -> Result<()> {
    // SAFETY: both symbols are of guest.s, one after the other.
    let second = unsafe { (&raw const probe_second).offset_from_unsigned(&raw const probe_guest) };
    let base = if guest.upper { UPPER } else { TEXT };
    let flags = u64::from(guest.trapped) | u64::from(guest.second) << 1;
    let set = [
        (Reg::Pc, base),
        (Reg::Pstate, EL1H),
        (Reg::SpEl1, STACK),
        (Reg::X(0), flags),
        (Reg::X(1), guest.push.into()),
        (Reg::X(19), NOTES),
        (Reg::X(20), DOORBELL),
        (Reg::X(22), if guest.push { 32 } else { 0x150 }),
        (Reg::X(23), GICR),
        (Reg::X(25), GICD),
        (Reg::X(26), TEXT + second as u64),
        (Reg::X(27), SECOND),
        (Reg::X(28), RESULT),
    ];
    let cpu = &mut KvmCpu(vcpu);
    for (reg, value) in set {
        cpu.set(reg, value)?;
    }
    if guest.upper {
        tables(memory, vcpu)?;
    }
    Ok(())
}

/// Runs a vCPU to its end: the machine's, or `end` after it has said that it is on.
fn run(
    vcpu: &mut VcpuFd,
    mut cpu: GicCpu<Vgic>,
    memory: &Memory,
    mut traps: Option<Traps>,
    phase: &mut dyn FnMut(u32, TrapStats, u64),
) -> Result<()> {
    let physical = VmMemory(Arc::clone(memory));
    if let Some(traps) = &mut traps {
        traps.start(&mut KvmCpu(vcpu))?;
    }
    cpu.power_on();
    let mut exits = 0;
    loop {
        let ran = vcpu.run();
        exits += 1;
        let mut exit = ExitFor::Device;
        match ran? {
            VcpuExit::MmioWrite(DOORBELL, data) => {
                let n = u32::from(data[0]);
                phase(n, traps.as_ref().map(Traps::stats).unwrap_or_default(), exits);
            }
            VcpuExit::MmioWrite(address, data) => {
                cpu.write(address, data)?;
                exit = ExitFor::Frame;
            }
            VcpuExit::MmioRead(address, data) => {
                cpu.read(address, data)?;
                exit = ExitFor::Frame;
            }
            VcpuExit::SystemEvent(..) => {
                phase(u32::MAX, traps.as_ref().map(Traps::stats).unwrap_or_default(), exits);
                return Ok(());
            }
            VcpuExit::Debug(exit) => {
                let syndrome = u64::from(exit.hsr) | u64::from(exit.hsr_high) << 32;
                let traps = traps.as_mut().ok_or("a debug exit without a debugger")?;
                cpu.enter();
                let handled = traps.handle(&mut KvmCpu(vcpu), &mut cpu, &physical, syndrome)?;
                if handled == Handled::NotOurs {
                    return Err(format!("a debug exit with syndrome {syndrome:#x}").into());
                }
                continue;
            }
            other => return Err(format!("{other:?}").into()),
        }
        if let Some(traps) = &mut traps {
            traps.follow(&mut KvmCpu(vcpu), exit)?;
        }
    }
}

fn run_guest(guest: &Guest) -> Result<Outcome> {
    let vm = Arc::new(open_kvm()?.create_vm()?);
    let ranges = [(GuestAddress(RAM), RAM_SIZE as usize)];
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges)?);
    memory.write_slice(text(), GuestAddress(TEXT))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: RAM,
        memory_size: RAM_SIZE,
        userspace_addr: memory.get_host_address(GuestAddress(RAM))? as u64,
    };
    // SAFETY: the memory outlives the VM: vCPUs are stopped before it is dropped.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = create(&vm, 0)?;
    let mut other = create(&vm, 1)?;
    start(guest, &memory, &vcpu)?;
    let gic = gic()?;
    let vectors = Arc::new(Vectors::new());
    let most = guest.breakpoints.min(breakpoints(&vm)?);
    let traps = || guest.trapped.then(|| Traps::new(most, Arc::clone(&vectors)));
    let second = guest.second.then(|| {
        let (gic, memory, traps) = (gic.clone(), Arc::clone(&memory), traps());
        thread::spawn(move || {
            let mut last = (TrapStats::default(), 0);
            let mut note = |_, stats, exits| last = (stats, exits);
            let cpu = gic.cpu(VcpuId(1)).unwrap();
            run(&mut other, cpu, &memory, traps, &mut note).unwrap();
            last
        })
    });
    let mut stats = Vec::new();
    let mut phase = |n, at, exits| stats.push((n, at, exits));
    run(&mut vcpu, gic.cpu(VcpuId(0))?, &memory, traps(), &mut phase)?;
    // The other one is powered off by now, with nothing that would bring it out of KVM_RUN.
    let second = second.filter(thread::JoinHandle::is_finished).map(|it| it.join().unwrap());
    let mut notes = Vec::new();
    for n in 0.. {
        let note: [u64; 8] = memory.read_obj(GuestAddress(NOTES + n * 64))?;
        if note == [0; 8] {
            break;
        }
        notes.push(note);
    }
    let taken = memory.read_obj(GuestAddress(RESULT))?;
    Ok(Outcome { notes, taken, stats, second })
}

#[derive(Default)]
struct Checks {
    passed: usize,
    failed: usize,
}

impl Checks {
    fn check(&mut self, name: &str, good: bool, what: &dyn std::fmt::Debug) {
        if good {
            self.passed += 1;
            println!("PASS {name}");
        } else {
            self.failed += 1;
            println!("FAIL {name}: {what:x?}");
        }
    }

    fn guest(&mut self, name: &str, guest: Guest) -> Result<()> {
        println!("-- {name}: {guest:?}");
        let trapped = run_guest(&guest)?;
        let native = run_guest(&Guest { trapped: false, second: false, ..guest })?;
        let [trapped_notes, native_notes] = [&trapped.notes, &native.notes].map(|notes| {
            let mut notes = notes.clone();
            notes.iter_mut().for_each(|note| note[5] &= !NZCV);
            notes
        });
        self.check(&format!("{name}-interrupts"), trapped.taken == [1000, 0], &trapped.taken);
        self.check(&format!("{name}-exceptions"), native.notes.len() == 12, &native.notes);
        self.check(
            &format!("{name}-as-native"),
            trapped_notes == native_notes,
            &(&trapped_notes, &native_notes),
        );
        let at = |phase| trapped.stats.iter().find(|(n, ..)| *n == phase);
        if let (Some((_, before, ran)), Some((_, after, run)), Some((_, end, _))) =
            (at(2), at(3), at(u32::MAX))
        {
            let accesses = after.undefined + after.direct - before.undefined - before.direct;
            self.check(&format!("{name}-accesses"), accesses == 3000, &accesses);
            println!(
                "COUNT {name}: 3000 accesses, {} of them direct: {} debug exits, {} calls, {} KVM_RUN",
                after.direct - before.direct,
                after.exits - before.exits,
                after.calls - before.calls,
                run - ran,
            );
            println!("COUNT {name}: in all {end:?}");
        } else {
            self.check(&format!("{name}-phases"), false, &trapped.stats.len());
        }
        if let Some(second) = trapped.second {
            println!("COUNT {name}: second {second:?}");
        }
        Ok(())
    }
}

fn probe(checks: &mut Checks) -> Result<()> {
    let vm = open_kvm()?.create_vm()?;
    println!("breakpoints: {}", breakpoints(&vm)?);
    let flat = Guest { trapped: true, push: false, upper: false, second: false, breakpoints: 16 };
    checks.guest("flat", flat)?;
    checks.guest("upper", Guest { upper: true, ..flat })?;
    checks.guest("push", Guest { push: true, upper: true, ..flat })?;
    checks.guest("four", Guest { upper: true, breakpoints: 4, ..flat })?;
    checks.guest("second", Guest { second: true, ..flat })?;
    Ok(())
}

pub(crate) fn main() -> ExitCode {
    let mut checks = Checks::default();
    if let Err(error) = probe(&mut checks) {
        checks.check("probe", false, &error.to_string());
    }
    println!("END {} passed, {} failed", checks.passed, checks.failed);
    if checks.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
