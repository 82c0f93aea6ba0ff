//! virtio-blk (virtio 1.2, 5.2) backed by a file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::{Reader, Writer};

use super::{Backend, Backing, Chain};

const SECTOR: u64 = 512;
/// The status of a request.
const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
const FEATURES: u64 = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_MQ;
/// The maximum number of data descriptors of a request, without its head and its status.
const SEG_MAX: u32 = 126;
/// The number of bytes that are copied at a time.
const CHUNK: usize = 64 << 10;

/// A disk backed by a file.
pub(crate) struct Disk {
    file: File,
    sectors: u64,
    queues: u16,
}

impl Disk {
    pub(crate) fn open(path: &Path, queues: u16) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.with_context(|| format!("opening the disk {}", path.display()))?;
        // Seek to the end: the length in the metadata is 0 for a block device.
        let size = (&file).seek(SeekFrom::End(0)).context("the size of the disk")?;
        let sectors = size / SECTOR;
        Ok(Self { file, sectors, queues })
    }

    /// Returns the byte position of a sector, if the disk has `len` bytes from there.
    fn position(&self, sector: u64, len: usize) -> Option<u64> {
        let begin = sector.checked_mul(SECTOR)?;
        let end = begin.checked_add(len as u64)?;
        (end <= self.sectors * SECTOR).then_some(begin)
    }

    fn read(&self, sector: u64, data: &mut Writer<'_>, stop: &AtomicBool) -> Option<()> {
        let mut at = self.position(sector, data.available_bytes())?;
        let mut buffer = vec![0; CHUNK.min(data.available_bytes())];
        while data.available_bytes() > 0 {
            go_on(stop)?;
            let n = buffer.len().min(data.available_bytes());
            self.file.read_exact_at(&mut buffer[..n], at).ok()?;
            data.write_all(&buffer[..n]).ok()?;
            at += n as u64;
        }
        Some(())
    }

    fn write(&self, sector: u64, data: &mut Reader<'_>, stop: &AtomicBool) -> Option<()> {
        let mut at = self.position(sector, data.available_bytes())?;
        let mut buffer = vec![0; CHUNK.min(data.available_bytes())];
        while data.available_bytes() > 0 {
            go_on(stop)?;
            let n = buffer.len().min(data.available_bytes());
            data.read_exact(&mut buffer[..n]).ok()?;
            self.file.write_all_at(&buffer[..n], at).ok()?;
            at += n as u64;
        }
        Some(())
    }

    /// Serves a request. `None` if the request is too malformed to get a status.
    fn try_serve(&self, chain: Chain, memory: &Backing, stop: &AtomicBool) -> Option<u32> {
        let segments = chain.clone().count();
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
            // The driver may not use more descriptors (5.2.4).
            _ if segments > SEG_MAX as usize + 2 => None,
            VIRTIO_BLK_T_IN => self.read(sector, &mut writer, stop),
            VIRTIO_BLK_T_OUT => self.write(sector, &mut reader, stop),
            VIRTIO_BLK_T_FLUSH => self.file.sync_data().ok(),
            VIRTIO_BLK_T_GET_ID => {
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
    const TYPE: u16 = VIRTIO_ID_BLOCK as u16;
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

    fn serve(&self, chain: Chain, memory: &Backing, stop: &AtomicBool) -> u32 {
        self.try_serve(chain, memory, stop).unwrap_or(0)
    }
}

/// Checks between two pieces of a request. `None` if the device is being reset, so that the request
/// is not to be finished.
fn go_on(stop: &AtomicBool) -> Option<()> {
    // Acquire: pairs with `Worker::drop`.
    (!stop.load(Ordering::Acquire)).then_some(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use virtio_queue::{Queue, QueueT};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::{self, Memory};

    const BASE: u64 = crate::map::RAM;
    const AVAIL: u64 = BASE + 0x1000;
    const USED: u64 = BASE + 0x2000;
    const HEAD: u64 = BASE + 0x3000;
    const DATA: u64 = BASE + 0x4000;
    const STATUS: u64 = BASE + 0x5000;

    /// Makes one request as a driver does. Returns the number of bytes written, and the status.
    fn request(disk: &Disk, memory: &Memory, kind: u32, sector: u64, len: u32) -> (u32, u8) {
        request_until(&AtomicBool::new(false), disk, memory, kind, sector, len)
    }

    /// Makes one request of a device that is perhaps being reset.
    fn request_until(
        stop: &AtomicBool,
        disk: &Disk,
        memory: &Memory,
        kind: u32,
        sector: u64,
        len: u32,
    ) -> (u32, u8) {
        let mut queue = Queue::new(16).unwrap();
        queue.set_size(16);
        queue.set_desc_table_address(Some(BASE as u32), None);
        queue.set_avail_ring_address(Some(AVAIL as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_ready(true);
        // Flags: 1 next, 2 written by the device.
        let data_flags = if kind == VIRTIO_BLK_T_OUT { 1 } else { 3 };
        let descriptors = [(HEAD, 16, 1, 1), (DATA, len, data_flags, 2), (STATUS, 1, 2, 0)];
        for (n, (at, len, flags, next)) in (0u64..).zip(descriptors) {
            let words = [at, u64::from(len) | flags << 32 | next << 48];
            for (word, at) in words.into_iter().zip((BASE + 16 * n..).step_by(8)) {
                memory.write_obj(word, GuestAddress(at)).unwrap();
            }
        }
        memory.write_obj(u64::from(kind), GuestAddress(HEAD)).unwrap();
        memory.write_obj(sector, GuestAddress(HEAD + 8)).unwrap();
        memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        // One entry: descriptor 0.
        memory.write_obj(1u32 << 16, GuestAddress(AVAIL)).unwrap();
        memory.write_obj(0u16, GuestAddress(AVAIL + 4)).unwrap();
        assert!(queue.is_valid(&**memory));
        let chain = queue.pop_descriptor_chain(Arc::clone(memory)).unwrap();
        let written = disk.serve(chain, memory, stop);
        (written, memory.read_obj(GuestAddress(STATUS)).unwrap())
    }

    /// A reset of the device does not wait for the rest of a request.
    #[test]
    fn a_request_ends_when_the_device_is_reset() {
        let path = std::env::temp_dir().join(format!("vgic-vmm-reset-{}", std::process::id()));
        std::fs::write(&path, vec![7; 2 * CHUNK]).unwrap();
        let disk = Disk::open(&path, 1).unwrap();
        std::fs::remove_file(&path).unwrap();
        let memory = memory::new(4).unwrap();
        let stop = AtomicBool::new(true);
        for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
            let (_, status) = request_until(&stop, &disk, &memory, kind, 0, 1024);
            assert_eq!(status, IOERR);
        }
        let mut data = [1; 1024];
        disk.file.read_exact_at(&mut data, 0).unwrap();
        assert_eq!(data, [7; 1024], "nothing has been written");
    }

    #[test]
    fn what_is_written_is_read() {
        let path = std::env::temp_dir().join(format!("vgic-vmm-disk-{}", std::process::id()));
        std::fs::write(&path, vec![0; 4 * 512]).unwrap();
        let disk = Disk::open(&path, 1).unwrap();
        std::fs::remove_file(&path).unwrap();
        let memory = memory::new(4).unwrap();
        memory.write_slice(&[7; 1024], GuestAddress(DATA)).unwrap();
        assert_eq!(request(&disk, &memory, VIRTIO_BLK_T_OUT, 2, 1024), (1, OK));
        memory.write_slice(&[0; 2048], GuestAddress(DATA)).unwrap();
        assert_eq!(request(&disk, &memory, VIRTIO_BLK_T_IN, 1, 1024), (1025, OK));
        let mut data = [0; 1024];
        memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        assert!(data[..512].iter().all(|&b| b == 0) && data[512..].iter().all(|&b| b == 7));
        for (sector, len) in [(3, 1024), (4, 512), (u64::MAX, 512), (u64::MAX / 512, 1024)] {
            let (_, status) = request(&disk, &memory, VIRTIO_BLK_T_IN, sector, len);
            assert_eq!(status, IOERR, "beyond the end");
        }
        assert_eq!(request(&disk, &memory, 99, 0, 512), (1, UNSUPP));
        assert_eq!(request(&disk, &memory, VIRTIO_BLK_T_GET_ID, 0, 20), (21, OK));
    }
}
