//! Configuration space of a function: a type 0 header (PCI Local Bus 3.0, 6.1) with one 32-bit
//! memory BAR and capabilities.

/// The offset of the command register, and its bits: memory accesses, bus master, INTx off.
const COMMAND: usize = 0x04;
const MEMORY: u16 = 1 << 1;
const COMMAND_WRITABLE: u16 = MEMORY | 1 << 2 | 1 << 10;
/// The offset of BAR 0.
const BAR0: usize = 0x10;
/// The offset of the pointer to the first capability.
const CAPABILITIES: usize = 0x34;

/// The identity of a function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) revision: u8,
    /// Class, subclass, programming interface.
    pub(crate) class: [u8; 3],
    pub(crate) subsystem: u16,
}

/// The configuration space of a function.
pub(crate) struct Config {
    bytes: [u8; 256],
    /// The bits that a write changes.
    writable: [u8; 256],
    bar_size: u32,
    /// The offset of the next capability, and the offset of the pointer to it.
    next: usize,
    pointer: usize,
}

impl Config {
    /// Creates a function with a BAR of `bar_size` bytes, a power of two.
    pub(crate) fn new(identity: Identity, bar_size: u32) -> Self {
        let mut new = Self {
            bytes: [0; 256],
            writable: [0; 256],
            bar_size,
            next: 0x40,
            pointer: CAPABILITIES,
        };
        new.put(0x00, &identity.vendor.to_le_bytes());
        new.put(0x02, &identity.device.to_le_bytes());
        // Sets the status bit for a list of capabilities.
        new.put(0x06, &0x10u16.to_le_bytes());
        let [class, subclass, interface] = identity.class;
        new.put(0x08, &[identity.revision, interface, subclass, class]);
        new.put(0x2c, &identity.vendor.to_le_bytes());
        new.put(0x2e, &identity.subsystem.to_le_bytes());
        new.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        new.allow(BAR0, &(!(bar_size - 1)).to_le_bytes());
        // The interrupt line register is scratch space for the guest.
        new.allow(0x3c, &[0xff]);
        new
    }

    /// Sets the bytes that a read at `at` returns.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Adds a capability from its number and the bytes that follow the two bytes of its head.
    /// Returns its offset.
    pub(crate) fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[(usize, u8)],
    ) -> usize {
        let at = self.next;
        self.bytes[self.pointer] = at as u8;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        writable.iter().for_each(|&(offset, mask)| self.writable[at + offset] = mask);
        self.pointer = at + 1;
        // Capabilities are aligned to 4 bytes.
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            // Extended space reads as zero: it has no capabilities.
            *byte = self.bytes.get(offset + n).copied().unwrap_or(0);
        }
    }

    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        for (n, &new) in data.iter().enumerate() {
            if let Some(byte) = self.bytes.get_mut(offset + n) {
                let mask = self.writable[offset + n];
                *byte = *byte & !mask | new & mask;
            }
        }
    }

    /// Returns the 16-bit register at an offset.
    pub(crate) fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// Returns the 32-bit register at an offset.
    pub(crate) fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    /// Returns the BAR's address and size, if memory accesses are on.
    pub(crate) fn bar(&self) -> Option<(u64, u64)> {
        let on = self.u16(COMMAND) & MEMORY != 0;
        on.then_some((self.u32(BAR0).into(), self.bar_size.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [1, 0x80, 0],
            subsystem: 2,
        };
        Config::new(identity, 0x8000)
    }

    fn u32_at(config: &Config, offset: usize) -> u32 {
        let mut data = [0; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn accesses_at_the_end_are_no_more_than_that() {
        let mut config = config();
        for offset in [0xfc, 0xfd, 0xff, 0x100, 0xfff] {
            config.write(offset, &[0xff; 8]);
            let mut data = [1; 8];
            config.read(offset, &mut data);
            assert_eq!(data, [0; 8]);
        }
        // Some drivers place BARs byte by byte.
        config.write(BAR0 + 1, &[0x90]);
        config.write(BAR0 + 3, &[0x10]);
        assert_eq!(u32_at(&config, BAR0), 0x1000_8000);
    }

    #[test]
    fn a_bar_is_sized_and_placed() {
        let mut config = config();
        assert_eq!(u32_at(&config, 0), 0x1042_1af4);
        assert_eq!(u32_at(&config, 8), 0x0180_0001);
        config.write(BAR0, &[0xff; 4]);
        assert_eq!(u32_at(&config, BAR0), 0xffff_8000);
        config.write(BAR0, &0x1000_8123u32.to_le_bytes());
        assert_eq!(config.bar(), None, "memory accesses are off");
        config.write(COMMAND, &[0xff, 0xff]);
        assert_eq!(u32_at(&config, COMMAND), 0x0010_0406);
        assert_eq!(config.bar(), Some((0x1000_8000, 0x8000)));
        config.write(0, &[0; 4]);
        assert_eq!(u32_at(&config, 0), 0x1042_1af4, "read-only");
        assert_eq!(u32_at(&config, 0x100), 0, "no extended capabilities");
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut config = config();
        let first = config.add_capability(9, &[16, 1, 2], &[]);
        let second = config.add_capability(0x11, &[3, 0x80], &[(3, 0xc0)]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(u32_at(&config, CAPABILITIES), 0x40);
        assert_eq!(u32_at(&config, first), 0x0110_4809);
        config.write(second + 2, &[0xff, 0x7f]);
        assert_eq!(config.u16(second + 2), 0x4003, "the mask bit can be written, the size cannot");
    }
}
