//! The console on the bus, and the thread that types into it.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use anyhow::Result;
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::doorbell::lock;
use crate::irq::Irqs;
use crate::map;
use crate::output::Output;
use crate::pl011::Pl011;

type Line = Box<dyn FnMut(bool) + Send>;

/// A UART that another thread types into.
pub(crate) struct Console<W> {
    uart: Mutex<Pl011<W, Line>>,
    /// Signals that the guest has read, so there may be room for more.
    read: Condvar,
}

impl<W: Write + Send> Console<W> {
    fn new(out: W, line: Line) -> Self {
        Self { uart: Mutex::new(Pl011::new(out, line)), read: Condvar::new() }
    }

    /// Types all of `bytes`, at the rate at which the guest reads.
    fn type_in(&self, mut bytes: &[u8]) {
        let mut uart = lock(&self.uart);
        loop {
            bytes = &bytes[uart.receive(bytes)..];
            if bytes.is_empty() {
                return;
            }
            uart = self.read.wait(uart).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<W: Write + Send> DeviceMmio for Console<W> {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        let value = lock(&self.uart).read(offset & !3);
        // Cheap if no thread waits.
        self.read.notify_one();

        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let mut value = [0; 4];
        value.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        lock(&self.uart).write(offset & !3, u32::from_le_bytes(value));
    }
}

/// Starts a console with standard input as its terminal and `output` as its output.
pub(crate) fn start(irqs: &Irqs, output: Output) -> Result<Arc<Console<Output>>> {
    let sender = irqs.sender()?;
    let line = Box::new(move |level| _ = sender.line(map::PL011_INTID, level));
    let console = Arc::new(Console::new(output, line));
    let typed = Arc::clone(&console);
    // This thread ends with the process, or at the end of its input.
    thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = std::io::stdin().read(&mut buffer) {
            typed.type_in(&buffer[..n]);
        }
    })?;
    Ok(console)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::*;

    const DR: u64 = 0;
    const FR: u64 = 0x18;
    const EMPTY: u8 = 1 << 4;
    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn what_does_not_fit_waits_for_the_guest_to_read() {
        let console = Arc::new(Console::new(std::io::sink(), Box::new(|_| {})));
        let (typed, (done, is_done)) = (Arc::clone(&console), channel());
        let text: Vec<u8> = (0..200).collect();
        let expected = text.clone();
        thread::spawn(move || {
            typed.type_in(&text);
            let _ = done.send(());
        });
        let read = |offset| {
            let mut data = [0];
            console.mmio_read(MmioAddress(0), offset, &mut data);
            data[0]
        };
        let (mut got, begin) = (Vec::new(), Instant::now());
        while got.len() < expected.len() {
            assert!(begin.elapsed() < PATIENCE, "nothing happens");
            if read(FR) & EMPTY == 0 {
                got.push(read(DR));
            } else {
                thread::yield_now();
            }
        }
        assert_eq!(got, expected);
        is_done.recv_timeout(PATIENCE).unwrap();
    }
}
