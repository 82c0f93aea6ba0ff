//! The common configuration structure of virtio over PCI (virtio 1.2, 4.1.4.3), and the effects of
//! the driver's writes: features, status, queues. Nothing here runs a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};

use crate::virtio::Health;

/// The value for "no vector".
pub(crate) const NO_VECTOR: u16 = 0xffff;
/// The maximum number of entries of a queue.
pub(crate) const QUEUE_SIZE: u16 = 256;
pub(crate) const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
/// The status bits that a driver can set.
const DRIVERS: u8 = (VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED) as u8;

/// A queue, as the driver has described it.
pub(crate) struct QueueRegisters {
    pub(crate) size: u16,
    pub(crate) enabled: bool,
    /// The driver may change it at any time, so the queue's thread reads it for each interrupt.
    pub(crate) vector: Arc<AtomicU16>,
    /// The addresses of descriptors, available ring and used ring.
    pub(crate) rings: [u64; 3],
}

impl QueueRegisters {
    fn new() -> Self {
        let vector = Arc::new(AtomicU16::new(NO_VECTOR));
        Self { size: QUEUE_SIZE, enabled: false, vector, rings: [0; 3] }
    }
}

/// The action that a write requires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Asked {
    Nothing,
    /// The driver is ready: the queues are to be served.
    Start,
    /// The device is to stop, followed by a call of [`Common::reset`].
    Reset,
}

/// The common configuration structure.
pub(crate) struct Common {
    offered: u64,
    /// The selected 32 bits of the device's features, and of the driver's.
    feature_select: [u32; 2],
    /// The features that the driver has written, including bits that were not offered.
    accepted: u128,
    status: u8,
    selected: u16,
    queues: Vec<QueueRegisters>,
    /// The highest vector that exists.
    last_vector: u16,
    health: Arc<Health>,
}

impl Common {
    /// Creates the structure, with one vector for the configuration and one for each queue.
    pub(crate) fn new(offered: u64, queues: u16) -> Self {
        Self {
            offered: offered | VERSION_1,
            feature_select: [0; 2],
            accepted: 0,
            status: 0,
            selected: 0,
            queues: (0..queues).map(|_| QueueRegisters::new()).collect(),
            last_vector: queues,
            health: Arc::new(Health::new(NO_VECTOR)),
        }
    }

