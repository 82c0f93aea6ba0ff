//! A PCIe host: ECAM, and a window for the functions' BARs. All functions are on bus 0, and each is
//! function 0 of its device.

pub(crate) mod common;
pub(crate) mod config;
pub(crate) mod msix;
pub(crate) mod transport;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::doorbell::lock;

/// A PCI function with one memory BAR.
pub(crate) trait Function: Send {
    /// Reads configuration space.
    fn config_read(&mut self, offset: usize, data: &mut [u8]);

    /// Writes configuration space.
    fn config_write(&mut self, offset: usize, data: &[u8]);

    /// Returns the BAR's address and size, if memory accesses are on.
    fn bar(&self) -> Option<(u64, u64)>;

    /// Reads the function's BAR.
    fn bar_read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes the function's BAR.
    fn bar_write(&mut self, offset: u64, data: &[u8]);
}

/// A function, and a copy of its BAR's place that a reader can check an address against without the
/// lock.
struct Slot {
    function: Mutex<Box<dyn Function>>,
    /// Address and size; a size of 0 means that the BAR has no address. The holder of the lock
    /// writes them. A reader may see parts of two places, so it re-checks under the lock.
    bar: [AtomicU64; 2],
}

impl Slot {
    fn new(function: Box<dyn Function>) -> Self {
        let slot = Self { bar: Default::default(), function: Mutex::new(function) };
        slot.note(&**lock(&slot.function));
        slot
    }

    fn note(&self, function: &dyn Function) {
        let (base, size) = function.bar().unwrap_or((0, 0));
        // Release: pairs with `may_have`. A guest that accesses a BAR while it moves the BAR gets
        // either place.
        self.bar[0].store(base, Ordering::Release);
        self.bar[1].store(size, Ordering::Release);
    }

    fn may_have(&self, address: u64) -> bool {
        // Acquire: pairs with `note`.
        let [base, size] = [0, 1].map(|n| self.bar[n].load(Ordering::Acquire));
        address.checked_sub(base).is_some_and(|offset| offset < size)
    }
}

/// The functions, by device number. The list does not change once the machine runs, so each
/// function has its own lock. This lock is taken only for accesses to this function, so a slow
/// function does not delay another one.
pub(crate) struct Functions(Vec<Slot>);

impl Functions {
    pub(crate) fn new(functions: Vec<Box<dyn Function>>) -> Self {
        Self(functions.into_iter().map(Slot::new).collect())
    }

    /// Returns the function with this offset in ECAM: bus 27:20, device 19:15, function 14:12.
    fn at_ecam(&self, offset: u64) -> Option<&Slot> {
        let bus_and_function = offset & !0xf_8fff;
        if bus_and_function != 0 {
            return None;
        }
        self.0.get((offset >> 15) as usize & 0x1f)
    }

    /// Finds the function with this address in its BAR, and calls `f` with it and the offset in the
    /// BAR.
    fn at_address(&self, address: u64, f: impl FnOnce(&mut dyn Function, u64)) {
        for slot in self.0.iter().filter(|slot| slot.may_have(address)) {
            let mut function = lock(&slot.function);
            if let Some((base, size)) = function.bar()
                && (base..base + size).contains(&address)
            {
                return f(&mut **function, address - base);
            }
        }
    }
}

/// Memory-mapped configuration space.
pub(crate) struct Ecam(pub(crate) std::sync::Arc<Functions>);

impl DeviceMmio for Ecam {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        // Reads as all ones where there is no function.
        data.fill(0xff);
        if let Some(slot) = self.0.at_ecam(offset) {
            lock(&slot.function).config_read(offset as usize & 0xfff, data);
        }
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Some(slot) = self.0.at_ecam(offset) {
            let mut function = lock(&slot.function);
            function.config_write(offset as usize & 0xfff, data);
            slot.note(&**function);
        }
    }
}

/// The window for the functions' BARs.
pub(crate) struct Window(pub(crate) std::sync::Arc<Functions>);

impl DeviceMmio for Window {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        self.0.at_address(base.0 + offset, |function, offset| function.bar_read(offset, data));
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.0.at_address(base.0 + offset, |function, offset| function.bar_write(offset, data));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A function that answers with its number.
    struct Fake(u8, Option<u64>);

    impl Function for Fake {
        fn config_read(&mut self, _: usize, data: &mut [u8]) {
            data.fill(self.0);
        }
        fn config_write(&mut self, offset: usize, _: &[u8]) {
            self.1 = Some(offset as u64);
        }
        fn bar(&self) -> Option<(u64, u64)> {
            self.1.map(|base| (base, 0x1000))
        }
        fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = self.0 + offset as u8;
        }
        fn bar_write(&mut self, _: u64, _: &[u8]) {}
    }

    /// A busy function, such as one that waits for a queue's thread, delays no access to another
    /// function's BAR.
    #[test]
    fn a_busy_function_holds_up_no_other() {
        let fakes: Vec<Box<dyn Function>> =
            vec![Box::new(Fake(1, Some(0x1000))), Box::new(Fake(2, Some(0x2000)))];
        let functions = Arc::new(Functions::new(fakes));
        let window = Window(Arc::clone(&functions));
        let _busy = lock(&functions.0[0].function);
        let mut data = [0];
        window.mmio_read(MmioAddress(0x1000), 0x1003, &mut data);
        assert_eq!(data, [5]);
        window.mmio_read(MmioAddress(0x1000), 0x2000, &mut data);
        assert_eq!(data, [0xff], "nobody's");
    }

    #[test]
    fn functions_are_found() {
        let fakes: Vec<Box<dyn Function>> =
            vec![Box::new(Fake(1, None)), Box::new(Fake(2, Some(0x2000)))];
        let functions = Arc::new(Functions::new(fakes));
        let (ecam, window) = (Ecam(Arc::clone(&functions)), Window(functions));
        let config = |offset| {
            let mut data = [0];
            ecam.mmio_read(MmioAddress(0x3f00_0000), offset, &mut data);
            data[0]
        };
        assert_eq!([0, 0x8000, 0x1_0000].map(config), [1, 2, 0xff]);
        assert_eq!([0x1000, 0x10_0000].map(config), [0xff, 0xff], "another function, another bus");
        let bar = |offset| {
            let mut data = [0];
            window.mmio_read(MmioAddress(0x1000), offset, &mut data);
            data[0]
        };
        assert_eq!([0, 0x1000, 0x1005, 0x2000].map(bar), [0xff, 2, 7, 0xff]);
    }
}
