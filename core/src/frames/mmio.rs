//! Register frames as tables: the registers of a frame, their access sizes, and the handling of all
//! other accesses.
//!
//! A frame is a sorted table of [`Reg`] (its layout) and two functions that read and write one
//! *element* of a register (its behavior, [`Frame`]). An element is a byte, a word or a doubleword,
//! depending on the register: an IPRIORITYR is an array of bytes, an ISENABLER one of words, an
//! IROUTER one of doublewords. This module splits an access that covers several elements, or a part
//! of one.
//!
//! Choices that the architecture leaves open (IHI 0069, 12.1.3; IHI 0048B, 4.1.4):
//!
//! * An access that is not aligned, or of a size that no register has, or wider than the register
//!   allows, is refused: the host is told to inject an external abort.
//! * An access that is narrower than the register allows, to an offset without a register, or in
//!   the wrong direction, reads as zero and ignores writes.

use core::fmt;

/// The reason that an access was not performed. The guest is to get an external abort.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MmioError {
    /// The address is in no frame of this interrupt controller.
    #[error("no frame at {0:#x}")]
    Unmapped(u64),
    /// The address is not a multiple of the size.
    #[error("unaligned access to {0:#x}")]
    Unaligned(u64),
    /// The register at this address cannot be accessed with this size, in bytes.
    #[error("access of {1} bytes to {0:#x}")]
    Width(u64, usize),
}

impl MmioError {
    /// Replaces the offset in a frame by the address.
    pub(crate) fn at(self, address: u64) -> Self {
        match self {
            Self::Unmapped(_) => Self::Unmapped(address),
            Self::Unaligned(_) => Self::Unaligned(address),
            Self::Width(_, bytes) => Self::Width(address, bytes),
        }
    }
}

/// The size of an access or an element.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(crate) enum Width {
    Byte = 1,
    Half = 2,
    Word = 4,
    Double = 8,
}

impl Width {
    pub(crate) const fn bytes(self) -> u32 {
        self as u32
    }

    const fn of(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Half),
            4 => Some(Self::Word),
            8 => Some(Self::Double),
            _ => None,
        }
    }
}

/// The directions in which a register can be accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rights {
    ReadOnly,
    WriteOnly,
    ReadWrite,
}

/// A register, or an array of them, in a frame.
pub(crate) struct Reg<K: 'static> {
    /// The offset from the frame's base, in bytes.
    pub(crate) offset: u32,
    /// The size of the whole array, in bytes.
    pub(crate) len: u32,
    /// The size of an element.
    pub(crate) element: Width,
    /// The allowed access sizes, as a sum of [`Width`] values.
    pub(crate) widths: u8,
    pub(crate) rights: Rights,
    pub(crate) kind: K,
    /// The architecture's name.
    pub(crate) name: &'static str,
}

impl<K: Copy> Reg<K> {
    /// `count` read-write words, accessed as words.
    pub(crate) const fn words(offset: u32, count: u32, kind: K, name: &'static str) -> Self {
        let (element, widths) = (Width::Word, Width::Word as u8);
        Self { offset, len: 4 * count, element, widths, rights: Rights::ReadWrite, kind, name }
    }

    /// One read-write word.
    pub(crate) const fn word(offset: u32, kind: K, name: &'static str) -> Self {
        Self::words(offset, 1, kind, name)
    }

    /// `count` read-write bytes, accessed as bytes or words.
    pub(crate) const fn bytes(offset: u32, count: u32, kind: K, name: &'static str) -> Self {
        let widths = Width::Byte as u8 | Width::Word as u8;
        Self {
            offset,
            len: count,
            element: Width::Byte,
            widths,
            rights: Rights::ReadWrite,
            kind,
            name,
        }
    }

    /// `count` read-write doublewords, accessed whole or by halves.
    pub(crate) const fn doubles(offset: u32, count: u32, kind: K, name: &'static str) -> Self {
        let widths = Width::Word as u8 | Width::Double as u8;
        Self {
            offset,
            len: 8 * count,
            element: Width::Double,
            widths,
            rights: Rights::ReadWrite,
            kind,
            name,
        }
    }

    /// Makes the register read-only.
    pub(crate) const fn ro(self) -> Self {
        Self { rights: Rights::ReadOnly, ..self }
    }

    /// Makes the register write-only.
    pub(crate) const fn wo(self) -> Self {
        Self { rights: Rights::WriteOnly, ..self }
    }

    /// Allows another access size.
    pub(crate) const fn also(self, width: Width) -> Self {
        Self { widths: self.widths | width as u8, ..self }
    }

    const fn allows(&self, width: Width) -> bool {
        self.widths & width as u8 != 0
    }

    /// Whether `width` is wider than the widest allowed access.
    const fn is_too_wide(&self, width: Width) -> bool {
        width as u8 > self.widths
    }
}

