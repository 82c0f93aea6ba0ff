//! Files of the host, through semihosting calls, on emulators that support them. A read blocks in
//! the host, not in the guest.

use core::arch::asm;

const OPEN: u64 = 0x01;
const CLOSE: u64 = 0x02;
const WRITE: u64 = 0x05;
const READ: u64 = 0x06;

/// The mode of an open file, like "rb" and "wb" of C's `fopen`.
#[derive(Clone, Copy)]
pub enum Mode {
    Read = 1,
    Write = 5,
}

/// An open file. Dropping it does not close it.
pub struct File(u64);

fn call(operation: u64, block: &[u64]) -> u64 {
    let result: u64;
    // SAFETY: the callers' blocks name memory of theirs that is as large as they say.
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

    /// Fills `bytes`. Returns false if the file has fewer bytes.
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

    /// Writes all of `bytes`. Returns whether that succeeded.
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
