//! The functions that compilers call without being asked to; there is no libc here.

use core::ptr::{read_volatile, write_volatile};

// Volatile accesses, so that the loops are not made into calls of the functions that they are.

/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    let mut at = 0;
    // SAFETY: the caller's: both are `n` bytes. Words only where both are aligned, which the MMU off demands.
    unsafe {
        if to as usize % 8 == 0 && from as usize % 8 == 0 {
            while at + 8 <= n {
                write_volatile(to.add(at).cast::<u64>(), read_volatile(from.add(at).cast::<u64>()));
                at += 8;
            }
        }
        while at < n {
            write_volatile(to.add(at), read_volatile(from.add(at)));
            at += 1;
        }
    }
    to
}

/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if (to as usize) <= (from as usize) {
        // SAFETY: the caller's; a copy from the front is right when the destination is in front.
        return unsafe { memcpy(to, from, n) };
    }
    for at in (0..n).rev() {
        // SAFETY: the caller's.
        unsafe { write_volatile(to.add(at), read_volatile(from.add(at))) };
    }
    to
}

/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    for at in 0..n {
        // SAFETY: the caller's.
        unsafe { write_volatile(to.add(at), byte as u8) };
    }
    to
}

/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for at in 0..n {
        // SAFETY: the caller's.
        let (a, b) = unsafe { (read_volatile(a.add(at)), read_volatile(b.add(at))) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// # Safety
/// As `memcmp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the caller's.
    unsafe { memcmp(a, b, n) }
}
