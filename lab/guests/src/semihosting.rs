//! Files of the host, by semihosting calls of an emulator that offers them. A read waits in the host, not in the guest.

use core::arch::asm;

const OPEN: u64 = 0x01;
const CLOSE: u64 = 0x02;
const WRITE: u64 = 0x05;
const READ: u64 = 0x06;

/// How a file is opened: as C's `fopen` with "rb" and with "wb".
#[derive(Clone, Copy)]
pub enum Mode {
    Read = 1,
    Write = 5,
}

/// An open file. Not closed by itself.
pub struct File(u64);

fn call(operation: u64, block: &[u64]) -> u64 {
    let result: u64;
    // SAFETY: the blocks below name memory that is the caller's and as large as they say.
    unsafe {
        asm!("hlt #0xf000", inout("x0") operation => result, in("x1") block.as_ptr(), options(nostack));
    }
    result
}

impl File {
    /// Opens a file of the host. The name ends with a zero.
    pub fn open(name: &[u8], mode: Mode) -> Option<Self> {
        assert!(name.last() == Some(&0));
        let block = [name.as_ptr() as u64, mode as u64, name.len() as u64 - 1];
        let handle = call(OPEN, &block);
        (handle != u64::MAX).then_some(Self(handle))
    }

    /// Fills `bytes`; whether the file had so many.
    pub fn read(&self, bytes: &mut [u8]) -> bool {
        let mut at = 0;
        while at < bytes.len() {
            let want = (bytes.len() - at) as u64;
            let missing = call(READ, &[self.0, bytes[at..].as_mut_ptr() as u64, want]);
            if missing >= want {
                return false;
            }
            at += (want - missing) as usize;
        }
        true
    }

    /// Writes all of `bytes`; whether that was possible.
    pub fn write(&self, bytes: &[u8]) -> bool {
        let mut at = 0;
        while at < bytes.len() {
            let have = (bytes.len() - at) as u64;
            let left = call(WRITE, &[self.0, bytes[at..].as_ptr() as u64, have]);
            if left >= have {
                return false;
            }
            at += (have - left) as usize;
        }
        true
    }

    pub fn close(self) {
        call(CLOSE, &[self.0]);
    }
}
