//! A guest's memory: words that any thread may read and write at any time, without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use vgic_core::memory::{GuestMemory, MemoryError};

/// Bytes of a page. A page is allocated at its first write, as most of a guest's tables are empty.
const PAGE: u64 = 0x1_0000;
const WORD: u64 = 8;

/// Memory that starts at an address, and is zero at first.
pub(crate) struct Ram {
    base: u64,
    pages: Box<[OnceLock<Box<[AtomicU64]>>]>,
}

impl Ram {
    /// Creates at least `bytes` of memory from `base` (a multiple of 8), in whole pages.
    pub(crate) fn new(base: u64, bytes: u64) -> Self {
        Self { base, pages: (0..bytes.div_ceil(PAGE)).map(|_| OnceLock::new()).collect() }
    }

    /// Calls `f` for each word of `address..address + len`, with the word's page, its index in the
    /// page, and the part of it that lies in the range.
    fn words(
        &self,
        address: u64,
        len: usize,
        mut f: impl FnMut(&OnceLock<Box<[AtomicU64]>>, usize, Part),
    ) -> Result<(), MemoryError> {
        let error = MemoryError { address };
        let from = address.checked_sub(self.base).ok_or(error)?;
        let to = from.checked_add(len as u64).ok_or(error)?;
        if to > self.pages.len() as u64 * PAGE {
            return Err(error);
        }
        let mut at = from;
        while at < to {
            let first = at % WORD;
            let count = (WORD - first).min(to - at);
            let part =
                Part { at: (at - from) as usize, first: first as u32, count: count as usize };
            f(&self.pages[(at / PAGE) as usize], (at % PAGE / WORD) as usize, part);
            at += count;
        }
        Ok(())
    }

    /// Stores a word as the guest's own CPU would.
    pub(crate) fn store(&self, address: u64, word: u64) {
        self.write(address, &word.to_le_bytes()).expect("the guest's own memory");
    }
}

/// A part of a word: `count` bytes of the word from byte `first`, which are the caller's bytes from
/// `at`.
struct Part {
    at: usize,
    first: u32,
    count: usize,
}

impl Part {
    fn mask(&self) -> u64 {
        u64::MAX >> (64 - 8 * self.count) << (8 * self.first)
    }
}

impl GuestMemory for Ram {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.words(address, data.len(), |page, word, part| {
            // Acquire, as the trait requires.
            let word = page.get().map_or(0, |words| words[word].load(Ordering::Acquire));
            let bytes = (word >> (8 * part.first)).to_le_bytes();
            data[part.at..][..part.count].copy_from_slice(&bytes[..part.count]);
        })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.words(address, data.len(), |page, word, part| {
            let new = || (0..PAGE / WORD).map(|_| AtomicU64::new(0)).collect();
            let word = &page.get_or_init(new)[word];
            let mut bytes = [0; 8];
            bytes[..part.count].copy_from_slice(&data[part.at..][..part.count]);
            let (new, mask) = (u64::from_le_bytes(bytes) << (8 * part.first), part.mask());
            // Release, as the trait requires.
            if mask == u64::MAX {
                word.store(new, Ordering::Release);
            } else {
                // Another thread may be writing the other bytes.
                let merge = |old| Some(old & !mask | new);
                let _ = word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, merge);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_where_they_were_written() {
        let ram = Ram::new(0x1000, PAGE + 1);
        let data: Vec<u8> = (1..=21).collect();
        for address in [0x1000, 0x1003, 0x1000 + PAGE - 9, 0x1000 + 2 * PAGE - 21] {
            ram.write(address, &data).unwrap();
            let mut read = [0; 23];
            let from = address.saturating_sub(1).max(0x1000);
            let shift = (address - from) as usize;
            ram.read(from, &mut read[..shift + 21]).unwrap();
            assert_eq!(read[shift..shift + 21], data, "{address:#x}");
            ram.write(address, &[0; 21]).unwrap();
        }
        ram.store(0x1008, 0x0123_4567_89ab_cdef);
        ram.write(0x100a, &[0xff]).unwrap();
        let mut word = [0; 8];
        ram.read(0x1008, &mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), 0x0123_4567_89ff_cdef);
    }

    #[test]
    fn nothing_is_outside() {
        let ram = Ram::new(0x1000, PAGE);
        for address in [0, 0xfff, 0x1000 + PAGE - 7, u64::MAX - 3] {
            assert_eq!(ram.write(address, &[0; 8]), Err(MemoryError { address }));
            assert_eq!(ram.read(address, &mut [0; 8]), Err(MemoryError { address }));
        }
    }
}
