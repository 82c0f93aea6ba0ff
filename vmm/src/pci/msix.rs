//! MSI-X of a function (PCI Local Bus 3.0, 6.8.2): its table, its pending bits, and the delivery of
//! its messages.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};

use vgic_kvm::msi::Msi;

use crate::doorbell::lock;
use crate::irq::IrqSender;

/// Bits of the message control register.
pub(crate) const ENABLE: u16 = 1 << 15;
pub(crate) const FUNCTION_MASK: u16 = 1 << 14;
/// The size of a table entry, in bytes.
const ENTRY: u64 = 16;
/// The mask bit of an entry's vector control.
const MASKED: u32 = 1;
/// The writable bits of each word of an entry.
const WRITABLE: [u32; 4] = [!3, !0, !0, MASKED];

/// A vector of a function.
struct Vector {
    /// Address, upper address, data, vector control.
    entry: [u32; 4],
    pending: bool,
}

/// A function's MSI-X.
pub(crate) struct Msix {
    /// [`ENABLE`] and [`FUNCTION_MASK`].
    control: AtomicU16,
    /// A vector's lock is held while its message is sent, so no message follows a write that masks
    /// the vector.
    vectors: Vec<Mutex<Vector>>,
    /// The function's RequesterID.
    device: u32,
}

impl Msix {
    pub(crate) fn new(vectors: u16, device: u32) -> Self {
        let vector = |_| Mutex::new(Vector { entry: [0, 0, 0, MASKED], pending: false });
        Self { control: AtomicU16::new(0), vectors: (0..vectors).map(vector).collect(), device }
    }

    /// Returns message control as the holder of a vector's lock sees it: the value of the last
    /// [`Msix::set_control`] that has held this lock, or of one that runs concurrently.
    fn control(&self) -> u16 {
        // Relaxed: the vector's lock orders it.
        self.control.load(Ordering::Relaxed)
    }

    /// Sends a vector's message if no mask is set. Returns whether it was sent.
    fn send(&self, vector: &Vector, sender: &dyn IrqSender) -> bool {
        let [low, high, data, control] = vector.entry;
        let open = self.control() & (ENABLE | FUNCTION_MASK) == ENABLE && control & MASKED == 0;
        if open {
            let address = u64::from(low) | u64::from(high) << 32;
            sender.msi(&Msi { address, data, device: self.device });
        }
        open
    }

    /// Sends a vector's message, or sets its pending bit while it is masked. A vector that does not
    /// exist sends nothing. Returns whether MSI-X is enabled; if not, no pending bit is set.
    pub(crate) fn fire(&self, vector: u16, sender: &dyn IrqSender) -> bool {
        if let Some(vector) = self.vectors.get(usize::from(vector)) {
            let mut vector = lock(vector);
            if !self.send(&vector, sender) {
                vector.pending |= self.control() & ENABLE != 0;
            }
        }
        self.control() & ENABLE != 0
    }

    /// Sends the message of a pending vector, if it is no longer masked.
    fn release(&self, vector: &mut Vector, sender: &dyn IrqSender) {
        if vector.pending {
            vector.pending = !self.send(vector, sender);
        }
    }

    /// Handles a write to message control.
    pub(crate) fn set_control(&self, value: u16, sender: &dyn IrqSender) {
        // Relaxed: the vectors' locks, each of which is taken next, order it.
        self.control.store(value & (ENABLE | FUNCTION_MASK), Ordering::Relaxed);
        self.vectors.iter().for_each(|vector| self.release(&mut lock(vector), sender));
    }

    /// Clears all pending bits, as the device has been reset.
    pub(crate) fn clear_pending(&self) {
        self.vectors.iter().for_each(|vector| lock(vector).pending = false);
    }

    /// Returns the vector with this offset in the table, and the index of the word in its entry.
    fn word(&self, offset: u64) -> Option<(&Mutex<Vector>, usize)> {
        let vector = self.vectors.get(usize::try_from(offset / ENTRY).ok()?)?;
        Some((vector, (offset % ENTRY / 4) as usize))
    }

