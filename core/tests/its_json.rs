//! State dumps as JSON.
#![cfg(feature = "serde")]

#[path = "its/guest.rs"]
#[allow(dead_code)] // used only by the other tests
mod guest;
#[path = "gicv3/world.rs"]
#[allow(dead_code)] // as above
mod world;

use guest::*;

pub(crate) type Engine = vgic_core::Vgic;

#[test]
fn as_json() {
    let mut guest = Guest::new(2);
    guest.ok(mapd(3, 5));
    guest.ok(mapti(3, 9, 8200, 1));
    guest.fails(int(4, 0), vgic_core::its::Fault::DeviceUnmapped);
    let json = serde_json::to_value(guest.world.gic.dump()).unwrap();
    assert_eq!(json["lpis"][0]["intid"], 8200);
    assert_eq!(json["lpis"][0]["place"], "Idle");
    assert_eq!(json["lpis"][0]["config"]["priority"], 0xa0);
    let its = &json["its"][0];
    assert_eq!(its["enabled"], true);
    assert_eq!(its["events"][0]["event"], 9);
    assert_eq!(its["devices"][0]["itt"], itt(3));
    assert_eq!(its["stats"]["faults"][0], serde_json::json!(["INT", "device not mapped", 1]));
}
