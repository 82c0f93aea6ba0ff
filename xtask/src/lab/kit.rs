//! The files that every run needs, fetched and built once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::packages::{self, Debian};
use super::{cross, dir, image};

/// Debian's software, our payloads, and the Linux guest's initramfs.
pub(super) struct Kit {
    pub(super) debian: Debian,
    pub(super) initramfs: PathBuf,
    payloads: Vec<(String, PathBuf)>,
}

impl Kit {
    pub(super) fn new() -> Result<Self> {
        fs::create_dir_all(dir().join("logs"))?;
        let debian = packages::debian()?;
        let payloads = cross::payloads()?;
        let initramfs = image::guest(&debian)?;
        Ok(Self { debian, initramfs, payloads })
    }

    /// Returns the image of a payload.
    pub(super) fn payload(&self, name: &str) -> Result<&Path> {
        let found = self.payloads.iter().find(|(there, _)| there == name);
        found.map(|(_, path)| path.as_path()).with_context(|| format!("no payload {name}"))
    }

    /// Returns the files for a host, with their names under `$LAB`.
    pub(super) fn files(&self) -> Vec<(String, PathBuf)> {
        let mut files = vec![
            ("guest/Image".to_owned(), self.debian.kernel.clone()),
            ("guest/initrd.cpio".to_owned(), self.initramfs.clone()),
        ];
        for (name, path) in &self.payloads {
            files.push((format!("payloads/{name}.bin"), path.clone()));
        }
        files
    }
}
