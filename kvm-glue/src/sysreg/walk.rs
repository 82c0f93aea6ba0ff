//! The translation of an instruction's address: stage 1 of the guest's address translation (ARM DDI
//! 0487, D8.2 to D8.3).
//!
//! The walk is that of EL1&0 at stage 1, for an address that was executed at EL1. Conditions that
//! the execution rules out are not checked: permissions, access flags, memory types. All features
//! that affect the address are supported: granules of 4, 16 and 64 KiB, both halves of the address
//! space, input addresses of up to 52 bits (FEAT_LVA, FEAT_LPA2), output addresses of up to 52 bits
//! (FEAT_LPA, FEAT_LPA2), small translation tables (FEAT_TTST), tables in either byte order.
//!
//! The tables are the guest's, and can have any contents. A walk reads at most five descriptors,
//! wherever they point: it visits each level once, so it cannot loop, and ends at a descriptor that
//! is invalid or where there is no memory.

use std::fmt;

/// The guest's memory, read in words by guest physical address.
pub trait Physical {
    /// Returns the four bytes at `address`, which is a multiple of 4. `None`: there is no memory.
    fn word(&self, address: u64) -> Option<[u8; 4]>;

    /// Returns the eight bytes at `address`, which is a multiple of 8, in one access. `None`: there
    /// is no memory.
    fn double_word(&self, address: u64) -> Option<[u8; 8]>;
}

impl<M: vgic_core::memory::GuestMemory + ?Sized> Physical for M {
    fn word(&self, address: u64) -> Option<[u8; 4]> {
        let mut data = [0; 4];
        self.read(address, &mut data).ok().map(|()| data)
    }

    fn double_word(&self, address: u64) -> Option<[u8; 8]> {
        let mut data = [0; 8];
        self.read(address, &mut data).ok().map(|()| data)
    }
}

/// The registers that address translation at EL1 depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Regime {
    /// The system control register, SCTLR_EL1.
    pub sctlr: u64,
    /// The translation control register, TCR_EL1.
    pub tcr: u64,
    /// The translation table base registers, TTBR0_EL1 and TTBR1_EL1.
    pub ttbr: [u64; 2],
}

/// The reason why an address cannot be translated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Fault {
    /// The address is in neither half of the address space, or walks of its half are disabled.
    #[error("the address is outside of what is translated")]
    Outside,
    /// TCR_EL1 holds a reserved granule or a size out of range.
    #[error("TCR_EL1 is not valid")]
    Control,
    /// A descriptor is not valid, or its type does not exist at its level.
    #[error("no valid descriptor at level {0}")]
    Translation(i8),
    /// An address is larger than TCR_EL1.IPS allows.
    #[error("an address that is too large at level {0}")]
    AddressSize(i8),
    /// A table is at an address without memory.
    #[error("no memory where the table of level {0} should be")]
    NoMemory(i8),
}

const SCTLR_M: u64 = 1;
const SCTLR_EE: u64 = 1 << 25;
const TCR_DS: u64 = 1 << 59;
/// The largest number of bits of an address in the architecture.
const MOST_BITS: u32 = 52;
const LAST_LEVEL: i8 = 3;

/// Returns the bits `high` to `low` of a value.
const fn bits(value: u64, high: u32, low: u32) -> u64 {
    value >> low & (u64::MAX >> (63 - (high - low)))
}

/// Returns a value's bits below bit `n`.
const fn below(value: u64, n: u32) -> u64 {
    if n >= 64 { value } else { value & ((1 << n) - 1) }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Granule {
    K4,
    K16,
    K64,
}

impl Granule {
    /// The number of address bits within a page.
    const fn bits(self) -> u32 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }

    /// The number of address bits that a level resolves. A table is a page of 8-byte descriptors.
    const fn stride(self) -> u32 {
        self.bits() - 3
    }

    /// Returns the granule of one half. TG0 and TG1 have different encodings.
    const fn of(tcr: u64, upper: bool) -> Option<Self> {
        match (upper, if upper { bits(tcr, 31, 30) } else { bits(tcr, 15, 14) }) {
            (false, 0) | (true, 2) => Some(Self::K4),
            (false, 2) | (true, 1) => Some(Self::K16),
            (false, 1) | (true, 3) => Some(Self::K64),
            _ => None,
        }
    }
}

/// The translation parameters of one half of the address space, from TCR_EL1 and SCTLR_EL1.
#[derive(Clone, Copy, Debug)]
struct Half {
    granule: Granule,
    /// The number of bits of an input address.
    input: u32,
    /// The number of bits of an output address.
    output: u32,
    /// The tables hold 52-bit addresses in the format of FEAT_LPA2.
    lpa2: bool,
    big_endian: bool,
}

impl Half {
    fn new(regime: &Regime, upper: bool) -> Result<Self, Fault> {
        let tcr = regime.tcr;
        let (size, disabled) = if upper {
            (bits(tcr, 21, 16), bits(tcr, 23, 23) != 0)
        } else {
            (bits(tcr, 5, 0), bits(tcr, 7, 7) != 0)
        };
        if disabled {
            return Err(Fault::Outside);
        }
        let granule = Granule::of(tcr, upper).ok_or(Fault::Control)?;
        let wide = granule == Granule::K64;
        let lpa2 = !wide && tcr & TCR_DS != 0;
        let smallest = if wide || lpa2 { 12 } else { 16 };
        let largest = if wide { 47 } else { 48 };
        if !(smallest..=largest).contains(&size) {
            return Err(Fault::Control);
        }
        let output = match bits(tcr, 34, 32) {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            5 => 48,
            _ if wide || lpa2 => MOST_BITS,
            _ => 48,
        };
        let big_endian = regime.sctlr & SCTLR_EE != 0;
        Ok(Self { granule, input: 64 - size as u32, output, lpa2, big_endian })
    }

