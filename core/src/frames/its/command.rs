//! ITS commands: 32 bytes each in the command queue (IHI 0069, 5.3).

use crate::arch::ids::{DeviceId, EventId, Intid};

/// Size of a command in the queue, in bytes.
pub(crate) const COMMAND_SIZE: u64 = 32;

/// The number of a collection. Each interrupt belongs to a collection, and all interrupts of a
/// collection go to one redistributor (IHI 0069, 5.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CollectionId(pub u16);

/// A redistributor as commands name it: bits 51:16 of its RD_base address if GITS_TYPER.PTA is 1,
/// and otherwise its processor number, GICR_TYPER.Processor_Number (IHI 0069, 5.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RdBase(pub u64);

/// A decoded command. Its fields are not checked. IHI 0069, 5.3, has a section for each command.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Command {
    /// Maps a device to its interrupt translation table, or unmaps it.
    Mapd {
        /// The device.
        device: DeviceId,
        /// Whether the device is mapped. If not, it is unmapped.
        valid: bool,
        /// One less than the device's number of EventID bits.
        size: u8,
        /// The address of the interrupt translation table.
        itt: u64,
    },
    /// Maps a collection to a redistributor, or unmaps it.
    Mapc {
        /// The collection.
        collection: CollectionId,
        /// Whether the collection is mapped. If not, it is unmapped.
        valid: bool,
        /// The redistributor.
        rdbase: RdBase,
    },
    /// Maps an event to a collection, and to the LPI with the INTID that equals the EventID.
    Mapi {
        /// The device.
        device: DeviceId,
        /// The device's event.
        event: EventId,
        /// The collection.
        collection: CollectionId,
    },
    /// Maps an event to an LPI and a collection.
    Mapti {
        /// The device.
        device: DeviceId,
        /// The device's event.
        event: EventId,
        /// The LPI.
        intid: Intid,
        /// The collection.
        collection: CollectionId,
    },
    /// Moves an event to another collection.
    Movi {
        /// The device.
        device: DeviceId,
        /// The device's event.
        event: EventId,
        /// The new collection.
        collection: CollectionId,
    },
    /// Moves all LPIs of a redistributor to another.
    Movall {
        /// The redistributor that has the LPIs.
        from: RdBase,
        /// The redistributor that gets them.
        to: RdBase,
    },
    /// Unmaps an event. Its LPI is no longer pending.
    Discard(DeviceId, EventId),
    /// Makes an event's LPI pending.
    Int(DeviceId, EventId),
    /// Makes an event's LPI not pending.
    Clear(DeviceId, EventId),
    /// Reads the configuration of an event's LPI from its table again.
    Inv(DeviceId, EventId),
    /// Reads the configuration of all LPIs of a collection from their table again.
    Invall(CollectionId),
    /// Waits until earlier commands have taken effect at a redistributor. They always have.
    Sync(RdBase),
}

impl Command {
    /// Decodes a command. Returns `None` if its number is not that of a GICv3 command.
    pub fn decode(raw: &[u8; COMMAND_SIZE as usize]) -> Option<Self> {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(raw.chunks_exact(8)) {
            // The chunks have eight bytes.
            *word = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        }
        let device = DeviceId((words[0] >> 32) as u32);
        let event = EventId(words[1] as u32);
        let collection = CollectionId(words[2] as u16);
        let rdbase = |word: u64| RdBase(word >> 16 & 0xf_ffff_ffff);
        let valid = words[2] >> 63 != 0;
        Some(match words[0] as u8 {
            0x01 => Self::Movi { device, event, collection },
            0x03 => Self::Int(device, event),
            0x04 => Self::Clear(device, event),
            0x05 => Self::Sync(rdbase(words[2])),
            0x08 => {
                let (size, itt) = ((words[1] & 0x1f) as u8, words[2] & 0x000f_ffff_ffff_ff00);
                Self::Mapd { device, valid, size, itt }
            }
            0x09 => Self::Mapc { collection, valid, rdbase: rdbase(words[2]) },
            0x0a => {
                let intid = Intid((words[1] >> 32) as u32);
                Self::Mapti { device, event, intid, collection }
            }
            0x0b => Self::Mapi { device, event, collection },
            0x0c => Self::Inv(device, event),
            0x0d => Self::Invall(collection),
            0x0e => Self::Movall { from: rdbase(words[2]), to: rdbase(words[3]) },
            0x0f => Self::Discard(device, event),
            _ => return None,
        })
    }

