//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::map;

/// Runs arm64 guests on KVM with vgic-core as their interrupt controller.
#[derive(Parser, Debug)]
#[command(version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The action.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Runs a guest until it powers off.
    Run(Run),
}

/// The machine and its guest.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Run {
    /// A Linux kernel: a plain arm64 Image, a gzip of it, or an EFI zboot image with gzip inside.
    #[arg(long, required_unless_present = "raw", conflicts_with = "raw")]
    pub(crate) kernel: Option<PathBuf>,
    /// The initial RAM disk of the kernel.
    #[arg(long, requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,
    /// A raw payload, loaded and entered at ADDR, with the device tree's address in x0.
    #[arg(long, value_name = "FILE@ADDR", value_parser = raw)]
    pub(crate) raw: Option<Raw>,
    /// The kernel's command line, in /chosen/bootargs.
    #[arg(long, default_value = "")]
    pub(crate) cmdline: String,
    /// Number of vCPUs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=map::MAX_VCPUS))]
    pub(crate) smp: u16,
    /// Memory, in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(4..=map::MAX_MIB))]
    pub(crate) memory: u64,
    /// The interrupt controller.
    #[arg(long, value_enum, default_value_t = GicKind::V2)]
    pub(crate) gic: GicKind,
    /// A file as a virtio-blk disk on PCI; repeat it for several disks.
    #[arg(long, value_name = "FILE")]
    pub(crate) disk: Vec<PathBuf>,
    /// The number of queues of each disk.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub(crate) queues: u16,
    /// A virtio-rng device on PCI.
    #[arg(long)]
    pub(crate) rng: bool,
    /// The lab's doorbell device, which a machine for a raw payload always has.
    #[arg(long)]
    pub(crate) doorbell: bool,
    /// The statistics to print at the end.
    #[arg(long, value_enum)]
    pub(crate) stats: Option<Stats>,
}

/// The kind of the interrupt controller, and its implementation.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum GicKind {
    /// GICv2 with GICv2m, from vgic-core.
    V2,
    /// GICv3 with an ITS, from vgic-core.
    V3,
    /// GICv3 with an ITS, from the kernel: the control.
    KernelV3,
}

/// A form of statistics.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stats {
    /// One line of JSON.
    Json,
}

/// A raw payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Raw {
    pub(crate) file: PathBuf,
    pub(crate) address: u64,
}

fn raw(text: &str) -> Result<Raw, String> {
    let (file, address) = text.rsplit_once('@').ok_or("not FILE@ADDR")?;
    let digits = address.strip_prefix("0x");
    let address = digits.map_or_else(|| address.parse(), |hex| u64::from_str_radix(hex, 16));
    let address = address.map_err(|e| format!("the address: {e}"))?;
    Ok(Raw { file: file.into(), address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn machines_that_cannot_be_are_refused() {
        let parse = |more: &[&str]| {
            let words = ["vgic-vmm", "run", "--raw", "x@0"].iter().chain(more);
            Args::try_parse_from(words).is_ok()
        };
        assert!(parse(&["--smp", "123", "--memory", "261120"]));
        for wrong in [["--smp", "0"], ["--smp", "124"], ["--memory", "0"], ["--memory", "3"]] {
            assert!(!parse(&wrong), "{wrong:?}");
        }
        assert!(!parse(&["--memory", "17592186044416"]));
    }

    #[test]
    fn raw_payloads() {
        let parsed = raw("a@b.bin@0x40080000").unwrap();
        assert_eq!(parsed, Raw { file: "a@b.bin".into(), address: 0x4008_0000 });
        assert_eq!(raw("x@16").unwrap().address, 16);
        assert!(raw("x").is_err() && raw("x@y").is_err());
    }
}