    /// The lowest bit of an input address that a level resolves.
    const fn shift(&self, level: i8) -> u32 {
        self.granule.bits() + (LAST_LEVEL - level) as u32 * self.granule.stride()
    }

    const fn first_level(&self) -> i8 {
        LAST_LEVEL - ((self.input - 1 - self.granule.bits()) / self.granule.stride()) as i8
    }

    fn check(&self, address: u64, level: i8) -> Result<u64, Fault> {
        if below(address, self.output) == address {
            Ok(address)
        } else {
            Err(Fault::AddressSize(level))
        }
    }

    /// Returns the address of the table in a TTBR, without the ASID and CnP.
    fn root(&self, ttbr: u64) -> Result<u64, Fault> {
        let level = self.first_level();
        // The table holds a descriptor for each value of the bits that the first level resolves.
        let aligned = self.input - self.shift(level) + 3;
        let base = if self.lpa2 || self.output == MOST_BITS {
            // Bits 5:2 are the upper bits of the address, so the table is aligned to at least 64
            // bytes.
            bits(ttbr, 5, 2) << 48 | bits(ttbr, 47, 6) << 6
        } else {
            bits(ttbr, 47, 1) << 1
        };
        self.check(base & !below(u64::MAX, aligned), level)
    }

    /// Returns the address in a descriptor, for a page, block or table of `1 << shift` bytes.
    fn target(&self, descriptor: u64, shift: u32, level: i8) -> Result<u64, Fault> {
        let top = if self.lpa2 { 49 } else { 47 };
        let low = bits(descriptor, top, shift) << shift;
        let high = match self.granule {
            Granule::K64 => bits(descriptor, 15, 12) << 48,
            _ if self.lpa2 => bits(descriptor, 9, 8) << 50,
            _ => 0,
        };
        self.check(high | low, level)
    }

    const fn has_blocks(&self, level: i8) -> bool {
        match self.granule {
            Granule::K4 => level == 2 || level == 1 || (level == 0 && self.lpa2),
            Granule::K16 => level == 2 || (level == 1 && self.lpa2),
            // Blocks at level 1 came with FEAT_LPA. TCR_EL1.IPS tells whether the guest uses that.
            Granule::K64 => level == 2 || (level == 1 && self.output == MOST_BITS),
        }
    }

    fn descriptor(
        &self,
        memory: &(impl Physical + ?Sized),
        at: u64,
        level: i8,
    ) -> Result<u64, Fault> {
        let bytes = memory.double_word(at).ok_or(Fault::NoMemory(level))?;
        Ok(if self.big_endian { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) })
    }
}

/// The result of a translation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mapping {
    /// The guest physical address.
    pub address: u64,
    /// The size of the page or block is `1 << size` bytes.
    pub size: u32,
}

/// Translates `va` to a guest physical address, as EL1 does when it fetches an instruction.
///
/// # Errors
/// [`Fault`] if EL1 could not fetch from `va`.
pub fn walk(memory: &(impl Physical + ?Sized), regime: &Regime, va: u64) -> Result<Mapping, Fault> {
    if regime.sctlr & SCTLR_M == 0 {
        // The MMU is off. The mapping is flat, and covers all addresses.
        return if below(va, MOST_BITS) == va {
            Ok(Mapping { address: va, size: MOST_BITS })
        } else {
            Err(Fault::AddressSize(0))
        };
    }
    let upper = va >> 55 & 1 != 0;
    let half = Half::new(regime, upper)?;
    // All bits above the input address equal bit 55. An address in PC has no tag.
    let above = va >> half.input;
    if above != if upper { u64::MAX >> half.input } else { 0 } {
        return Err(Fault::Outside);
    }
    let input = below(va, half.input);
    let mut level = half.first_level();
    let mut table = half.root(regime.ttbr[usize::from(upper)])?;
    loop {
        let shift = half.shift(level);
        let index = below(input >> shift, half.granule.stride());
        let descriptor = half.descriptor(memory, table | index << 3, level)?;
        match (descriptor & 3, level) {
            (3, LAST_LEVEL) => {}
            (3, _) => {
                table = half.target(descriptor, half.granule.bits(), level)?;
                level += 1;
                continue;
            }
            (1, _) if half.has_blocks(level) => {}
            _ => return Err(Fault::Translation(level)),
        }
        let base = half.target(descriptor, shift, level)?;
        return Ok(Mapping { address: base | below(input, shift), size: shift });
    }
}

impl fmt::Display for Regime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sctlr, tcr, ttbr: [ttbr0, ttbr1] } = self;
        write!(f, "SCTLR_EL1 {sctlr:#x} TCR_EL1 {tcr:#x} TTBR0_EL1 {ttbr0:#x} TTBR1_EL1 {ttbr1:#x}")
    }
}
