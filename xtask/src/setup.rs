//! The programs that the other steps need on the machine, and their installation. Cargo itself
//! fetches crates.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

struct Need {
    what: &'static str,
    /// The program and arguments that succeed if it is installed.
    probe: &'static [&'static str],
    from: Source,
}

#[derive(Clone, Copy)]
enum Source {
    Debian(&'static [&'static str]),
    Rustup(&'static str),
}

/// The programs that only one step needs. The step asks for them by name.
const NEEDS_OF_STEPS: &[Need] = &[Need {
    what: "valgrind",
    probe: &["valgrind", "--version"],
    // valgrind needs the symbols of the C library from libc6-dbg.
    from: Source::Debian(&["valgrind", "libc6-dbg"]),
}];

const NEEDS: &[Need] = &[
    Need {
        what: "a C linker (gcc, as cc)",
        probe: &["cc", "--version"],
        // libc6-dev has the start files; gcc only recommends it.
        from: Source::Debian(&["gcc", "libc6-dev"]),
    },
    Need {
        what: "QEMU for arm64 (qemu-system-aarch64)",
        probe: &["qemu-system-aarch64", "--version"],
        from: Source::Debian(&["qemu-system-arm"]),
    },
    Need {
        what: "rustfmt",
        probe: &["cargo", "fmt", "--version"],
        from: Source::Rustup("rustfmt"),
    },
    Need {
        what: "clippy",
        probe: &["cargo", "clippy", "--version"],
        from: Source::Rustup("clippy"),
    },
];

impl Need {
    fn is_there(&self) -> bool {
        process::answers(Command::new(self.probe[0]).args(&self.probe[1..]))
    }

    /// Returns the command that a person would use to install it.
    fn advice(&self) -> String {
        match self.from {
            Source::Debian(packages) => {
                format!("on Debian: apt-get install {}", packages.join(" "))
            }
            Source::Rustup(component) => {
                format!("rustup component add {component}, or your distribution's package of it")
            }
        }
    }
}

/// Installs missing programs. Returns an error that names those that are still missing.
pub(crate) fn run() -> Result<()> {
    install(NEEDS.iter().filter(|need| !need.is_there()).collect())
}

/// Installs a program that only one step needs, if it is missing.
pub(crate) fn need(what: &str) -> Result<()> {
    let needed = NEEDS_OF_STEPS.iter().filter(|need| need.what == what);
    install(needed.filter(|need| !need.is_there()).collect())
}

fn install(missing: Vec<&Need>) -> Result<()> {
    if missing.is_empty() {
        println!("everything needed is there");
        return Ok(());
    }
    for need in &missing {
        println!("missing: {}", need.what);
    }
    let packages = wanted(&missing, |from| match from {
        Source::Debian(packages) => packages.to_vec(),
        Source::Rustup(_) => Vec::new(),
    });
    let components = wanted(&missing, |from| match from {
        Source::Debian(_) => Vec::new(),
        Source::Rustup(component) => vec![component],
    });
    // A failed installation is reported through the programs that are still missing, with advice
    // for each.
    for result in [install_packages(&packages), install_components(&components)] {
        if let Err(error) = result {
            println!("{error:#}");
        }
    }
    let still: Vec<String> = missing
        .iter()
        .filter(|need| !need.is_there())
        .map(|need| format!("\n  {}: {}", need.what, need.advice()))
        .collect();
    if !still.is_empty() {
        bail!("these are missing and could not be installed:{}", still.concat());
    }
    println!("installed; everything needed is there");
    Ok(())
}

fn wanted(missing: &[&Need], of: fn(Source) -> Vec<&'static str>) -> Vec<&'static str> {
    missing.iter().flat_map(|need| of(need.from)).collect()
}

fn install_packages(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !Path::new("/etc/debian_version").exists() {
        bail!("not a Debian system: cannot install {}", packages.join(" "));
    }
    if process::answer(Command::new("id").arg("-u")).as_deref() != Some("0") {
        bail!("not root: cannot install {}", packages.join(" "));
    }
    process::run(Command::new("apt-get").arg("update"))?;
    process::run(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "--no-install-recommends"])
            .args(packages),
    )
}

fn install_components(components: &[&str]) -> Result<()> {
    if components.is_empty() {
        return Ok(());
    }
    process::run(Command::new("rustup").args(["component", "add"]).args(components))
}
