//! The contents of the guest's memory before it starts.

use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use vm_memory::{Bytes, GuestAddress};

use crate::args::Run;
use crate::map;
use crate::memory::Memory;

/// The addresses in the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// The address where the boot vCPU starts.
    pub(crate) entry: u64,
    /// The address of the device tree.
    pub(crate) fdt: u64,
    /// The initial RAM disk's first address, and the address after its last.
    pub(crate) initrd: Option<(u64, u64)>,
}

/// Room for the device tree at the end of memory. A kernel wants it within one 2 MiB block.
const FDT_ROOM: u64 = 2 << 20;

/// Loads the files that the command line names.
pub(crate) fn load(run: &Run, memory: &Memory) -> Result<Layout> {
    let end = map::RAM + (run.memory << 20);
    ensure!(run.memory >= 4, "less than 4 MiB of memory");
    let fdt = end - FDT_ROOM;
    if let Some(raw) = &run.raw {
        let image = read(&raw.file)?;
        put(memory, raw.address, &image, &raw.file)?;
        ensure!(raw.address + image.len() as u64 <= fdt, "the payload leaves no room");
        return Ok(Layout { entry: raw.address, fdt, initrd: None });
    }
    let Some(kernel) = &run.kernel else { bail!("neither a kernel nor a payload") };
    let image =
        unwrap(read(kernel)?, run.memory << 20).with_context(|| kernel.display().to_string())?;
    let size = image_size(&image);
    let entry = load_image(memory, image).with_context(|| kernel.display().to_string())?;
    let kernel_end = entry.saturating_add(size);
    ensure!(kernel_end <= fdt, "the kernel, {size} bytes with what it clears, leaves no room");
    let initrd = match &run.initrd {
        None => None,
        Some(path) => {
            let data = read(path)?;
            let start = initrd_start(data.len() as u64, kernel_end, fdt)?;
            put(memory, start, &data, path)?;
            Some((start, start + data.len() as u64))
        }
    };
    Ok(Layout { entry, fdt, initrd })
}

/// Returns the address for an initrd of `len` bytes: as high as possible, but not in the kernel.
fn initrd_start(len: u64, kernel_end: u64, fdt: u64) -> Result<u64> {
    let start = fdt.checked_sub(len).map(|start| start & !0xffff);
    let start = start.filter(|start| *start >= kernel_end);
    start.context("the initrd does not fit behind the kernel: more memory is needed")
}

/// The size of an arm64 Image in memory: the size in its header, which includes the memory that it
/// clears, and at least the size of the file (Linux's Documentation/arch/arm64/booting.rst).
fn image_size(image: &[u8]) -> u64 {
    let said = image.get(16..24).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    said.unwrap_or(0).max(image.len() as u64)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn put(memory: &Memory, address: u64, data: &[u8], path: &Path) -> Result<()> {
    let put = memory.write_slice(data, GuestAddress(address));
    put.with_context(|| format!("{} does not fit at {address:#x}", path.display()))
}

/// Unwraps an arm64 Image of up to `most` bytes from the formats of distributions: gzip, or an EFI
/// zboot image with gzip inside.
fn unwrap(file: Vec<u8>, most: u64) -> Result<Vec<u8>> {
    if file.starts_with(&[0x1f, 0x8b]) {
        return gunzip(&file, most);
    }
    if file.get(4..8) == Some(b"zimg") {
        // See Linux's drivers/firmware/efi/libstub/zboot-header.S: offset, size, and the
        // compression's name.
        let word = |at: usize| {
            let bytes = file.get(at..at + 4).context("a truncated zboot header")?;
            Ok::<_, anyhow::Error>(u32::from_le_bytes(bytes.try_into()?) as usize)
        };
        let (start, size) = (word(8)?, word(12)?);
        let payload = start.checked_add(size).and_then(|end| file.get(start..end));
        let payload = payload.context("a truncated zboot payload")?;
        if payload.starts_with(&[0x1f, 0x8b]) {
            return gunzip(payload, most);
        }
        bail!("a zboot image that is not compressed with gzip: unpack it first");
    }
    Ok(file)
}

fn gunzip(data: &[u8], most: u64) -> Result<Vec<u8>> {
    let mut image = Vec::new();
    // Four more bytes follow the gzip data in a zboot payload. The decoder stops before them.
    let decoder = flate2::bufread::GzDecoder::new(data);
    decoder.take(most.saturating_add(1)).read_to_end(&mut image).context("unpacking")?;
    ensure!(image.len() as u64 <= most, "unpacked, it is larger than the guest's memory");
    Ok(image)
}

/// Loads an Image at the address that its header asks for, and returns its entry.
#[cfg(target_arch = "aarch64")]
fn load_image(memory: &Memory, image: Vec<u8>) -> Result<u64> {
    use linux_loader::loader::{KernelLoader, pe::PE};
    let base = Some(GuestAddress(map::RAM));
    let loaded = PE::load(&**memory, base, &mut Cursor::new(image), None)?;
    Ok(loaded.kernel_load.0)
}

/// linux-loader supports arm64's format on arm64 hosts only.
#[cfg(not(target_arch = "aarch64"))]
fn load_image(_: &Memory, image: Vec<u8>) -> Result<u64> {
    let _ = Cursor::new(image);
    bail!("an arm64 kernel is loaded on an arm64 host only")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MOST: u64 = 1 << 20;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn an_initrd_is_not_put_into_the_kernel() {
        assert_eq!(initrd_start(0x1_0001, 0x4100_0000, 0x4200_0000).unwrap(), 0x41fe_0000);
        assert_eq!(initrd_start(0x100_0000, 0x4100_0000, 0x4200_0000).unwrap(), 0x4100_0000);
        assert!(initrd_start(0x100_0000, 0x4100_0001, 0x4200_0000).is_err());
        assert!(initrd_start(u64::MAX, 0, 0x4200_0000).is_err());
    }

    #[test]
    fn a_kernel_takes_what_its_header_says() {
        let mut image = vec![0; 64];
        assert_eq!(image_size(&image), 64);
        image[16..24].copy_from_slice(&0x200_0000u64.to_le_bytes());
        assert_eq!(image_size(&image), 0x200_0000);
        assert_eq!(image_size(&image[..10]), 10);
    }

    #[test]
    fn kernels_come_out_of_their_wrappers() {
        let image = b"an image".repeat(100);
        assert_eq!(unwrap(image.clone(), MOST).unwrap(), image);
        assert_eq!(unwrap(gzip(&image), MOST).unwrap(), image);
        let tight = image.len() as u64;
        assert_eq!(unwrap(gzip(&image), tight).unwrap(), image);
        assert!(unwrap(gzip(&image), tight - 1).is_err(), "larger than the guest's memory");
        let payload = gzip(&image);
        let mut zboot = b"MZ\0\0zimg".to_vec();
        zboot.extend(64u32.to_le_bytes());
        zboot.extend((payload.len() as u32).to_le_bytes());
        zboot.resize(64, 0);
        zboot.extend(&payload);
        zboot.extend([1, 2, 3, 4]);
        assert_eq!(unwrap(zboot.clone(), MOST).unwrap(), image);
        zboot[64] = 0;
        assert!(unwrap(zboot.clone(), MOST).is_err());
        zboot.truncate(70);
        assert!(unwrap(zboot, MOST).is_err());
    }
}
