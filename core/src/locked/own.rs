//! The fields that only LPIs have, and those that only wired interrupts have, in one word.

use crate::arch::ids::Group;

/// The fields of one kind of interrupt. An interrupt fits into a cache line only if LPIs and wired
/// interrupts share this space.
///
/// For an LPI, the word is the number of events that are mapped to it. For a wired interrupt, the
/// fields are, from bit 0 up, with their widths:
///
/// ```text
/// 13  PPI, SPI: the physical interrupt that it is mapped to. SGI: the pending senders (8)
/// 13  as last presented. PPI, SPI: the physical interrupt. SGI: the sender's number plus one (4)
///  1  the host made it active, and its target has not taken that in
///  2  the order to become active (2) or inactive (3) once the guest has been left
///  1  its line has been set since the host was asked for its level
///  1  the group that it was last presented in
/// ```
///
/// A physical interrupt is at least 16, so 0 means none.
#[derive(Clone, Copy, Default)]
pub(super) struct Own(u32);

const TIED: u32 = 0;
const OFFERED: u32 = 13;
const FIELD: u32 = (1 << 13) - 1;
const PLACED: u32 = 1 << 26;
const ORDER: u32 = 27;
const ORDERS: u32 = 3 << ORDER;
const LINE_SET: u32 = 1 << 29;
const OFFERED_GROUP1: u32 = 1 << 30;

impl Own {
    fn field(self, shift: u32) -> u32 {
        self.0 >> shift & FIELD
    }

    fn set_field(&mut self, shift: u32, value: u32) {
        self.0 = self.0 & !(FIELD << shift) | (value & FIELD) << shift;
    }

    fn set_flag(&mut self, flag: u32, on: bool) {
        self.0 = if on { self.0 | flag } else { self.0 & !flag };
    }

    /// For an LPI: counts one more event that is mapped to it.
    pub(super) fn add_mapping(&mut self) {
        self.0 += 1;
    }

    /// For an LPI: counts one event less that is mapped to it.
    pub(super) fn drop_mapping(&mut self) {
        self.0 -= 1;
    }

    /// For an LPI: whether an event is mapped to it.
    pub(super) fn is_mapped(self) -> bool {
        self.0 > 0
    }

    /// For an SGI: the senders for which it is pending, and not in a list register.
    pub(super) fn senders(self) -> u8 {
        self.field(TIED) as u8
    }

    pub(super) fn set_senders(&mut self, senders: u8) {
        self.set_field(TIED, senders.into());
    }

    /// For an SGI: takes the lowest pending sender, and records that it is presented for that
    /// sender.
    pub(super) fn offer_sender(&mut self) -> Option<u8> {
        let senders = self.senders();
        let lowest = (senders != 0).then(|| senders.trailing_zeros());
        self.set_field(OFFERED, lowest.map_or(0, |n| n + 1));
        self.set_senders(senders & senders.wrapping_sub(1));
        lowest.map(|n| n as u8)
    }

    /// For an SGI: the sender that it was last presented for.
    pub(super) fn offered_sender(self) -> Option<u8> {
        (self.field(OFFERED) as u8).checked_sub(1)
    }

    /// For a PPI or SPI: the physical interrupt that it is mapped to.
    pub(super) fn phys(self) -> Option<u16> {
        Some(self.field(TIED) as u16).filter(|&pintid| pintid != 0)
    }

    pub(super) fn set_phys(&mut self, pintid: Option<u16>) {
        self.set_field(TIED, pintid.unwrap_or(0).into());
    }

    /// For a PPI or SPI: records that it is presented with the physical interrupt that it is mapped
    /// to now.
    pub(super) fn offer_phys(&mut self) {
        self.set_field(OFFERED, self.field(TIED));
    }

    /// For a PPI or SPI: the physical interrupt that it was last presented with.
    pub(super) fn offered_phys(self) -> Option<u16> {
        Some(self.field(OFFERED) as u16).filter(|&pintid| pintid != 0)
    }

    /// Forgets the sender or physical interrupt that it was last presented with.
    pub(super) fn forget_offer(&mut self) {
        self.set_field(OFFERED, 0);
    }

    /// The group in which it was last presented, and so is active.
    pub(super) fn offered_group(self) -> Group {
        if self.0 & OFFERED_GROUP1 != 0 { Group::Group1 } else { Group::Group0 }
    }

    pub(super) fn offer_group(&mut self, group: Group) {
        self.set_flag(OFFERED_GROUP1, group == Group::Group1);
    }

    /// Whether the host made it active, and its target has not taken that in.
    pub(super) fn is_placed(self) -> bool {
        self.0 & PLACED != 0
    }

    pub(super) fn set_placed(&mut self, placed: bool) {
        self.set_flag(PLACED, placed);
    }

    /// Leaves an order to become active or inactive.
    pub(super) fn order(&mut self, active: bool) {
        self.0 = self.0 & !ORDERS | (if active { 2 } else { 3 }) << ORDER;
    }

    /// Takes the order, if there is one.
    pub(super) fn take_order(&mut self) -> Option<bool> {
        let order = (self.0 & ORDERS) >> ORDER;
        self.0 &= !ORDERS;
        (order != 0).then_some(order == 2)
    }

    /// Whether its line has been set since this flag was cleared.
    pub(super) fn is_line_set(self) -> bool {
        self.0 & LINE_SET != 0
    }

    pub(super) fn set_line_set(&mut self, set: bool) {
        self.set_flag(LINE_SET, set);
    }
}