    /// Restores the initial state. No thread may serve a queue.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.offered, self.last_vector);
    }

    pub(crate) fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    pub(crate) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Returns whether a feature has been agreed on.
    pub(crate) fn has(&self, feature: u64) -> bool {
        self.accepted as u64 & feature != 0
    }

    /// The device status: the driver's bits, and whether the driver has to reset the device.
    fn status(&self) -> u8 {
        self.status | if self.health.needs_reset() { NEEDS_RESET } else { 0 }
    }

    fn queue(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::from(self.selected))
    }

    /// Returns the register at an offset, and its width in bytes; `None` if no register begins
    /// there.
    fn register(&self, offset: u64) -> Option<(u64, usize)> {
        let word = |value: u128, select: u32| {
            let word = value.checked_shr(select.saturating_mul(32)).unwrap_or(0);
            (u64::from(word as u32), 4)
        };
        let queue = self.queues.get(usize::from(self.selected));
        let ring = |n: usize, shift: u32| {
            let width = if shift == 0 { 8 } else { 4 };
            (queue.map_or(0, |queue| queue.rings[n] >> shift), width)
        };
        // Relaxed: only the values matter.
        let vector = |vector: &AtomicU16| vector.load(Ordering::Relaxed).into();
        Some(match offset {
            0x00 => (self.feature_select[0].into(), 4),
            0x04 => word(self.offered.into(), self.feature_select[0]),
            0x08 => (self.feature_select[1].into(), 4),
            0x0c => word(self.accepted, self.feature_select[1]),
            0x10 => (vector(&self.health.config_vector), 2),
            0x12 => (self.queues.len() as u64, 2),
            0x14 => (self.status().into(), 1),
            // This is config_generation. It is constant, as configurations do not change.
            0x15 => (0, 1),
            0x16 => (self.selected.into(), 2),
            0x18 => (queue.map_or(0, |queue| queue.size.into()), 2),
            0x1a => (queue.map_or(NO_VECTOR.into(), |queue| vector(&queue.vector)), 2),
            0x1c => (queue.is_some_and(|queue| queue.enabled).into(), 2),
            0x1e => (queue.map_or(0, |_| self.selected.into()), 2),
            0x20 => ring(0, 0),
            0x24 => ring(0, 32),
            0x28 => ring(1, 0),
            0x2c => ring(1, 32),
            0x30 => ring(2, 0),
            0x34 => ring(2, 32),
            _ => return None,
        })
    }

    /// Reads a register, or as much of it as fits into `data`. Bytes behind the register read as
    /// zero.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some((value, width)) = self.register(offset) {
            let bytes = value.to_le_bytes();
            data.iter_mut().zip(&bytes[..width]).for_each(|(to, from)| *to = *from);
        }
    }

    /// Writes a register. Drivers access each register at its own width (4.1.3.1), and a 64-bit
    /// register also by its halves. Other accesses have no effect.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Asked {
        match (offset, data) {
            (0x20 | 0x28 | 0x30, &[a, b, c, d, e, f, g, h]) => {
                self.write32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            (_, &[a, b, c, d]) => self.write32(offset, u32::from_le_bytes([a, b, c, d])),
            (_, &[a, b]) => self.write16(offset, u16::from_le_bytes([a, b])),
            (0x14, &[status]) => return self.set_status(status),
            _ => {}
        }
        Asked::Nothing
    }

    fn write32(&mut self, offset: u64, value: u32) {
        match offset {
            0x00 => self.feature_select[0] = value,
            0x08 => self.feature_select[1] = value,
            // The agreed features are final (3.1.1).
            0x0c if self.status & FEATURES_OK == 0 => {
                let shift = self.feature_select[1].saturating_mul(32);
                if let Some(mask) = u128::from(u32::MAX).checked_shl(shift) {
                    self.accepted = self.accepted & !mask | u128::from(value) << shift;
                }
            }
            0x20..=0x34 => {
                let (n, high) = ((offset as usize - 0x20) / 8, offset & 4 != 0);
                // The addresses of an enabled queue are fixed.
                if let Some(queue) = self.queue().filter(|queue| !queue.enabled)
                    && offset.is_multiple_of(4)
                {
                    let (shift, ring) = (if high { 32 } else { 0 }, &mut queue.rings[n]);
                    *ring = *ring & !(0xffff_ffff << shift) | u64::from(value) << shift;
                }
            }
            _ => {}
        }
    }

    fn write16(&mut self, offset: u64, value: u16) {
        // A vector that does not exist is refused: the register shows "no vector" (4.1.5.1.2).
        let vector = if value <= self.last_vector { value } else { NO_VECTOR };
        match offset {
            // Relaxed, here and below: only the value matters.
            0x10 => self.health.config_vector.store(vector, Ordering::Relaxed),
            0x16 => self.selected = value,
            0x18 => {
                let valid = value.is_power_of_two() && value <= QUEUE_SIZE;
                if let Some(queue) = self.queue().filter(|queue| valid && !queue.enabled) {
                    queue.size = value;
                }
            }
            0x1a => {
                if let Some(queue) = self.queue() {
                    queue.vector.store(vector, Ordering::Relaxed);
                }
            }
            // Only a reset disables a queue (4.1.4.3.2). A driver enables its queues before it sets
            // DRIVER_OK.
            0x1c if value == 1 && self.status & DRIVER_OK == 0 => {
                if let Some(queue) = self.queue() {
                    queue.enabled = true;
                }
            }
            _ => {}
        }
    }

    fn set_status(&mut self, value: u8) -> Asked {
        if value == 0 {
            return Asked::Reset;
        }
        let mut new = value & DRIVERS & !self.status;
        // This bit stays clear if the driver accepts a feature that was not offered, or leaves out
        // a required one (3.1.1, 6.1).
        let agreed = self.accepted & !u128::from(self.offered) == 0 && self.has(VERSION_1);
        if !agreed {
            new &= !FEATURES_OK;
        }
        if (self.status | new) & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        self.status |= new;
        if new & DRIVER_OK != 0 { Asked::Start } else { Asked::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(common: &Common, offset: u64, len: usize) -> u64 {
        let mut data = [0xa5; 8];
        common.read(offset, &mut data[..len]);
        data[len..].fill(0);
        u64::from_le_bytes(data)
    }

    fn put(common: &mut Common, offset: u64, len: usize, value: u64) {
        assert_eq!(common.write(offset, &value.to_le_bytes()[..len]), Asked::Nothing);
    }

    /// Accepts features, and sets FEATURES_OK. Returns the status.
    fn negotiate(common: &mut Common, features: u128) -> u64 {
        put(common, 0x14, 1, 1);
        put(common, 0x14, 1, 3);
        for n in 0..4 {
            put(common, 0x08, 4, n);
            put(common, 0x0c, 4, (features >> (32 * n)) as u32 as u64);
        }
        put(common, 0x14, 1, 0xb);
        get(common, 0x14, 1)
    }

    #[test]
    fn features_are_what_was_offered() {
        let mut common = Common::new(1 << 9, 2);
        assert_eq!(get(&common, 0x04, 4), 1 << 9);
        put(&mut common, 0x00, 4, 1);
        assert_eq!(get(&common, 0x04, 4), 1);
        for select in [2, 3, 4, u64::from(u32::MAX)] {
            put(&mut common, 0x00, 4, select);
            assert_eq!(get(&common, 0x04, 4), 0);
        }
        let version = u128::from(VERSION_1);
        for wrong in [0, 1 << 9, version | 1, version | 1 << 33, version | 1 << 64, 1 << 127] {
            assert_eq!(negotiate(&mut common, wrong), 3, "{wrong:#x}");
            assert_eq!(common.write(0x14, &[0xf]), Asked::Nothing, "not without agreement");
            assert_eq!(get(&common, 0x14, 1), 3);
            common.reset();
        }
        assert_eq!(negotiate(&mut common, version), 0xb);
        put(&mut common, 0x08, 4, 0);
        put(&mut common, 0x0c, 4, 1 << 9);
        assert_eq!(get(&common, 0x0c, 4), 0, "too late");
        assert!(!common.has(1 << 9));
        assert_eq!(common.write(0x14, &[0x4f]), Asked::Start);
        assert_eq!(get(&common, 0x14, 1), 0xf, "that bit is the device's");
        assert_eq!(common.write(0x14, &[0xf]), Asked::Nothing, "once");
        assert_eq!(common.write(0x14, &[0]), Asked::Reset);
        common.reset();
        assert_eq!((get(&common, 0x14, 1), get(&common, 0x0c, 4)), (0, 0));
    }

    #[test]
    fn a_driver_can_agree_and_start_at_once() {
        let mut common = Common::new(0, 1);
        put(&mut common, 0x08, 4, 1);
        put(&mut common, 0x0c, 4, 1);
        assert_eq!(common.write(0x14, &[0xf]), Asked::Start);
    }

    #[test]
    fn queues_are_described_then_enabled() {
        let mut common = Common::new(0, 2);
        assert_eq!(get(&common, 0x12, 2), 2);
        put(&mut common, 0x16, 2, 1);
        for bad in [0, 3, 255, 512] {
            put(&mut common, 0x18, 2, bad);
            assert_eq!(get(&common, 0x18, 2), 256);
        }
        put(&mut common, 0x18, 2, 64);
        put(&mut common, 0x20, 8, 0x1_2345_6789_abc0);
        put(&mut common, 0x28, 4, 0x4000_1000);
        put(&mut common, 0x2c, 4, 7);
        put(&mut common, 0x34, 4, 9);
        put(&mut common, 0x1c, 2, 1);
        put(&mut common, 0x1c, 2, 0);
        put(&mut common, 0x18, 2, 16);
        put(&mut common, 0x20, 4, 0);
        assert_eq!(get(&common, 0x1c, 2), 1, "only a reset disables it");
        assert_eq!(get(&common, 0x18, 2), 64);
        assert_eq!(get(&common, 0x20, 8), 0x1_2345_6789_abc0);
        assert_eq!(get(&common, 0x24, 4), 0x1_2345);
        assert_eq!(common.queues()[1].rings, [0x1_2345_6789_abc0, 0x7_4000_1000, 9 << 32]);
        assert_eq!(get(&common, 0x1e, 2), 1);
        put(&mut common, 0x16, 2, 2);
        put(&mut common, 0x1c, 2, 1);
        assert_eq!(get(&common, 0x18, 2), 0, "there is no such queue");
        assert_eq!((get(&common, 0x1c, 2), get(&common, 0x1a, 2)), (0, 0xffff));
        negotiate(&mut common, VERSION_1.into());
        assert_eq!(common.write(0x14, &[0xf]), Asked::Start);
        put(&mut common, 0x16, 2, 0);
        put(&mut common, 0x1c, 2, 1);
        assert_eq!(get(&common, 0x1c, 2), 0, "too late");
        common.reset();
        put(&mut common, 0x16, 2, 1);
        assert_eq!((get(&common, 0x1c, 2), get(&common, 0x18, 2)), (0, 256));
    }

    #[test]
    fn vectors_that_do_not_exist_are_none() {
        let mut common = Common::new(0, 2);
        for (value, shown) in [(0, 0), (2, 2), (3, 0xffff), (1, 1), (0xffff, 0xffff)] {
            put(&mut common, 0x10, 2, value);
            put(&mut common, 0x1a, 2, value);
            assert_eq!((get(&common, 0x10, 2), get(&common, 0x1a, 2)), (shown, shown));
        }
    }

    #[test]
    fn odd_accesses_change_nothing() {
        let mut common = Common::new(u64::MAX >> 1, 1);
        let before: Vec<u64> = (0..0x40).map(|offset| get(&common, offset, 1)).collect();
        for offset in 0..0x40u64 {
            for len in [1, 2, 3, 4, 8] {
                // Skip accesses at the register's own width, and to the lower half of a 64-bit
                // register.
                let own = common.register(offset).map(|(_, width)| width);
                let half = own == Some(8) && len == 4;
                if own != Some(len) && !half {
                    let asked = common.write(offset, &[0x5a; 8][..len]);
                    assert_eq!(asked, Asked::Nothing, "{offset:#x} {len}");
                    let mut data = [0; 8];
                    common.read(offset, &mut data[..len]);
                }
            }
        }
        let after: Vec<u64> = (0..0x40).map(|offset| get(&common, offset, 1)).collect();
        assert_eq!(before, after);
        assert_eq!(get(&common, 0x14, 4), 0, "no neighbours");
    }
}