    /// Encodes the command as software does. For drivers in tests and benchmarks.
    pub fn encode(self) -> [u8; COMMAND_SIZE as usize] {
        let of = |number: u64, device: DeviceId| number | u64::from(device.0) << 32;
        let event = |event: EventId| u64::from(event.0);
        let mapped = |valid: bool| u64::from(valid) << 63;
        let words: [u64; 4] = match self {
            Self::Movi { device, event: e, collection } => {
                [of(0x01, device), event(e), collection.0.into(), 0]
            }
            Self::Int(device, e) => [of(0x03, device), event(e), 0, 0],
            Self::Clear(device, e) => [of(0x04, device), event(e), 0, 0],
            Self::Sync(rdbase) => [0x05, 0, rdbase.0 << 16, 0],
            Self::Mapd { device, valid, size, itt } => {
                [of(0x08, device), size.into(), mapped(valid) | itt, 0]
            }
            Self::Mapc { collection, valid, rdbase } => {
                [0x09, 0, mapped(valid) | rdbase.0 << 16 | u64::from(collection.0), 0]
            }
            Self::Mapti { device, event: e, intid, collection } => {
                [of(0x0a, device), event(e) | u64::from(intid.0) << 32, collection.0.into(), 0]
            }
            Self::Mapi { device, event: e, collection } => {
                [of(0x0b, device), event(e), collection.0.into(), 0]
            }
            Self::Inv(device, e) => [of(0x0c, device), event(e), 0, 0],
            Self::Invall(collection) => [0x0d, 0, collection.0.into(), 0],
            Self::Movall { from, to } => [0x0e, 0, from.0 << 16, to.0 << 16],
            Self::Discard(device, e) => [of(0x0f, device), event(e), 0, 0],
        };
        let mut raw = [0; COMMAND_SIZE as usize];
        for (bytes, word) in raw.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        raw
    }

