//! The cost of mappings, in heap bytes: the unit of the bound [`Config::max_bytes`].
//!
//! Existing objects are counted anyhow, one by one ([`Counts`]). So the cost is a sum, which the
//! control plane computes when objects are about to be made. A thread that makes objects first
//! reserves the most that they can need, so that several threads do not take the same last bytes.
//!
//! Models: none. Only limits depend on these counts, and loom does not track them.

use crate::engine::{Config, Error};
use crate::lockfree::irq::Irq;
use crate::lockfree::map::lpis;
use crate::lockfree::map::radix::{self, Node};
use crate::lockfree::msi::Device;
use crate::lockfree::pending::block::Block;
use crate::lockfree::reclaim::retired::{Count, Counts, Retired};

/// The bytes that a usual heap needs for an object: one word beside it, all rounded up to two
/// words; and if the object's alignment is larger than that, room to align it.
const fn heap(size: usize, align: usize) -> usize {
    let words = 2 * size_of::<usize>();
    let rounded = (size + size_of::<usize>()).next_multiple_of(words);
    if align > words { rounded.next_multiple_of(align) } else { rounded }
}

const IRQ: usize = heap(size_of::<Irq>(), align_of::<Irq>());
const NODE: usize = heap(size_of::<Node>(), align_of::<Node>());
const BLOCK: usize = heap(Block::BYTES, 64) + 64;
const DEVICE: usize = heap(size_of::<Device>(), align_of::<Device>());
/// The bytes of a retired object's place in the list of objects that wait for the end of a grace
/// period, if it is alone there. The list grows by doubling.
const WAITING: usize = 2 * size_of::<(u64, *const ())>();

/// The bytes of a retired object, and of its place among the objects that wait.
pub(crate) const fn of_retired(object: &Retired) -> usize {
    WAITING
        + match object {
            Retired::Irq(_) => IRQ,
            Retired::Node(_) => NODE,
            Retired::Block(_) => BLOCK,
            Retired::Device(_) => DEVICE,
            // It belongs to the host, as its route did.
            Retired::Hold(_) => 0,
        }
}

/// The most bytes that one mapping adds.
pub(crate) fn of_one_mapping(config: &Config) -> usize {
    let (lpis, blocks) = lpis::key_bits_of(config.lpis);
    let keys = [config.device_bits.into(), config.event_bits.into(), lpis, blocks];
    let nodes: u32 = keys.into_iter().map(|bits| radix::levels(bits) - 1).sum();
    IRQ + BLOCK + DEVICE + NODE * nodes as usize
}

impl Config {
    /// The most bytes that mapping one event costs: an LPI, its block of pending bits, a device,
    /// and nodes of their own in all trees. With a smaller [`Config::max_bytes`] no event could be
    /// mapped.
    pub fn bytes_of_one(&self) -> u64 {
        of_one_mapping(self) as u64
    }

    /// Checks every bound that the fields' descriptions state.
    ///
    /// # Errors
    /// [`Error::Config`] names the first field that is out of its range.
    pub fn check(&self) -> Result<(), Error> {
        self.check_ranges()?;
        let least = self.bytes_of_one();
        if self.lpis > 0 && self.max_bytes < least {
            return Err(Error::Needs { field: "max_bytes", least });
        }
        Ok(())
    }
}

impl Counts {
    /// The heap bytes in use, without the heap's own overhead.
    pub(crate) fn bytes(&self) -> usize {
        self.irqs.get() * size_of::<Irq>()
            + self.nodes.get() * size_of::<Node>()
            + self.blocks.get() * Block::BYTES
            + self.devices.get() * size_of::<Device>()
            + self.beside.get()
    }

    /// The whole cost, with the heap's overhead, the waiting lists, and the reservations.
    fn cost(&self) -> usize {
        self.irqs.get() * IRQ
            + self.nodes.get() * NODE
            + self.blocks.get() * BLOCK
            + self.devices.get() * DEVICE
            + self.garbage.get() * WAITING
            + self.beside.get()
            + self.reserved.get()
    }

    /// The part of the cost that passes: retired objects, LPIs that are no longer mapped and that
    /// no route keeps, and reservations, which are the most that other threads need. An LPI that is
    /// both mapped and kept is subtracted twice: then the result is less than the part that passes.
    fn passing(&self) -> usize {
        let stay = self.dead_irqs.get() + self.mapped.get() + self.kept.get();
        let irqs = self.irqs.get().saturating_sub(stay) * IRQ;
        irqs + self.dead_bytes.get() + self.reserved.get()
    }

    /// Reserves bytes for objects that are about to be made.
    ///
    /// # Errors
    /// [`Error::TooManyBytes`].
    pub(crate) fn reserve(&self, config: &Config, bytes: usize) -> Result<Reserved<'_>, Error> {
        self.reserved.add(bytes);
        let reserved = Reserved { count: &self.reserved, bytes };
        let most = usize::try_from(config.max_bytes).unwrap_or(usize::MAX);
        if self.cost() <= most { Ok(reserved) } else { Err(Error::TooManyBytes) }
    }

    /// Whether there will be room for `bytes` once the part of the cost that passes has passed.
    /// There may be room already.
    pub(crate) fn will_have_bytes(&self, config: &Config, bytes: usize) -> bool {
        let most = usize::try_from(config.max_bytes).unwrap_or(usize::MAX);
        (self.cost() + bytes).saturating_sub(self.passing()) <= most
    }
}

/// A reservation of bytes, which its holder may or may not use. Dropping it gives the bytes back.
pub(crate) struct Reserved<'c> {
    count: &'c Count,
    bytes: usize,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.count.sub(self.bytes);
    }
}

/// The heap bytes of an entry of a B-tree. A node has room for 11 entries, of which at least 5 are
/// in use, and pointers to 12 other nodes.
pub(crate) const fn btree_entry<K, V>() -> usize {
    (size_of::<(K, V)>() + 8) * 11 / 5 + 8
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// Two threads that are about to make objects can be in each other's way. One of them is then
    /// told to try again.
    #[test]
    fn what_others_have_reserved_passes() {
        let one = of_one_mapping(&Config::default());
        let config = Config { max_bytes: one as u64 * 3 / 2, ..Config::default() };
        let counts = Counts::default();
        let other = counts.reserve(&config, one);
        assert!(other.is_ok());
        assert_eq!(counts.reserve(&config, one).err(), Some(Error::TooManyBytes));
        assert!(counts.will_have_bytes(&config, one), "then");
        drop(other);
        assert!(counts.will_have_bytes(&config, one), "by now");
        counts.beside.add(one);
        assert!(!counts.will_have_bytes(&config, one), "that stays");
    }
}
