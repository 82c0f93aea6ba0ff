//! Measures the most expensive single accesses of a guest that has set up as much as it can.
//!
//! An access is one exit of a vCPU: an access to a register, an entry, or a piece of the host's own work for the guest. A [`Scene`] is a
//! machine and what a guest does to it. Every access of interest goes through [`counted`], and is named on standard output before: a program that
//! counts instructions between that function's begin and its end (`cargo xtask count`) puts the two together.

mod guest;
mod lpis;
mod mappings;
mod wired;

use std::hint::black_box;

use anyhow::{Context, Result};

/// How much the guest has set up.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// LPIs, each with an event.
    pub lpis: u32,
    /// vCPUs.
    pub vcpus: u16,
    /// SPIs: of those that are not extended, and of those that are.
    pub spis: (u16, u16),
}

impl Size {
    /// The smaller one: more than one access does at a time.
    pub const SMALL: Self = Self { lpis: 8192, vcpus: 64, spis: (96, 128) };
    /// The larger one: eight times as much.
    pub const LARGE: Self = Self { lpis: 65_536, vcpus: 512, spis: (988, 1024) };
    /// More LPIs: too many to be counted in every run.
    pub const HUGE: Self = Self { lpis: 1 << 20, ..Self::LARGE };

    /// By its name on the command line.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn named(name: &str) -> Result<Self> {
        let all = [("small", Self::SMALL), ("large", Self::LARGE), ("huge", Self::HUGE)];
        let found = all.iter().find(|(known, _)| *known == name).map(|(_, size)| *size);
        found.with_context(|| format!("there is no size {name:?}"))
    }
}

/// A machine and the accesses of its guest.
pub type Scene = fn(Size);

/// All of them.
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
/// There is none of that name.
pub fn play(name: &str, size: Size) -> Result<()> {
    let scene = SCENES.iter().find(|(known, _)| *known == name);
    let (_, scene) = scene.with_context(|| format!("there is no scene {name:?}"))?;
    scene(size);
    Ok(())
}

/// Where instructions are counted.
#[inline(never)]
pub fn counted(access: &mut dyn FnMut()) {
    access();
    // Not a tail call, which would be no call of this function any more.
    black_box(());
}

/// An access that is counted.
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