impl<K> fmt::Debug for Reg<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}", self.name, self.offset)
    }
}

/// A frame of registers.
///
/// `Cx` is the context of an access: the accessing vCPU, and the handles of the engine.
pub(crate) trait Frame<Cx> {
    /// The frame's own identification of a register.
    type Kind: Copy + 'static;

    /// The registers, sorted by offset, without overlap.
    const LAYOUT: &'static [Reg<Self::Kind>];

    /// Reads element `index` of a register that can be read.
    fn read(&mut self, cx: &Cx, kind: Self::Kind, index: u32) -> u64;

    /// Writes the bits of `mask` of element `index` of a register that can be written. The other
    /// bits of `value` are 0.
    fn write(&mut self, cx: &Cx, kind: Self::Kind, index: u32, value: u64, mask: u64);

    /// Handles an access without effect: there is no register at `offset`, or the register does not
    /// allow the access. `write` is true for a write.
    fn reserved(&mut self, cx: &Cx, offset: u32, write: bool) {
        let _ = (cx, offset, write);
    }
}

/// Finds the register that contains an offset.
pub(crate) fn find<K>(layout: &[Reg<K>], offset: u32) -> Option<&Reg<K>> {
    let after = layout.partition_point(|reg| reg.offset <= offset);
    layout[..after].last().filter(|reg| offset - reg.offset < reg.len)
}

/// The parts of elements that an access touches.
struct Parts {
    /// The offset from the start of the register.
    at: u32,
    left: u32,
    element: u32,
}

/// A part of one element.
struct Part {
    index: u32,
    /// The offset of the part in the element, and its size, in bytes.
    skip: u32,
    len: u32,
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.left == 0 {
            return None;
        }
        let (index, skip) = (self.at / self.element, self.at % self.element);
        let len = self.left.min(self.element - skip);
        self.at += len;
        self.left -= len;
        Some(Part { index, skip, len })
    }
}

const fn low_bytes(len: u32) -> u64 {
    u64::MAX >> (64 - 8 * len)
}

/// The result of `check`.
enum Checked<'r, K: 'static> {
    Register(&'r Reg<K>, Parts),
    Reserved,
}

fn check<K: Copy>(
    layout: &[Reg<K>],
    offset: u32,
    bytes: usize,
    write: bool,
) -> Result<Checked<'_, K>, MmioError> {
    let width = Width::of(bytes).ok_or(MmioError::Width(offset.into(), bytes))?;
    if !offset.is_multiple_of(width.bytes()) {
        return Err(MmioError::Unaligned(offset.into()));
    }
    let Some(reg) = find(layout, offset) else { return Ok(Checked::Reserved) };
    if reg.is_too_wide(width) {
        return Err(MmioError::Width(offset.into(), bytes));
    }
    let wrong_way = if write { Rights::ReadOnly } else { Rights::WriteOnly };
    let at = offset - reg.offset;
    if !reg.allows(width) || reg.rights == wrong_way || at + width.bytes() > reg.len {
        return Ok(Checked::Reserved);
    }
    let parts = Parts { at, left: width.bytes(), element: reg.element.bytes() };
    Ok(Checked::Register(reg, parts))
}

/// Reads `data.len()` bytes at `offset` of a frame, little-endian.
pub(crate) fn read<Cx, F: Frame<Cx>>(
    frame: &mut F,
    cx: &Cx,
    offset: u32,
    data: &mut [u8],
) -> Result<(), MmioError> {
    let mut value = 0;
    match check(F::LAYOUT, offset, data.len(), false)? {
        Checked::Reserved => frame.reserved(cx, offset, false),
        Checked::Register(reg, parts) => {
            let mut shift = 0;
            for part in parts {
                let element = frame.read(cx, reg.kind, part.index) >> (8 * part.skip);
                value |= (element & low_bytes(part.len)) << shift;
                shift += 8 * part.len;
            }
        }
    }
    data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
    Ok(())
}

/// Writes `data` at `offset` of a frame, little-endian.
pub(crate) fn write<Cx, F: Frame<Cx>>(
    frame: &mut F,
    cx: &Cx,
    offset: u32,
    data: &[u8],
) -> Result<(), MmioError> {
    match check(F::LAYOUT, offset, data.len(), true)? {
        Checked::Reserved => frame.reserved(cx, offset, true),
        Checked::Register(reg, parts) => {
            let mut bytes = [0; 8];
            bytes[..data.len()].copy_from_slice(data);
            let mut value = u64::from_le_bytes(bytes);
            for part in parts {
                let mask = low_bytes(part.len);
                let shift = 8 * part.skip;
                frame.write(cx, reg.kind, part.index, (value & mask) << shift, mask << shift);
                value = value.checked_shr(8 * part.len).unwrap_or(0);
            }
        }
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests;
