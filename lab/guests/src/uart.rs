//! The console: a PL011, of which only the transmitter is used.

use core::fmt::{self, Write};

use crate::mmio;

const UART: u64 = 0x0900_0000;
const DR: u64 = UART;
const FR: u64 = UART + 0x18;
const CR: u64 = UART + 0x30;
const FR_TX_FULL: u32 = 1 << 5;

pub struct Console;

/// Enables the transmitter, which some emulations insist on.
pub fn init() {
    mmio::write32(CR, 1 | 1 << 8);
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while mmio::read32(FR) & FR_TX_FULL != 0 {}
            mmio::write32(DR, byte.into());
        }
        Ok(())
    }
}

/// Prints a line. One CPU prints at a time, by the payloads' structure: checks run on CPU 0.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        // The console does not fail.
        let _ = writeln!($crate::uart::Console, $($arg)*);
    }};
}
