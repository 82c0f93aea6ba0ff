//! Measures the most expensive single accesses of a guest that has set up as much as it can.
//!
//! An access is one exit of a vCPU: an access to a register, an entry, or a piece of the host's own
//! work for the guest. A [`Scene`] is a machine and a sequence of its guest's accesses. Every
//! access of interest prints its name to standard output, and then runs in [`counted`]. A program
//! that counts instructions between that function's start and its end (`cargo xtask count`) matches
//! the counts with the names.

mod guest;
mod lpis;
mod mappings;
mod wired;

use std::hint::black_box;

use anyhow::{Context, Result};

/// The size of the guest's setup.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Number of LPIs, each with an event.
    pub lpis: u32,
    /// Number of vCPUs.
    pub vcpus: u16,
    /// Numbers of SPIs: those of the normal range, and extended ones.
    pub spis: (u16, u16),
}

impl Size {
    /// The smaller size, which is still more than one access processes.
    pub const SMALL: Self = Self { lpis: 8192, vcpus: 64, spis: (96, 128) };
    /// The larger size, about eight times the smaller one.
    pub const LARGE: Self = Self { lpis: 65_536, vcpus: 512, spis: (988, 1024) };
    /// A size with more LPIs, too many to count in every run.
    pub const HUGE: Self = Self { lpis: 1 << 20, ..Self::LARGE };

    /// Returns the size with a name of the command line.
    ///
    /// # Errors
    /// If there is no size of that name.
    pub fn named(name: &str) -> Result<Self> {
        let all = [("small", Self::SMALL), ("large", Self::LARGE), ("huge", Self::HUGE)];
        let found = all.iter().find(|(known, _)| *known == name).map(|(_, size)| *size);
        found.with_context(|| format!("there is no size {name:?}"))
    }
}

/// Plays a sequence of accesses on a machine of some size.
pub type Scene = fn(Size);

/// All scenes by name.
pub const SCENES: &[(&str, Scene)] = &[
    ("ITS", mappings::scene),
    ("redistributor", lpis::tables),
    ("pending LPIs", lpis::pending),
    ("SPIs, GICv3", wired::v3),
    ("SPIs, GICv2", wired::v2),
];

/// Plays one scene.
///
/// # Errors
/// If there is no scene of that name.
pub fn play(name: &str, size: Size) -> Result<()> {
    let scene = SCENES.iter().find(|(known, _)| *known == name);
    let (_, scene) = scene.with_context(|| format!("there is no scene {name:?}"))?;
    scene(size);
    Ok(())
}

/// Runs an access: instructions are counted from the start to the end of this function.
#[inline(never)]
pub fn counted(access: &mut dyn FnMut()) {
    access();
    // Prevents a tail call, which would leave this function too early.
    black_box(());
}

/// Prints the name of an access, and runs it in [`counted`].
fn access<T>(name: &str, f: impl FnOnce() -> T) -> T {
    println!("{name}");
    let (mut f, mut result) = (Some(f), None);
    counted(&mut || result = f.take().map(|f| f()));
    result.expect("it was called")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scene_can_be_played() {
        for (name, scene) in SCENES {
            println!("{name}");
            scene(Size { lpis: 4096, vcpus: 8, spis: (64, 32) });
        }
        assert!(Size::named("none").is_err() && play("none", Size::SMALL).is_err());
    }
}
