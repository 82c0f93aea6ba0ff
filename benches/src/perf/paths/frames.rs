//! The cost of a guest's register accesses, without the exit itself.

use std::marker::PhantomData;

use vgic_core::engine::Engine;
use vgic_core::gic::Model;

use super::each_engine;
use crate::frames::{FanOut, FrameBench};
use crate::perf::path::{Group, repeat};

pub(super) fn registers() -> Group {
    let mut group = Group::new("registers");
    each_engine!(accesses, &mut group);
    group
}

fn accesses<E: Engine>(_: PhantomData<E>, who: &'static str, group: &mut Group) {
    for (model, version) in [(Model::V2, 2), (Model::V3, 3)] {
        type Access<E> = fn(&mut FrameBench<E>);
        let accesses: [(&str, Access<E>); 5] = [
            ("write ISENABLER, one interrupt", FrameBench::enable),
            ("write IPRIORITYR, one byte", FrameBench::prioritise),
            ("read IAR, nothing pending", FrameBench::spurious),
            ("SPI: pulse, entry, IAR, EOIR, exit", FrameBench::cycle),
            ("SGI to oneself", FrameBench::send_sgi),
        ];
        for (name, access) in accesses {
            group.add(who, format!("GICv{version}: {name}"), None, move || {
                let mut b = FrameBench::<E>::new(model)?;
                repeat(move || access(&mut b))
            });
        }
    }
}

pub(super) fn fan_out() -> Group {
    let mut group = Group::new("SGI fan-out");
    each_engine!(sgis, &mut group);
    group
}

fn sgis<E: Engine>(_: PhantomData<E>, who: &'static str, group: &mut Group) {
    for vcpus in [1, 4, 15] {
        let at = Some((u64::from(vcpus), "targets"));
        group.add(who, "send an SGI, and deliver it at each target", at, move || {
            let mut b = FanOut::<E>::new(vcpus)?;
            repeat(move || b.send_and_take())
        });
    }
}
