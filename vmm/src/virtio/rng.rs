//! virtio-rng (virtio 1.2, 5.4), backed by the host's random numbers.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Backend, Backing, Chain};

/// The maximum number of bytes for a request.
const MOST: usize = 4096;

/// The random number device.
pub(crate) struct Rng(File);

impl Rng {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(File::open("/dev/urandom").context("opening /dev/urandom")?))
    }
}

impl Backend for Rng {
    const TYPE: u16 = VIRTIO_ID_RNG as u16;
    const CLASS: [u8; 3] = [0xff, 0, 0];

    fn queues(&self) -> u16 {
        1
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn serve(&self, chain: Chain, memory: &Backing, _: &AtomicBool) -> u32 {
        let Ok(mut writer) = chain.writer(memory) else { return 0 };
        let mut bytes = vec![0; writer.available_bytes().min(MOST)];
        let done = (&self.0).read_exact(&mut bytes).and_then(|()| writer.write_all(&bytes));
        if done.is_ok() { bytes.len() as u32 } else { 0 }
    }
}
