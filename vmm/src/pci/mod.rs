//! A PCIe host: ECAM, and a window for the functions' BARs. All functions are on bus 0, function 0 of their devices.

pub(crate) mod common;
pub(crate) mod config;
pub(crate) mod msix;
pub(crate) mod transport;

use std::sync::Mutex;

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::doorbell::lock;

/// A PCI function with one memory BAR.
pub(crate) trait Function: Send {
    /// Reads configuration space.
    fn config_read(&mut self, offset: usize, data: &mut [u8]);

    /// Writes configuration space.
    fn config_write(&mut self, offset: usize, data: &[u8]);

    /// Where its BAR is, if memory accesses are on, and how big it is.
    fn bar(&self) -> Option<(u64, u64)>;

    /// Reads its BAR.
    fn bar_read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes its BAR.
    fn bar_write(&mut self, offset: u64, data: &[u8]);
}

/// The functions, by device number. They do not change once the machine runs, so each has its own lock.
pub(crate) struct Functions(Vec<Mutex<Box<dyn Function>>>);

impl Functions {
    pub(crate) fn new(functions: Vec<Box<dyn Function>>) -> Self {
        Self(functions.into_iter().map(Mutex::new).collect())
    }

    /// The function whose configuration space has this offset in ECAM: bus 27:20, device 19:15, function 14:12.
    fn at_ecam(&self, offset: u64) -> Option<&Mutex<Box<dyn Function>>> {
        let bus_and_function = offset & !0xf_8fff;
        if bus_and_function != 0 {
            return None;
        }
        self.0.get((offset >> 15) as usize & 0x1f)
    }

    /// Calls `f` with the function whose BAR has this address, and the offset in it.
    fn at_address(&self, address: u64, f: impl FnOnce(&mut dyn Function, u64)) {
        for function in &self.0 {
            let mut function = lock(function);
            if let Some((base, size)) = function.bar()
                && (base..base + size).contains(&address)
            {
                return f(&mut **function, address - base);
            }
        }
    }
}

/// Configuration space, memory-mapped.
pub(crate) struct Ecam(pub(crate) std::sync::Arc<Functions>);

impl DeviceMmio for Ecam {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        // Nothing there: all ones.
        data.fill(0xff);
        if let Some(function) = self.0.at_ecam(offset) {
            lock(function).config_read(offset as usize & 0xfff, data);
        }
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Some(function) = self.0.at_ecam(offset) {
            lock(function).config_write(offset as usize & 0xfff, data);
        }
    }
}

/// The window that BARs are given out of.
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

    /// Answers with its number.
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
