//! What the comparison with QEMU and the fuzzer have found.

use vgic_core::engine::Injected;

use crate::guest::*;
use crate::world::RAM;

/// The doubleword of a vCPU's pending table that LPIs 8192 to 8255 are in.
fn pending_bits(guest: &mut Guest, vcpu: u64) -> u64 {
    for cpu in &mut guest.world.cpus {
        cpu.power_off();
    }
    guest.world.gic.save_pending_tables().unwrap();
    guest.entry(RAM + 0x1_0000 * (1 + vcpu) + 1024)
}

/// A table that has been written before is written again after the LPI has moved away, or is gone: a machine that is restored from it must not
/// see the LPI pending.
#[test]
fn a_pending_table_has_nothing_that_is_no_longer_pending_there() {
    let mut guest = Guest::new(2);
    guest.ok(mapd(1, 3));
    for event in 0..3 {
        guest.ok(mapti(1, event, 8192 + event, 0));
        assert_eq!(guest.msi(1, event), Injected::Pending);
    }
    assert_eq!(pending_bits(&mut guest, 0), 0b111);
    guest.ok(movi(1, 0, 1));
    guest.ok(discard(1, 1));
    assert_eq!([pending_bits(&mut guest, 0), pending_bits(&mut guest, 1)], [0b100, 0b001]);
    guest.ok(movall(0, 1));
    assert_eq!([pending_bits(&mut guest, 0), pending_bits(&mut guest, 1)], [0, 0b101]);
}
