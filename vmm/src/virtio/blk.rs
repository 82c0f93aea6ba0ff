//! virtio-blk (virtio 1.2, 5.2) on a file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use virtio_queue::{Reader, Writer};

use super::{Backend, Backing, Chain};

const SECTOR: u64 = 512;
/// Requests.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
/// What became of them.
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// VIRTIO_BLK_F_SEG_MAX, _FLUSH, _MQ.
const FEATURES: u64 = 1 << 2 | 1 << 9 | 1 << 12;
/// Data descriptors of a request, besides its head and its status.
const SEG_MAX: u32 = 126;
/// How much is copied at a time.
const CHUNK: usize = 64 << 10;

/// A disk.
pub(crate) struct Disk {
    file: File,
    sectors: u64,
    queues: u16,
}

impl Disk {
    pub(crate) fn open(path: &Path, queues: u16) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.with_context(|| format!("opening the disk {}", path.display()))?;
        let sectors = file.metadata()?.len() / SECTOR;
        Ok(Self { file, sectors, queues })
    }

    /// Byte position of `len` bytes from a sector, if the disk has them.
    fn position(&self, sector: u64, len: usize) -> Option<u64> {
        let begin = sector.checked_mul(SECTOR)?;
        let end = begin.checked_add(len as u64)?;
        (end <= self.sectors * SECTOR).then_some(begin)
    }

    fn read(&self, sector: u64, data: &mut Writer<'_>) -> Option<()> {
        let mut at = self.position(sector, data.available_bytes())?;
        let mut buffer = vec![0; CHUNK.min(data.available_bytes())];
        while data.available_bytes() > 0 {
            let n = buffer.len().min(data.available_bytes());
            self.file.read_exact_at(&mut buffer[..n], at).ok()?;
            data.write_all(&buffer[..n]).ok()?;
            at += n as u64;
        }
        Some(())
    }

    fn write(&self, sector: u64, data: &mut Reader<'_>) -> Option<()> {
        let mut at = self.position(sector, data.available_bytes())?;
        let mut buffer = vec![0; CHUNK.min(data.available_bytes())];
        while data.available_bytes() > 0 {
            let n = buffer.len().min(data.available_bytes());
            data.read_exact(&mut buffer[..n]).ok()?;
            self.file.write_all_at(&buffer[..n], at).ok()?;
            at += n as u64;
        }
        Some(())
    }

    /// `None` if the request is malformed beyond having a status.
    fn try_serve(&self, chain: Chain, memory: &Backing) -> Option<u32> {
        let mut reader = chain.clone().reader(memory).ok()?;
        let mut writer = chain.writer(memory).ok()?;
        let room = writer.available_bytes();
        // The last byte is the status.
        let mut status = writer.split_at(room.checked_sub(1)?).ok()?;
        let mut head = [0; 16];
        reader.read_exact(&mut head).ok()?;
        let [kind, _, sector_lo, sector_hi] = [0, 4, 8, 12]
            .map(|at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
        let sector = u64::from(sector_lo) | u64::from(sector_hi) << 32;
        let done = match kind {
            IN => self.read(sector, &mut writer),
            OUT => self.write(sector, &mut reader),
            FLUSH => self.file.sync_data().ok(),
            GET_ID => {
                writer.write_all(&b"vgic-vmm\0\0\0\0\0\0\0\0\0\0\0\0"[..20.min(room - 1)]).ok()
            }
            _ => {
                status.write_all(&[UNSUPP]).ok()?;
                return Some(1);
            }
        };
        status.write_all(&[if done.is_some() { OK } else { IOERR }]).ok()?;
        Some(writer.bytes_written() as u32 + 1)
    }
}

impl Backend for Disk {
    const TYPE: u16 = 2;
    const CLASS: [u8; 3] = [1, 0x80, 0];

    fn queues(&self) -> u16 {
        self.queues
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        config[..8].copy_from_slice(&self.sectors.to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        config[34..36].copy_from_slice(&self.queues.to_le_bytes());
        config
    }

    fn serve(&self, chain: Chain, memory: &Backing) -> u32 {
        self.try_serve(chain, memory).unwrap_or(0)
    }
}
