//! Tests of the dispatch of accesses, on a frame with every kind of register.

use super::*;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Control,
    Priority,
    Route,
    Id,
    Command,
}

#[derive(Default)]
struct Memory {
    control: u32,
    priority: [u8; 8],
    route: [u64; 2],
    command: u32,
    reserved: u32,
}

impl Frame<()> for Memory {
    type Kind = Kind;
    const LAYOUT: &'static [Reg<Kind>] = &[
        Reg::word(0x0, Kind::Control, "CONTROL"),
        Reg::bytes(0x8, 8, Kind::Priority, "PRIORITY"),
        Reg::doubles(0x10, 2, Kind::Route, "ROUTE"),
        Reg::word(0x20, Kind::Id, "ID").ro(),
        Reg::word(0x24, Kind::Command, "COMMAND").wo().also(Width::Half),
    ];

    fn read(&mut self, (): &(), kind: Kind, index: u32) -> u64 {
        match kind {
            Kind::Control => self.control.into(),
            Kind::Priority => self.priority[index as usize].into(),
            Kind::Route => self.route[index as usize],
            Kind::Id => 0x1234_5678,
            Kind::Command => unreachable!("write-only"),
        }
    }

    fn write(&mut self, (): &(), kind: Kind, index: u32, value: u64, mask: u64) {
        let merge = |old: u64| old & !mask | value;
        match kind {
            Kind::Control => self.control = merge(self.control.into()) as u32,
            Kind::Priority => self.priority[index as usize] = value as u8,
            Kind::Route => {
                self.route[index as usize] = merge(self.route[index as usize]);
            }
            Kind::Id => unreachable!("read-only"),
            Kind::Command => self.command = value as u32,
        }
    }

    fn reserved(&mut self, (): &(), _: u32, _: bool) {
        self.reserved += 1;
    }
}

fn get(frame: &mut Memory, offset: u32, len: usize) -> Result<u64, MmioError> {
    let mut data = [0xee; 8];
    read(frame, &(), offset, &mut data[..len])?;
    data[len..].fill(0);
    Ok(u64::from_le_bytes(data))
}

fn set(frame: &mut Memory, offset: u32, len: usize, value: u64) -> Result<(), MmioError> {
    write(frame, &(), offset, &value.to_le_bytes()[..len])
}

#[test]
fn elements_are_put_together_and_taken_apart() {
    let mut frame = Memory::default();
    set(&mut frame, 0x8, 4, 0x4433_2211).unwrap();
    set(&mut frame, 0xd, 1, 0xab).unwrap();
    assert_eq!(frame.priority, [0x11, 0x22, 0x33, 0x44, 0, 0xab, 0, 0]);
    assert_eq!(get(&mut frame, 0xc, 4), Ok(0xab00));
    set(&mut frame, 0x18, 8, 0x8877_6655_4433_2211).unwrap();
    set(&mut frame, 0x1c, 4, 0xdddd_cccc).unwrap();
    assert_eq!(frame.route, [0, 0xdddd_cccc_4433_2211]);
    assert_eq!(get(&mut frame, 0x18, 4), Ok(0x4433_2211));
    assert_eq!(get(&mut frame, 0x18, 8), Ok(0xdddd_cccc_4433_2211));
    set(&mut frame, 0x26, 2, 0xbeef).unwrap();
    assert_eq!(frame.command, 0xbeef_0000);
}

#[test]
fn what_no_register_allows_does_nothing() {
    let mut frame = Memory { control: 7, ..Memory::default() };
    // Narrower than allowed, an offset without a register, or the wrong direction.
    for (offset, len) in [(0x0, 1), (0x2, 2), (0x4, 4), (0x40, 8), (0x24, 4)] {
        assert_eq!(get(&mut frame, offset, len), Ok(0), "{offset:#x}");
    }
    for (offset, len) in [(0x1, 1), (0x4, 4), (0x20, 4), (u32::MAX - 3, 4)] {
        assert_eq!(set(&mut frame, offset, len, u64::MAX), Ok(()), "{offset:#x}");
    }
    assert_eq!((frame.control, frame.reserved), (7, 9));
}

#[test]
fn what_cannot_be_is_refused() {
    let mut frame = Memory::default();
    for (offset, len, error) in [
        (0x0, 8, MmioError::Width(0x0, 8)),
        (0x8, 8, MmioError::Width(0x8, 8)),
        (0x0, 3, MmioError::Width(0x0, 3)),
        (0x2, 4, MmioError::Unaligned(0x2)),
        (0x14, 8, MmioError::Unaligned(0x14)),
    ] {
        assert_eq!(get(&mut frame, offset, len), Err(error));
        assert_eq!(set(&mut frame, offset, len, u64::MAX), Err(error));
    }
    assert_eq!(read(&mut frame, &(), 0, &mut []), Err(MmioError::Width(0, 0)));
    assert_eq!((frame.control, frame.priority, frame.route), (0, [0; 8], [0; 2]));
}
