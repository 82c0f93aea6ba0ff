//! The steps that inputs are made of.

use std::iter;

use arbitrary::{Arbitrary, Unstructured};

/// One step of an input.
#[derive(Arbitrary, Debug)]
pub(crate) enum Op {
    /// Accesses the frame that the target tests, at an offset that may be anything.
    Frame {
        vcpu: u8,
        offset: u32,
        width: u8,
        value: u64,
        write: bool,
    },
    /// Accesses any frame of the machine, at a sensible offset.
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
    /// Initializes a vCPU's interface as an operating system does. A fuzzer would take long to find
    /// this by chance.
    Start(u8),
    /// Routes, prioritizes and enables an SPI.
    Route {
        irq: u8,
        vcpu: u8,
        priority: u8,
    },
    /// Sends an SGI.
    Send {
        vcpu: u8,
        sgi: u8,
        targets: u8,
    },
    /// Enters, acknowledges one interrupt, ends it and exits.
    Serve {
        vcpu: u8,
        group: bool,
    },
    /// Gives a redistributor its LPI tables, and enables LPIs.
    Tables {
        vcpu: u8,
        zero: bool,
    },
    /// Changes a byte of the LPI configuration table.
    Property {
        lpi: u8,
        value: u8,
    },
    Pending {
        vcpu: u8,
        value: u64,
    },
    /// Writes GICR_SETLPIR, GICR_CLRLPIR, GICR_INVLPIR or GICR_INVALLR.
    Lpi {
        vcpu: u8,
        lpi: u8,
        reg: u8,
    },
    /// All kicked vCPUs are entered. Then a vCPU is checked to be given exactly the interrupts it
    /// should be given.
    Check(u8),
}

impl Op {
    /// The vCPU that performs the step, or none if a vCPU does not perform it.
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

/// Decodes the steps of an input.
pub(crate) fn steps(data: &[u8]) -> impl Iterator<Item = Op> {
    let mut input = Unstructured::new(data);
    iter::from_fn(move || {
        if input.is_empty() {
            return None;
        }
        Op::arbitrary(&mut input).ok()
    })
}