    /// The kind of this command.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Mapd { .. } => Kind::Mapd,
            Self::Mapc { .. } => Kind::Mapc,
            Self::Mapi { .. } => Kind::Mapi,
            Self::Mapti { .. } => Kind::Mapti,
            Self::Movi { .. } => Kind::Movi,
            Self::Movall { .. } => Kind::Movall,
            Self::Discard(..) => Kind::Discard,
            Self::Int(..) => Kind::Int,
            Self::Clear(..) => Kind::Clear,
            Self::Inv(..) => Kind::Inv,
            Self::Invall(_) => Kind::Invall,
            Self::Sync(_) => Kind::Sync,
        }
    }
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident, $($(#[$each:meta])* $variant:ident => $text:literal),* $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[non_exhaustive]
        pub enum $name { $($(#[$each])* $variant),* }

        impl $name {
            /// All values, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name that reports use.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

numbered! {
    /// The kind of a command, for counters.
    Kind,
    /// MAPD.
    Mapd => "MAPD",
    /// MAPC.
    Mapc => "MAPC",
    /// MAPI.
    Mapi => "MAPI",
    /// MAPTI.
    Mapti => "MAPTI",
    /// MOVI.
    Movi => "MOVI",
    /// MOVALL.
    Movall => "MOVALL",
    /// DISCARD.
    Discard => "DISCARD",
    /// INT.
    Int => "INT",
    /// CLEAR.
    Clear => "CLEAR",
    /// INV.
    Inv => "INV",
    /// INVALL.
    Invall => "INVALL",
    /// SYNC.
    Sync => "SYNC",
    /// The command is none of these, or could not be read.
    Unknown => "unknown",
}

numbered! {
    /// The reason for which a command had no effect. The next command of the queue is performed,
    /// unless the ITS [stalls](crate::frames::its::ItsConfig::stall).
    Fault,
    /// No command has this number.
    UnknownCommand => "unknown command",
    /// The command could not be read: the queue is not in memory.
    QueueMemory => "queue not in memory",
    /// The DeviceID has more bits than GITS_TYPER.Devbits allows, or no place in the device table.
    DeviceRange => "DeviceID out of range",
    /// The EventID has more bits than the device was mapped with.
    EventRange => "EventID out of range",
    /// The command asks for more EventID bits than GITS_TYPER.ID_bits allows.
    SizeRange => "number of EventID bits out of range",
    /// The number of the collection has too many bits, or no place in the collection table.
    CollectionRange => "collection out of range",
    /// There is no such redistributor.
    RdbaseRange => "no such redistributor",
    /// The INTID is no LPI, or has more bits than GICD_TYPER.IDbits allows.
    IntidRange => "INTID out of range",
    /// The device is not mapped.
    DeviceUnmapped => "device not mapped",
    /// The event is not mapped, or its collection is not.
    EventUnmapped => "event not mapped",
    /// The collection is not mapped.
    CollectionUnmapped => "collection not mapped",
    /// The entry's place in its table is not in memory.
    TableMemory => "table not in memory",
    /// The bound on devices is reached ([`crate::engine::Config::max_devices`],
    /// [`crate::frames::its::ItsConfig::max_devices`]).
    TooManyDevices => "too many devices",
    /// The bound on events is reached ([`crate::engine::Config::max_events`],
    /// [`crate::frames::its::ItsConfig::max_events`]).
    TooManyEvents => "too many events",
    /// The bound on LPIs is reached ([`crate::engine::Config::max_lpis`]).
    TooManyLpis => "too many LPIs",
    /// The bound on memory is reached ([`crate::engine::Config::max_bytes`]).
    TooManyBytes => "too much memory",
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn encoded_and_decoded_again() {
        let (device, event) = (DeviceId(0xdead_beef), EventId(0x1234_5678));
        let (collection, rdbase) = (CollectionId(0xabcd), RdBase(0xf_edcb_a987));
        let to = RdBase(3);
        let commands = [
            Command::Mapd { device, valid: true, size: 31, itt: 0x000f_edcb_a987_6500 },
            Command::Mapc { collection, valid: true, rdbase },
            Command::Mapi { device, event, collection },
            Command::Mapti { device, event, intid: Intid(0x0089_abcd), collection },
            Command::Movi { device, event, collection },
            Command::Movall { from: rdbase, to },
            Command::Discard(device, event),
            Command::Int(device, event),
            Command::Clear(device, event),
            Command::Inv(device, event),
            Command::Invall(collection),
            Command::Sync(rdbase),
        ];
        for command in commands {
            assert_eq!(Command::decode(&command.encode()), Some(command));
        }
    }

    #[test]
    fn as_the_architecture_lays_them_out() {
        let mut raw = [0; 32];
        raw[0] = 0x0b;
        raw[4..8].copy_from_slice(&7u32.to_le_bytes());
        raw[8..12].copy_from_slice(&8200u32.to_le_bytes());
        raw[16..18].copy_from_slice(&5u16.to_le_bytes());
        let (device, event) = (DeviceId(7), EventId(8200));
        let mapi = Command::Mapi { device, event, collection: CollectionId(5) };
        assert_eq!(Command::decode(&raw), Some(mapi));
        // vLPI commands belong to GICv4.
        for number in [0x00, 0x02, 0x06, 0x07, 0x10, 0x21, 0x22, 0x25, 0x29, 0x2a, 0xff] {
            raw[0] = number;
            assert_eq!(Command::decode(&raw), None);
        }
    }
}
