//! MSI-X of a function (PCI Local Bus 3.0, 6.8.2): its table, its pending bits, and the way of its messages.

use std::sync::Mutex;

use vgic_kvm::msi::Msi;

use crate::doorbell::lock;
use crate::irq::IrqSender;

/// Bits of message control.
pub(crate) const ENABLE: u16 = 1 << 15;
pub(crate) const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of an entry.
const ENTRY: u64 = 16;
/// An entry's vector control, and its mask bit.
const CONTROL: usize = 3;
const MASKED: u32 = 1;

struct State {
    enabled: bool,
    masked: bool,
    /// Address, upper address, data, vector control.
    table: Vec<[u32; 4]>,
    pending: Vec<bool>,
}

impl State {
    /// The message of a vector that may be sent now.
    fn message(&self, n: usize, device: u32) -> Option<Msi> {
        let entry = self.table.get(n)?;
        let open = self.enabled && !self.masked && entry[CONTROL] & MASKED == 0;
        let address = u64::from(entry[0]) | u64::from(entry[1]) << 32;
        open.then_some(Msi { address, data: entry[2], device })
    }
}

/// A function's MSI-X.
pub(crate) struct Msix {
    state: Mutex<State>,
    /// The function's RequesterID.
    device: u32,
}

impl Msix {
    pub(crate) fn new(vectors: u16, device: u32) -> Self {
        let vectors = usize::from(vectors);
        let table = vec![[0, 0, 0, MASKED]; vectors];
        let state = State { enabled: false, masked: false, table, pending: vec![false; vectors] };
        Self { state: Mutex::new(state), device }
    }

    /// Sends a vector's message, or remembers it while it is masked. A vector that does not exist is none.
    pub(crate) fn fire(&self, vector: u16, sender: &dyn IrqSender) {
        let n = usize::from(vector);
        let message = {
            let mut state = lock(&self.state);
            let message = state.message(n, self.device);
            if message.is_none()
                && state.enabled
                && let Some(pending) = state.pending.get_mut(n)
            {
                *pending = true;
            }
            message
        };
        if let Some(message) = message {
            sender.msi(&message);
        }
    }

    /// Sends what has been waiting for a mask to open.
    fn release(&self, sender: &dyn IrqSender) {
        let due: Vec<Msi> = {
            let mut state = lock(&self.state);
            let open = (0..state.table.len()).filter(|&n| state.pending[n]);
            let open: Vec<_> =
                open.filter_map(|n| Some((n, state.message(n, self.device)?))).collect();
            open.iter().for_each(|&(n, _)| state.pending[n] = false);
            open.into_iter().map(|(_, message)| message).collect()
        };
        due.iter().for_each(|message| _ = sender.msi(message));
    }

    /// Message control was written.
    pub(crate) fn control(&self, value: u16, sender: &dyn IrqSender) {
        {
            let mut state = lock(&self.state);
            (state.enabled, state.masked) = (value & ENABLE != 0, value & FUNCTION_MASK != 0);
        }
        self.release(sender);
    }

    /// Reads the table.
    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        let words = data.chunks_mut(4).zip((offset / 4)..);
        for (bytes, word) in words {
            let entry = state.table.get((word / 4) as usize);
            let value = entry.map_or(0, |entry| entry[(word % 4) as usize]);
            bytes.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
    }

    /// Writes the table, in words of 4 or 8 bytes.
    pub(crate) fn write_table(&self, offset: u64, data: &[u8], sender: &dyn IrqSender) {
        {
            let mut state = lock(&self.state);
            for (bytes, at) in data.chunks_exact(4).zip((offset..).step_by(4)) {
                let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                if let Some(entry) = state.table.get_mut((at / ENTRY) as usize) {
                    entry[(at % ENTRY / 4) as usize] = value;
                }
            }
        }
        self.release(sender);
    }

    /// Reads the pending bits.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        for (n, byte) in data.iter_mut().enumerate() {
            let first = (offset as usize + n) * 8;
            let bits = (0..8).filter(|bit| state.pending.get(first + bit) == Some(&true));
            *byte = bits.fold(0, |bits, bit| bits | 1 << bit);
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
        msix.fire(0, &sent);
        msix.control(ENABLE, &sent);
        assert_eq!(count(), 0, "what came before it was enabled is gone");
        msix.write_table(16, &0x0802_0040u64.to_le_bytes(), &sent);
        msix.write_table(24, &81u32.to_le_bytes(), &sent);
        msix.fire(1, &sent);
        msix.fire(7, &sent);
        let mut pending = [0];
        msix.read_pending(0, &mut pending);
        assert_eq!((pending, count()), ([2], 0));
        msix.write_table(28, &0u32.to_le_bytes(), &sent);
        let msi = Msi { address: 0x0802_0040, data: 81, device: 8 };
        assert_eq!(*lock(&sent.0), [msi]);
        msix.control(ENABLE | FUNCTION_MASK, &sent);
        msix.fire(1, &sent);
        assert_eq!(count(), 1);
        msix.control(ENABLE, &sent);
        assert_eq!(count(), 2);
        let mut entry = [0; 16];
        msix.read_table(16, &mut entry);
        assert_eq!(entry[..9], [0x40, 0, 2, 8, 0, 0, 0, 0, 81]);
    }
}
