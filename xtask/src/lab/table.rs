//! The guests: what each is, and how it is started.

/// A guest of the lab.
pub(super) struct Guest {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) limit_seconds: u64,
    pub(super) on: On,
}

/// What a guest runs on.
pub(super) enum On {
    /// QEMU's own GIC, without KVM: this tries the guest's checks themselves.
    Qemu(Qemu),
    /// A program of this workspace, on the arm64 KVM host.
    Host {
        program: &'static str,
        /// A line of shell that comes before it.
        prepare: &'static str,
        /// `$LAB` is the directory of the lab's files.
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
    /// One of `lab/guests`.
    Payload(&'static str),
    /// Debian's kernel with the initramfs of `lab/linux`.
    Linux,
}

const LINUX: &str = "console=ttyAMA0 loglevel=4 panic=1 lab.cpus=2";
/// All but `affinity`: QEMU 7.2 keeps the active state of an SPI for each CPU, so that one that is moved while it is handled
/// and pends again is active on two CPUs at once; Linux then takes the second for a repetition, and loses it.
const LINUX_QEMU_V2: &str = "console=ttyAMA0 loglevel=4 panic=1 lab.cpus=2 \
     lab.checks=boot,timer,ipi,queues,disk,hotplug,rebind,signals,steps,probes";

/// In the order in which they run.
pub(super) const GUESTS: &[Guest] = &[
    Guest {
        name: "qemu-hello",
        what: "a payload that starts all CPUs, on QEMU",
        limit_seconds: 20,
        on: On::Qemu(Qemu {
            machine: "virt,gic-version=2",
            cpus: 4,
            boots: Boots::Payload("hello"),
            cmdline: "",
        }),
    },
    Guest {
        name: "qemu-linux-v2",
        what: "Linux and its checks on QEMU's GICv2 and GICv2m",
        limit_seconds: 180,
        on: On::Qemu(Qemu {
            machine: "virt,gic-version=2",
            cpus: 2,
            boots: Boots::Linux,
            cmdline: LINUX_QEMU_V2,
        }),
    },
    Guest {
        name: "qemu-linux-v3",
        what: "Linux and its checks on QEMU's GICv3 and ITS",
        limit_seconds: 180,
        on: On::Qemu(Qemu {
            machine: "virt,gic-version=3",
            cpus: 2,
            boots: Boots::Linux,
            cmdline: LINUX,
        }),
    },
    Guest {
        name: "probe",
        what: "what the KVM of the arm64 host can do",
        limit_seconds: 20,
        on: On::Host { program: "lab-probe", prepare: "", arguments: "" },
    },
];
