//! What only LPIs have, and what only wired interrupts have, in one word.

use crate::arch::ids::Group;

/// An interrupt fits into a cache line only if the two share their space.
///
/// Of an LPI: the number of events that are mapped to it. Of a wired interrupt, from bit 0 up:
///
/// ```text
/// 13  the physical interrupt that it is tied to, or of an SGI: the senders of whom it is pending (8)
/// 13  the same of its last offer: the physical interrupt, or of an SGI: the sender's number plus one (4)
///  1  it was made active by the host, and its target has not taken it in
///  2  whether it is to be made active (2) or not active (3) once the guest has been left
///  1  its line has been set since the host was asked for its level
///  1  the group that it was offered in last
/// ```
///
/// A physical interrupt is 16 up, so 0 is none.
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

    /// Of an LPI: one event more is mapped to it.
    pub(super) fn add_mapping(&mut self) {
        self.0 += 1;
    }

    /// Of an LPI: one event less is mapped to it.
    pub(super) fn drop_mapping(&mut self) {
        self.0 -= 1;
    }

    /// Of an LPI: whether an event is mapped to it.
    pub(super) fn is_mapped(self) -> bool {
        self.0 > 0
    }

    /// Of an SGI: the senders of whom it is pending, and not in a list register.
    pub(super) fn senders(self) -> u8 {
        self.field(TIED) as u8
    }

    pub(super) fn set_senders(&mut self, senders: u8) {
        self.set_field(TIED, senders.into());
    }

    /// Of an SGI: takes the lowest sender, for an offer that is that sender's.
    pub(super) fn offer_sender(&mut self) -> Option<u8> {
        let senders = self.senders();
        let lowest = (senders != 0).then(|| senders.trailing_zeros());
        self.set_field(OFFERED, lowest.map_or(0, |n| n + 1));
        self.set_senders(senders & senders.wrapping_sub(1));
        lowest.map(|n| n as u8)
    }

    /// Of an SGI: whose the last offer is.
    pub(super) fn offered_sender(self) -> Option<u8> {
        (self.field(OFFERED) as u8).checked_sub(1)
    }

    /// Of a PPI or SPI: the physical interrupt that it is tied to.
    pub(super) fn phys(self) -> Option<u16> {
        Some(self.field(TIED) as u16).filter(|&pintid| pintid != 0)
    }

    pub(super) fn set_phys(&mut self, pintid: Option<u16>) {
        self.set_field(TIED, pintid.unwrap_or(0).into());
    }

    /// Of a PPI or SPI: offers it with the physical interrupt that it is tied to now.
    pub(super) fn offer_phys(&mut self) {
        self.set_field(OFFERED, self.field(TIED));
    }

    /// Of a PPI or SPI: the physical interrupt of its last offer.
    pub(super) fn offered_phys(self) -> Option<u16> {
        Some(self.field(OFFERED) as u16).filter(|&pintid| pintid != 0)
    }

    /// Whatever was offered last is nobody's.
    pub(super) fn forget_offer(&mut self) {
        self.set_field(OFFERED, 0);
    }

    /// The group in which it was offered last, and so is active.
    pub(super) fn offered_group(self) -> Group {
        if self.0 & OFFERED_GROUP1 != 0 { Group::Group1 } else { Group::Group0 }
    }

    pub(super) fn offer_group(&mut self, group: Group) {
        self.set_flag(OFFERED_GROUP1, group == Group::Group1);
    }

    /// It was made active by the host, and its target has not taken it in.
    pub(super) fn is_placed(self) -> bool {
        self.0 & PLACED != 0
    }

    pub(super) fn set_placed(&mut self, placed: bool) {
        self.set_flag(PLACED, placed);
    }

    /// Orders it to be made active or not active.
    pub(super) fn order(&mut self, active: bool) {
        self.0 = self.0 & !ORDERS | (if active { 2 } else { 3 }) << ORDER;
    }

    /// Takes the order.
    pub(super) fn take_order(&mut self) -> Option<bool> {
        let order = (self.0 & ORDERS) >> ORDER;
        self.0 &= !ORDERS;
        (order != 0).then_some(order == 2)
    }

    /// Whether its line has been set since this was reset.
    pub(super) fn is_line_set(self) -> bool {
        self.0 & LINE_SET != 0
    }

    pub(super) fn set_line_set(&mut self, set: bool) {
        self.set_flag(LINE_SET, set);
    }
}
