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
    #[expect(dead_code, reason = "the payloads come next")]
    Payload(&'static str),
    /// Debian's kernel with the initramfs of `lab/linux`.
    #[expect(dead_code, reason = "the Linux guest comes next")]
    Linux,
}

/// In the order in which they run.
pub(super) const GUESTS: &[Guest] = &[Guest {
    name: "probe",
    what: "what the KVM of the arm64 host can do",
    limit_seconds: 20,
    on: On::Host { program: "lab-probe", prepare: "", arguments: "" },
}];
