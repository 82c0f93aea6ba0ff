//! The table of guests: their programs, and how they are started.

/// A guest of the lab.
pub(super) struct Guest {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) limit_seconds: u64,
    pub(super) on: On,
}

/// The platform of a guest.
pub(super) enum On {
    /// QEMU's own GIC, without KVM. This tests the guest's checks themselves.
    Qemu(Qemu),
    /// A program of this workspace, on the arm64 KVM host.
    Host {
        program: &'static str,
        /// A shell line that runs before the program.
        prepare: &'static str,
        /// The program's arguments. `$LAB` is the directory of the lab's files.
        arguments: &'static str,
    },
}

/// A board that QEMU emulates.
pub(super) struct Qemu {
    pub(super) machine: &'static str,
    pub(super) cpus: u32,
    pub(super) boots: Boots,
    pub(super) cmdline: &'static str,
}

pub(super) enum Boots {
    /// A payload of `lab/guests`.
    Payload(&'static str),
    /// Debian's kernel with the initramfs of `lab/linux`.
    Linux,
}

/// The common part of Linux guests' command lines. The guest checks `lab.cpus`.
macro_rules! linux {
    ($cpus:literal, $more:literal) => {
        concat!("console=ttyAMA0 loglevel=4 panic=1 lab.cpus=", $cpus, $more)
    };
}

/// `affinity` is left out: QEMU 7.2's GICv2 loses interrupts that are moved. A pending interrupt
/// does not follow its target. An interrupt that is being handled may be taken by a second CPU,
/// which Linux ignores. See `spi-retarget` and `spi-move-active`.
const LINUX_ON_QEMU_V2: &str =
    linux!(2, " lab.checks=boot,timer,ipi,queues,disk,hotplug,rebind,signals,steps,probes");

/// The skipped checks are those where QEMU 7.2's GICv2 differs from the architecture. A PPI's
/// pending state cannot be set with several CPUs. An SPI with several targets may arrive at more
/// than one. A pending SPI does not follow its target. SPIs are active for each CPU separately. The
/// same checks pass on QEMU's GICv3, except the second, which that GICv3 does not have.
const PAYLOAD_ON_QEMU_V2: &str =
    "skip=ppi-banked,spi-any,spi-retarget,spi-move-active,split-elsewhere";

const fn qemu_payload(
    name: &'static str,
    what: &'static str,
    payload: &'static str,
    machine: &'static str,
    cpus: u32,
    cmdline: &'static str,
) -> Guest {
    let on = On::Qemu(Qemu { machine, cpus, boots: Boots::Payload(payload), cmdline });
    Guest { name, what, limit_seconds: 120, on }
}

const fn qemu_linux(
    name: &'static str,
    what: &'static str,
    machine: &'static str,
    cmdline: &'static str,
) -> Guest {
    let on = On::Qemu(Qemu { machine, cpus: 2, boots: Boots::Linux, cmdline });
    Guest { name, what, limit_seconds: 180, on }
}

const fn host(
    name: &'static str,
    what: &'static str,
    limit_seconds: u64,
    program: &'static str,
    arguments: &'static str,
) -> Guest {
    Guest { name, what, limit_seconds, on: On::Host { program, prepare: "", arguments } }
}

const fn host_linux(
    name: &'static str,
    what: &'static str,
    limit_seconds: u64,
    arguments: &'static str,
) -> Guest {
    let prepare = "dd if=/dev/zero of=$LAB/disk.img bs=1M count=16 2>/dev/null";
    Guest { name, what, limit_seconds, on: On::Host { program: VMM, prepare, arguments } }
}

const VMM: &str = "vgic-vmm";

/// The arguments of `vgic-vmm` with a payload.
macro_rules! payload {
    ($payload:literal, $gic:literal, $cpus:literal, $cmdline:expr) => {
        concat!(
            "run --raw $LAB/payloads/",
            $payload,
            ".bin@0x40080000 --memory 128 --stats json --gic ",
            $gic,
            " --smp ",
            $cpus,
            " --cmdline '",
            $cmdline,
            "'"
        )
    };
}

/// The left-out checks are those where the kernel's vGIC (6.12) differs from the architecture. An
/// interrupt that became pending while the distributor was off does not arrive when it is on. The
/// state of an interrupt in a list register is shown as it was when it was put there. At most as
/// many interrupts can be active as there are list registers. Another CPU cannot deactivate them. A
/// discarded LPI that is queued is still delivered.
const KERNEL_PAYLOAD: &str = payload!(
    "gicv3",
    "kernel-v3",
    2,
    "doorbell skip=spi-gates,spi-move-active,active-elsewhere,deep,split-many,split-elsewhere,lpi-unmap"
);

/// A storm with threads that wait until each MSI is taken, so that none coalesces. The reports have
/// the cost of an LPI.
const STORM: &str = payload!("gicv3", "v3", 2, "doorbell tests=storm-paced storm=100000");
const STORM_KERNEL: &str =
    payload!("gicv3", "kernel-v3", 2, "doorbell tests=storm-paced storm=100000");
/// A storm in which idle CPUs sleep, for the cost of an LPI: with few events, and with so many that
/// they wait for each other.
macro_rules! cost {
    ($gic:literal, $events:literal) => {
        payload!(
            "gicv3",
            $gic,
            2,
            concat!("doorbell tests=storm-asleep storm=20000 events=", $events)
        )
    };
}

/// The arguments of `vgic-vmm` with Linux, a disk with a queue for each CPU, and a random number
/// generator.
macro_rules! linux_guest {
    ($gic:literal, $cpus:literal, $more:literal) => {
        concat!(
            "run --kernel $LAB/guest/Image --initrd $LAB/guest/initrd.cpio --memory 256 --stats json \
             --disk $LAB/disk.img --rng --gic ",
            $gic,
            " --smp ",
            $cpus,
            " --queues ",
            $cpus,
            " --cmdline '",
            linux!($cpus, $more),
            "'"
        )
    };
}

/// `steps` is left out on our GICv3. The vCPU is debugged, and KVM clears MDSCR_EL1.SS for a
/// debugged guest. A program that its debugger steps (PTRACE_SINGLESTEP) therefore does not stop,
/// and this check would wait forever. BRKs work, and so do `signals` and `probes`.
const LINUX_V3: &str = linux_guest!(
    "v3",
    2,
    " lab.checks=boot,timer,ipi,queues,disk,affinity,hotplug,rebind,signals,probes"
);
const LINUX_V3_4: &str = linux_guest!(
    "v3",
    4,
    " lab.checks=boot,timer,ipi,queues,disk,affinity,hotplug,rebind,signals,probes"
);

/// The guests of `cargo xtask test`. The others are the guests on QEMU's GICs, and variants.
pub(super) const GATE: &[&str] =
    &["probe", "gicv2", "gicv3", "gicv3-kernel", "linux-v2", "linux-v3", "linux-kernel-v3"];

/// All guests, in the order in which they run.
pub(super) const GUESTS: &[Guest] = &[
    qemu_payload(
        "qemu-gicv2",
        "the GICv2 payload on QEMU's",
        "gicv2",
        "virt,gic-version=2",
        2,
        PAYLOAD_ON_QEMU_V2,
    ),
    qemu_payload(
        "qemu-gicv2-mmu-off",
        "the same, MMU off, one CPU",
        "gicv2",
        "virt,gic-version=2",
        1,
        "mmu=off",
    ),
    qemu_payload("qemu-gicv3", "the GICv3 payload on QEMU's", "gicv3", "virt,gic-version=3", 2, ""),
    qemu_payload(
        "qemu-gicv3-4",
        "the same on four CPUs",
        "gicv3",
        "virt,gic-version=3",
        4,
        "rounds=100 tests=identity,sgi,timer,ppi-banked,spi,spi-retarget,active-elsewhere,stress-spis,\
         stress-ping,stress-ring,lpi-int,lpi-moves,lpi-stress",
    ),
    qemu_payload(
        "qemu-gicv3-mmu-off",
        "the same, MMU off, one CPU",
        "gicv3",
        "virt,gic-version=3",
        1,
        "mmu=off",
    ),
    qemu_linux(
        "qemu-linux-v2",
        "Linux on QEMU's GICv2 and GICv2m",
        "virt,gic-version=2",
        LINUX_ON_QEMU_V2,
    ),
    qemu_linux(
        "qemu-linux-v3",
        "Linux on QEMU's GICv3 and ITS",
        "virt,gic-version=3",
        linux!(2, ""),
    ),
    host("probe", "what the KVM of the arm64 host can do", 20, "lab-probe", ""),
    host(
        "probe-lines",
        "how often that KVM loses a line that another thread raises",
        240,
        "lab-probe",
        "lines 50000 0",
    ),
    host(
        "gicv2",
        "the GICv2 payload on our GICv2, storms from the VMM included",
        180,
        VMM,
        payload!("gicv2", "v2", 2, "doorbell"),
    ),
    host(
        "gicv2-mmu-off",
        "the same, MMU off, one CPU",
        120,
        VMM,
        payload!("gicv2", "v2", 1, "mmu=off"),
    ),
    host(
        "gicv3",
        "the GICv3 payload on our GICv3 and ITS, storms from the VMM included",
        240,
        VMM,
        payload!("gicv3", "v3", 2, "doorbell"),
    ),
    host(
        "gicv3-mmu-off",
        "the same, MMU off, one CPU",
        120,
        VMM,
        payload!("gicv3", "v3", 1, "mmu=off"),
    ),
    host("gicv3-storm", "100,000 LPIs of 1,024 events, each one taken", 480, VMM, STORM),
    host(
        "gicv3-kernel",
        "the same payload on the kernel's GICv3 and ITS: the control",
        240,
        VMM,
        KERNEL_PAYLOAD,
    ),
    host(
        "gicv3-storm-kernel",
        "the same LPIs on the kernel's GICv3 and ITS: the control",
        240,
        VMM,
        STORM_KERNEL,
    ),
    host("gicv3-cost-4", "20,000 LPIs of 4 events, CPUs sleep", 240, VMM, cost!("v3", "4")),
    host("gicv3-cost-1024", "the same of 1,024 events", 240, VMM, cost!("v3", "1024")),
    host("gicv3-cost-4-kernel", "the kernel's, 4 events", 240, VMM, cost!("kernel-v3", "4")),
    host("gicv3-cost-1024-kernel", "and 1,024 events", 240, VMM, cost!("kernel-v3", "1024")),
    host_linux("linux-v2", "Linux on our GICv2 and GICv2m", 400, linux_guest!("v2", 2, "")),
    host_linux("linux-v3", "Linux on our GICv3 and ITS", 400, LINUX_V3),
    host_linux("linux-v3-4", "the same on four CPUs", 900, LINUX_V3_4),
    host_linux(
        "linux-kernel-v3",
        "Linux on the kernel's GICv3 and ITS: the control",
        240,
        linux_guest!("kernel-v3", 2, ""),
    ),
];

#[cfg(test)]
mod tests {
    use super::{GATE, GUESTS};

    #[test]
    fn names_are_unique_and_the_gate_is_made_of_them() {
        for (at, guest) in GUESTS.iter().enumerate() {
            assert!(GUESTS[..at].iter().all(|other| other.name != guest.name), "{}", guest.name);
            assert!(!["list", "run", "setup", "help"].contains(&guest.name), "{}", guest.name);
        }
        assert!(GATE.iter().all(|name| GUESTS.iter().any(|guest| guest.name == *name)));
    }
}
