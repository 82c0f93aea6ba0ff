//! The functions that compilers call implicitly. There is no libc here.

use core::ptr::{read_volatile, write_volatile};

// The accesses are volatile, so that the compiler does not replace a loop with a call of its own
// function.

/// # Safety
/// The requirements of C's `memcpy` apply.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    let mut at = 0;
    // SAFETY: the caller guarantees `n` bytes at both addresses. Words are used only where both are
    // aligned, as required with the MMU off.
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
/// The requirements of C's `memmove` apply.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if (to as usize) <= (from as usize) {
        // SAFETY: guaranteed by the caller. A forward copy is correct if the destination is in
        // front of the source.
        return unsafe { memcpy(to, from, n) };
    }
    for at in (0..n).rev() {
        // SAFETY: guaranteed by the caller.
        unsafe { write_volatile(to.add(at), read_volatile(from.add(at))) };
    }
    to
}

/// # Safety
/// The requirements of C's `memset` apply.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    for at in 0..n {
        // SAFETY: guaranteed by the caller.
        unsafe { write_volatile(to.add(at), byte as u8) };
    }
    to
}

/// # Safety
/// The requirements of C's `memcmp` apply.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for at in 0..n {
        // SAFETY: guaranteed by the caller.
        let (a, b) = unsafe { (read_volatile(a.add(at)), read_volatile(b.add(at))) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// # Safety
/// The requirements of `memcmp` apply.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: guaranteed by the caller.
    unsafe { memcmp(a, b, n) }
}
