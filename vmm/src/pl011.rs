//! The console: the subset of an Arm PL011 UART (DDI 0183) that firmware, payloads and Linux use.

use std::collections::VecDeque;
use std::io::Write;

/// The register offsets.
const DR: u64 = 0x00;
const FR: u64 = 0x18;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
/// UARTPeriphID0-3 and UARTPCellID0-3.
const ID: u64 = 0xfe0;
const IDS: [u32; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// Flags: receiver empty, receiver full, transmitter empty.
const RXFE: u32 = 1 << 4;
const RXFF: u32 = 1 << 6;
const TXFE: u32 = 1 << 7;
/// Interrupts: received, transmitted, receive timeout.
const RX: u32 = 1 << 4;
const TX: u32 = 1 << 5;
const RT: u32 = 1 << 6;
/// The size of the receiver's FIFO, in bytes.
const FIFO: usize = 16;

/// A PL011. `L` is called with the level of its interrupt.
pub(crate) struct Pl011<W, L> {
    out: W,
    line: L,
    level: bool,
    input: VecDeque<u8>,
    /// IBRD, FBRD, LCR_H, CR, IFLS. They keep their values, and have no effect.
    kept: [u32; 5],
    mask: u32,
    raw: u32,
}

impl<W: Write, L: FnMut(bool)> Pl011<W, L> {
    pub(crate) fn new(out: W, line: L) -> Self {
        let kept = [0, 0, 0, 0x300, 0x12];
        Self { out, line, level: false, input: VecDeque::new(), kept, mask: 0, raw: 0 }
    }

    /// Takes typed bytes. Returns how many fitted.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(FIFO - self.input.len());
        self.input.extend(&bytes[..taken]);
        self.update();
        taken
    }

    fn update(&mut self) {
        self.raw &= !(RX | RT);
        if !self.input.is_empty() {
            // As if the input were slow: a receive timeout accompanies all received bytes.
            self.raw |= RX | RT;
        }
        let level = self.raw & self.mask != 0;
        if level != self.level {
            self.level = level;
            (self.line)(level);
        }
    }

    fn kept(&mut self, offset: u64) -> Option<&mut u32> {
        let n = [IBRD, FBRD, LCR_H, CR, IFLS].iter().position(|&register| register == offset)?;
        Some(&mut self.kept[n])
    }

    pub(crate) fn read(&mut self, offset: u64) -> u32 {
        match offset {
            DR => {
                let byte = self.input.pop_front().unwrap_or(0);
                self.update();
                byte.into()
            }
            FR => {
                let empty = if self.input.is_empty() { RXFE } else { 0 };
                let full = if self.input.len() >= FIFO { RXFF } else { 0 };
                TXFE | empty | full
            }
            IMSC => self.mask,
            RIS => self.raw,
            MIS => self.raw & self.mask,
            ID.. => IDS.get(((offset - ID) / 4) as usize).copied().unwrap_or(0),
            _ => self.kept(offset).map_or(0, |value| *value),
        }
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        match offset {
            DR => {
                // An error is ignored: if the terminal is gone, there is no place to report it.
                let _ = self.out.write_all(&[value as u8]).and_then(|()| self.out.flush());
                self.raw |= TX;
            }
            IMSC => self.mask = value & 0x7ff,
            ICR => self.raw &= !value,
            _ => {
                if let Some(kept) = self.kept(offset) {
                    *kept = value;
                }
            }
        }
        self.update();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_written_comes_out() {
        let mut uart = Pl011::new(Vec::new(), |_| {});
        b"hi".iter().for_each(|&byte| uart.write(DR, byte.into()));
        assert_eq!(uart.out, b"hi");
        assert_eq!(uart.read(FR) & (TXFE | RXFE), TXFE | RXFE);
        assert_eq!(uart.read(0xfe0), 0x11);
        assert_eq!(uart.read(0xffc), 0xb1);
    }

    #[test]
    fn the_line_follows_mask_and_state() {
        let level = Cell::new(false);
        let mut uart = Pl011::new(std::io::sink(), |high| level.set(high));
        uart.write(DR, 1);
        assert!(!level.get());
        uart.write(IMSC, TX);
        assert!(level.get());
        uart.write(ICR, TX);
        assert!(!level.get());
        uart.write(IMSC, RX | RT);
        assert_eq!(uart.receive(&[7; 20]), FIFO);
        assert!(level.get());
        assert_eq!(uart.read(FR) & RXFF, RXFF);
        uart.write(ICR, 0x7ff);
        assert!(level.get(), "as long as there is something to read");
        (0..FIFO).for_each(|_| assert_eq!(uart.read(DR), 7));
        assert!(!level.get());
    }
}
