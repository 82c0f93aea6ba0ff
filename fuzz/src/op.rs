//! The steps that inputs are made of.

use std::iter;

use arbitrary::{Arbitrary, Unstructured};

/// One step.
#[derive(Arbitrary, Debug)]
pub(crate) enum Op {
    /// The frame that the target is about, at an offset that may be anything.
    Frame {
        vcpu: u8,
        offset: u32,
        width: u8,
        value: u64,
        write: bool,
    },
    /// Any frame of the machine, at a sensible place.
    Elsewhere {
        vcpu: u8,
        word: u16,
        value: u32,
        write: bool,
    },
    Line {
        irq: u8,
        vcpu: u8,
        high: bool,
    },
    Pulse {
        irq: u8,
        vcpu: u8,
    },
    Enter(u8),
    Exit(u8),
    Take {
        vcpu: u8,
        group: bool,
    },
    End {
        vcpu: u8,
        group: bool,
        intid: Option<u16>,
    },
    Deactivate {
        vcpu: u8,
        intid: u16,
    },
    Power {
        vcpu: u8,
        on: bool,
    },
    System {
        vcpu: u8,
        op1: u8,
        crn: u8,
        crm: u8,
        op2: u8,
        value: u64,
        write: bool,
    },
    /// What an operating system does in the beginning, which would be long to find by chance.
    Start(u8),
    /// It uses an SPI.
    Route {
        irq: u8,
        vcpu: u8,
        priority: u8,
    },
    /// The guest sends an SGI.
    Send {
        vcpu: u8,
        sgi: u8,
        targets: u8,
    },
    /// Enters, takes one interrupt, ends it and exits.
    Serve {
        vcpu: u8,
        group: bool,
    },
    /// The guest gives a redistributor its LPI tables, and enables LPIs.
    Tables {
        vcpu: u8,
        zero: bool,
    },
    /// It changes its tables.
    Property {
        lpi: u8,
        value: u8,
    },
    Pending {
        vcpu: u8,
        value: u64,
    },
    /// GICR_SETLPIR, GICR_CLRLPIR, GICR_INVLPIR, GICR_INVALLR.
    Lpi {
        vcpu: u8,
        lpi: u8,
        reg: u8,
    },
    /// Everyone who was kicked has a look; then a vCPU must be offered what it should be.
    Check(u8),
}

impl Op {
    /// The vCPU that makes the step, if it is one.
    pub(crate) fn vcpu(&self) -> Option<u8> {
        match *self {
            Self::Line { .. } | Self::Pulse { .. } => None,
            Self::Property { .. } | Self::Pending { .. } | Self::Check(_) => None,
            Self::Enter(vcpu) | Self::Exit(vcpu) | Self::Start(vcpu) => Some(vcpu),
            Self::Frame { vcpu, .. }
            | Self::Elsewhere { vcpu, .. }
            | Self::Take { vcpu, .. }
            | Self::End { vcpu, .. }
            | Self::Deactivate { vcpu, .. }
            | Self::Power { vcpu, .. }
            | Self::System { vcpu, .. }
            | Self::Route { vcpu, .. }
            | Self::Send { vcpu, .. }
            | Self::Serve { vcpu, .. }
            | Self::Tables { vcpu, .. }
            | Self::Lpi { vcpu, .. } => Some(vcpu),
        }
    }
}

/// The steps of an input.
pub(crate) fn steps(data: &[u8]) -> impl Iterator<Item = Op> {
    let mut input = Unstructured::new(data);
    iter::from_fn(move || {
        if input.is_empty() {
            return None;
        }
        Op::arbitrary(&mut input).ok()
    })
}
