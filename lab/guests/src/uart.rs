//! The console: the transmitter of a PL011.

use core::fmt::{self, Write};

use crate::mmio;

const UART: u64 = 0x0900_0000;
const DR: u64 = UART;
const FR: u64 = UART + 0x18;
const CR: u64 = UART + 0x30;
const FR_TX_FULL: u32 = 1 << 5;

pub struct Console;

/// Enables the transmitter, as some emulations require.
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

/// Prints a line. Only one CPU prints at a time, as checks run on CPU 0.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        // The console cannot fail.
        let _ = writeln!($crate::uart::Console, $($arg)*);
    }};
}
