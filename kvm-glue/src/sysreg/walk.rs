//! Where an instruction is that the guest has fetched: stage 1 of its address translation (ARM DDI 0487, D8.2 to D8.3).
//!
//! The walk is that of EL1&0 at stage 1 for an address that was executed at EL1, so what cannot have been the case is not looked
//! at: permissions, access flags, memory types. What decides over addresses is: granules of 4, 16 and 64 KiB, both halves of the
//! address space, input addresses of up to 52 bits (FEAT_LVA, FEAT_LPA2), output addresses of up to 52 bits (FEAT_LPA,
//! FEAT_LPA2), small translation tables (FEAT_TTST), tables in either byte order.
//!
//! The tables are the guest's, and may hold anything. A walk reads at most five descriptors, wherever they point to: each level is
//! looked at once, so that there is no loop, and what is not there or not valid ends it.

use std::fmt;

/// The guest's memory by guest physical address, to read words of.
pub trait Physical {
    /// The four bytes at `address`, which is a multiple of 4. `None` if nothing is there.
    fn word(&self, address: u64) -> Option<[u8; 4]>;

    /// The eight bytes at `address`, which is a multiple of 8, in one access. `None` if nothing is there.
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
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1 and TTBR1_EL1.
    pub ttbr: [u64; 2],
}

/// Why an address cannot be translated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Fault {
    /// It is in neither half of the address space, or walks of its half are disabled.
    #[error("the address is outside of what is translated")]
    Outside,
    /// TCR_EL1 holds a reserved granule or a size out of range.
    #[error("TCR_EL1 is not valid")]
    Control,
    /// A descriptor is not valid, or of a kind that there is not at its level.
    #[error("no valid descriptor at level {0}")]
    Translation(i8),
    /// An address is larger than TCR_EL1.IPS allows.
    #[error("an address that is too large at level {0}")]
    AddressSize(i8),
    /// A table is where there is no memory.
    #[error("no memory where the table of level {0} should be")]
    NoMemory(i8),
}

const SCTLR_M: u64 = 1;
const SCTLR_EE: u64 = 1 << 25;
const TCR_DS: u64 = 1 << 59;
/// The number of bits of an address that the architecture has room for.
const MOST_BITS: u32 = 52;
const LAST_LEVEL: i8 = 3;

/// The bits `high` to `low` of a value.
const fn bits(value: u64, high: u32, low: u32) -> u64 {
    value >> low & (u64::MAX >> (63 - (high - low)))
}

/// A value's bits below `n`.
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
    /// The number of bits within a page.
    const fn bits(self) -> u32 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }

    /// The number of bits that a level resolves: a table is a page of 8-byte descriptors.
    const fn stride(self) -> u32 {
        self.bits() - 3
    }

    /// TG0 and TG1 have encodings of their own.
    const fn of(tcr: u64, upper: bool) -> Option<Self> {
        match (upper, if upper { bits(tcr, 31, 30) } else { bits(tcr, 15, 14) }) {
            (false, 0) | (true, 2) => Some(Self::K4),
            (false, 2) | (true, 1) => Some(Self::K16),
            (false, 1) | (true, 3) => Some(Self::K64),
            _ => None,
        }
    }
}

/// What TCR_EL1 says of one half of the address space.
#[derive(Clone, Copy, Debug)]
struct Half {
    granule: Granule,
    /// Bits of an input address.
    input: u32,
    /// Bits of an output address.
    output: u32,
    /// 52-bit addresses in the format of FEAT_LPA2.
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

    /// The table that a TTBR names. Before it are the ASID and CnP.
    fn root(&self, ttbr: u64) -> Result<u64, Fault> {
        let level = self.first_level();
        // A descriptor for each value of the bits that the first level resolves.
        let aligned = self.input - self.shift(level) + 3;
        let base = if self.lpa2 || self.output == MOST_BITS {
            // Bits 5:2 are the address's upper ones, so that the table is aligned to 64 bytes at least.
            bits(ttbr, 5, 2) << 48 | bits(ttbr, 47, 6) << 6
        } else {
            bits(ttbr, 47, 1) << 1
        };
        self.check(base & !below(u64::MAX, aligned), level)
    }

    /// The address in a descriptor, for a page, block or table of `1 << shift` bytes.
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
            // Those of level 1 came with FEAT_LPA, and TCR_EL1.IPS tells whether the guest makes use of that.
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

/// A run of addresses that are translated alike.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mapping {
    /// The guest physical address.
    pub address: u64,
    /// The page or block is of `1 << size` bytes.
    pub size: u32,
}

/// The guest physical address of `va`, as EL1 would fetch an instruction from there.
///
/// # Errors
/// [`Fault`]: EL1 would not.
pub fn walk(memory: &(impl Physical + ?Sized), regime: &Regime, va: u64) -> Result<Mapping, Fault> {
    if regime.sctlr & SCTLR_M == 0 {
        // Flat, and as large as an address can be.
        return if below(va, MOST_BITS) == va {
            Ok(Mapping { address: va, size: MOST_BITS })
        } else {
            Err(Fault::AddressSize(0))
        };
    }
    let upper = va >> 55 & 1 != 0;
    let half = Half::new(regime, upper)?;
    // All bits above the input address are as bit 55 is. An address in PC has no tag.
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