    /// Reads the table.
    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let word = self.word(at).map_or(0, |(vector, word)| lock(vector).entry[word]);
            *byte = word.to_le_bytes()[(at % 4) as usize];
        }
    }

    /// Writes the table, in aligned words of 4 or 8 bytes. Other accesses are undefined (6.8.2),
    /// and have no effect here.
    pub(crate) fn write_table(&self, offset: u64, data: &[u8], sender: &dyn IrqSender) {
        if !offset.is_multiple_of(data.len() as u64) || ![4, 8].contains(&data.len()) {
            return;
        }
        for (bytes, at) in data.chunks_exact(4).zip((offset..).step_by(4)) {
            let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if let Some((vector, word)) = self.word(at) {
                let mut vector = lock(vector);
                vector.entry[word] = value & WRITABLE[word];
                self.release(&mut vector, sender);
            }
        }
    }

    /// Reads the pending bits.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            let first = (offset as usize + n) * 8;
            let pending =
                |bit: &usize| self.vectors.get(first + bit).is_some_and(|v| lock(v).pending);
            *byte = (0..8).filter(pending).fold(0, |bits, bit| bits | 1 << bit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Msi>>);

    impl IrqSender for Recorder {
        fn msi(&self, msi: &Msi) -> bool {
            lock(&self.0).push(*msi);
            true
        }
        fn line(&self, _: u32, _: bool) -> bool {
            false
        }
    }

    #[test]
    fn masked_messages_wait() {
        let (msix, sent) = (Msix::new(2, 8), Recorder::default());
        let count = || lock(&sent.0).len();
        assert!(!msix.fire(0, &sent));
        msix.set_control(ENABLE, &sent);
        assert_eq!(count(), 0, "what came before it was enabled is gone");
        msix.write_table(16, &0x0802_0040u64.to_le_bytes(), &sent);
        msix.write_table(24, &81u32.to_le_bytes(), &sent);
        assert!(msix.fire(1, &sent));
        assert!(msix.fire(0xffff, &sent), "no vector: no message");
        let mut pending = [0];
        msix.read_pending(0, &mut pending);
        assert_eq!((pending, count()), ([2], 0));
        msix.write_table(28, &0u32.to_le_bytes(), &sent);
        let msi = Msi { address: 0x0802_0040, data: 81, device: 8 };
        assert_eq!(*lock(&sent.0), [msi]);
        msix.set_control(ENABLE | FUNCTION_MASK, &sent);
        msix.fire(1, &sent);
        assert_eq!(count(), 1);
        msix.set_control(ENABLE, &sent);
        assert_eq!(count(), 2);
        let mut entry = [0; 16];
        msix.read_table(16, &mut entry);
        assert_eq!(entry[..9], [0x40, 0, 2, 8, 0, 0, 0, 0, 81]);
    }

    #[test]
    fn a_function_mask_keeps_the_pending_bits() {
        let (msix, sent) = (Msix::new(12, 8), Recorder::default());
        let count = || lock(&sent.0).len();
        (0..12).for_each(|n| msix.write_table(n * ENTRY + 12, &[0; 4], &sent));
        msix.set_control(ENABLE | FUNCTION_MASK, &sent);
        [0, 9, 11].iter().for_each(|&vector| assert!(msix.fire(vector, &sent)));
        let mut pending = [0xff; 4];
        msix.read_pending(0, &mut pending);
        assert_eq!((pending, count()), ([1, 0b1010, 0, 0], 0));
        // One vector is also masked in its entry, and one is cleared by its device's reset.
        msix.write_table(9 * ENTRY + 12, &[0xff; 4], &sent);
        msix.set_control(ENABLE, &sent);
        msix.read_pending(0, &mut pending);
        assert_eq!((pending, count()), ([0, 0b10, 0, 0], 2));
        msix.clear_pending();
        msix.write_table(9 * ENTRY + 12, &[0; 4], &sent);
        assert_eq!(count(), 2);
    }

    #[test]
    fn odd_accesses_to_the_table_change_nothing() {
        let (msix, sent) = (Msix::new(2, 8), Recorder::default());
        for (offset, len) in [(0, 1), (0, 2), (2, 4), (4, 8), (0, 3), (32, 4), (u64::MAX - 7, 8)] {
            msix.write_table(offset, &[0xff; 8][..len], &sent);
        }
        let mut table = [0; 40];
        msix.read_table(0, &mut table);
        let masked: Vec<usize> = (0..40).filter(|&n| table[n] != 0).collect();
        assert_eq!(masked, [12, 28], "as at first");
        msix.write_table(8, &[0xff; 8], &sent);
        msix.write_table(0, &[0xff; 4], &sent);
        msix.read_table(0, &mut table);
        assert_eq!(table[..16], [0xfc, 255, 255, 255, 0, 0, 0, 0, 255, 255, 255, 255, 1, 0, 0, 0]);
        let mut byte = [0];
        msix.read_table(0, &mut byte);
        assert_eq!(byte, [0xfc], "also byte by byte");
    }
}
