//! While one vCPU's command takes long, no other thread waits: neither injections, nor entries and
//! exits, nor accesses to the registers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use vgic_core::engine::{Config, Engine as _, Injected};
use vgic_core::gic::{Gic, SysReg};
use vgic_core::ids::{DeviceId, EventId, VcpuId};
use vgic_core::its::{ItsConfig, Kind};
use vgic_core::memory::{GuestMemory, MemoryError};

use crate::Engine;
use crate::guest::*;
use crate::world::{GICD, RAM, Ram, no_kick, rd, sgi};

/// Memory in which a read of a configuration byte blocks until it is told to continue, once the
/// memory is armed.
#[allow(clippy::disallowed_types)] // the guest's memory, not the engine
struct Slow {
    ram: Arc<Ram>,
    armed: AtomicBool,
    reached: SyncSender<()>,
    go_on: std::sync::Mutex<Receiver<()>>,
}

impl GuestMemory for Slow {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let property = (RAM..RAM + 0x1_0000).contains(&address);
        if property && self.armed.swap(false, Ordering::SeqCst) {
            self.reached.send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
        }
        self.ram.read(address, data)
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.ram.write(address, data)
    }
}

#[test]
fn nobody_waits_for_a_command() {
    for long in [invall(0), mapti(1, 7, 8300, 0), mapc(0, 1)] {
        let (reached, has_reached) = sync_channel(1);
        let (proceed, go_on) = sync_channel(1);
        let ram = Guest::new(1).world.ram.clone();
        let armed = AtomicBool::new(false);
        let slow = Arc::new(Slow { ram: ram.clone(), armed, reached, go_on: go_on.into() });
        let log = Arc::new(Log::default());
        let mut setup = setup(2, ItsConfig::at(GITS), Config::default(), &log);
        setup.set_memory(slow.clone()).unwrap();
        let gic: Gic<Engine> = setup.init(no_kick()).unwrap();
        let [mut first, mut second] = [0, 1].map(|n| gic.cpu(VcpuId(n)).unwrap());

        let w64 = |cpu: &mut vgic_core::gic::GicCpu<Engine>, at: u64, value: u64| {
            cpu.write(at, &value.to_le_bytes()).unwrap();
        };
        ram.write(RAM, &[0xa1; 0x1_0000]).unwrap();
        for (n, cpu) in [&mut first, &mut second].into_iter().enumerate() {
            cpu.power_on();
            for (at, value) in [(GICD, 3), (rd(n) + 0x14, 0), (sgi(n) + 0x80, u32::MAX)] {
                cpu.write(at, &value.to_le_bytes()).unwrap();
            }
            cpu.icc_write(SysReg::ICC_PMR_EL1, 0xff).unwrap();
            cpu.icc_write(SysReg::ICC_IGRPEN1_EL1, 1).unwrap();
            w64(cpu, rd(n) + 0x70, RAM | 15);
            w64(cpu, rd(n) + 0x78, (RAM + 0x1_0000) | 1 << 62);
            cpu.write(rd(n), &1u32.to_le_bytes()).unwrap();
        }
        w64(&mut first, CBASER, VALID | QUEUE);
        w64(&mut first, BASER0, VALID | DEVICES);
        w64(&mut first, BASER1, VALID | COLLECTIONS);
        first.write(CTLR, &1u32.to_le_bytes()).unwrap();
        let commands = [mapc(0, 0), mapc(1, 1), mapd(1, 3), mapti(1, 0, 8192, 0)];
        let more = [mapti(1, 1, 8193, 1), long, int(1, 0)];
        for (n, command) in commands.iter().chain(&more).enumerate() {
            ram.write(QUEUE + 32 * n as u64, &command.encode()).unwrap();
        }
        w64(&mut first, CWRITER, 5 * 32);
        let its = gic.its(0).unwrap();
        let route = its.route(DeviceId(1), EventId(1)).unwrap();
        let injector = gic.engine().injector().unwrap();

        std::thread::scope(|scope| {
            // Dropped if this panics, so that no thread waits for it then.
            let proceed = proceed;
            slow.armed.store(true, Ordering::SeqCst);
            scope.spawn(|| first.write(CWRITER, &(6 * 32u64).to_le_bytes()).unwrap());
            has_reached.recv().unwrap();
            // From here on the first vCPU is in the middle of its command.
            let mut creadr = [0; 8];
            second.read(CREADR, &mut creadr).unwrap();
            assert_eq!(u64::from_le_bytes(creadr), 5 * 32);
            assert_eq!(route.inject(&injector), Injected::Pending);
            let other = its.port().inject(&injector, DeviceId(1), EventId(0));
            assert_eq!(other, Injected::Pending);
            second.enter();
            assert!(second.irq_line());
            assert_eq!(second.icc_read(SysReg::ICC_IAR1_EL1), Some(8193));
            second.icc_write(SysReg::ICC_EOIR1_EL1, 8193).unwrap();
            second.exit();
            // The second vCPU leaves its own command to the first one.
            w64(&mut second, CWRITER, 7 * 32);
            assert_eq!(its.stats().commands_of(Kind::Int), 0);
            second.write(CTLR, &0u32.to_le_bytes()).unwrap();
            let mut ctlr = [0; 4];
            second.read(CTLR, &mut ctlr).unwrap();
            assert_eq!(u32::from_le_bytes(ctlr), 0, "not quiescent");
            proceed.send(()).unwrap();
        });
        let stats = its.stats();
        assert_eq!((stats.commands_of(long.kind()) > 0, stats.commands_of(Kind::Int)), (true, 0));
        second.write(CTLR, &1u32.to_le_bytes()).unwrap();
        assert_eq!(its.stats().commands_of(Kind::Int), 1, "left until it is enabled again");
    }
}
