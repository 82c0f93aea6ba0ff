//! The engine behind a VMM's own interrupt traits. The traits here have the shape of
//! cloud-hypervisor's `vm-device`: an `InterruptManager` creates `InterruptSourceGroup`s, and
//! devices use these only. The definitions below are this example's own.
//!
//! MSI-X vectors are GSIs of [`EventSources`]. A vector's configuration is its route, its mask is
//! the source's mask, and its notifier is the eventfd that a vhost-user back end or VFIO gets. A
//! device in the VMM triggers its interrupt directly, without an eventfd.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vgic_core::ids::Intid;
use vgic_kvm::events::{EventSources, Route};
use vgic_kvm::msi::{Msi, MsiInjector};
use vgic_kvm::spi::SpiLine;
use vgic_kvm::{Error, KvmGic};
use vmm_sys_util::eventfd::EventFd;

/// The index of an interrupt in its group.
type Index = u32;

/// The configuration of an interrupt.
#[derive(Clone, Copy)]
enum SourceConfig {
    /// A wire.
    Legacy,
    /// An MSI of a device.
    Msi(Msi),
}

/// The interrupts of one device.
trait InterruptSourceGroup: Send + Sync {
    /// `enable` makes the group's interrupts usable; `disable` ends that.
    fn enable(&self) -> io::Result<()> {
        Ok(())
    }
    fn disable(&self) -> io::Result<()> {
        Ok(())
    }
    fn trigger(&self, index: Index) -> io::Result<()>;
    /// Returns the eventfd that a back end in another process writes to.
    fn notifier(&self, index: Index) -> Option<EventFd>;
    fn update(&self, index: Index, config: SourceConfig, masked: bool) -> io::Result<()>;
}

/// The MSIs of a device, with consecutive indices.
struct MsiGroupConfig {
    base: Index,
    count: Index,
}

/// The wire of a device.
struct LegacyGroupConfig {
    irq: Index,
}

/// Creates groups of one kind.
trait InterruptManager {
    type GroupConfig;
    fn create_group(&self, config: Self::GroupConfig) -> io::Result<Arc<dyn InterruptSourceGroup>>;
    /// Drops the handle. A group ends with its last handle.
    fn destroy_group(&self, group: Arc<dyn InterruptSourceGroup>) {
        drop(group);
    }
}

fn no_such_index() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "no interrupt of this group has that index")
}

fn other(e: Error) -> io::Error {
    io::Error::other(e)
}

/// A group of MSIs. Each index is a GSI.
struct MsiGroup {
    base: u32,
    notifiers: Vec<EventFd>,
    configs: Mutex<Vec<Option<Msi>>>,
    injector: Mutex<MsiInjector>,
    sources: Arc<EventSources>,
}

impl InterruptSourceGroup for MsiGroup {
    fn trigger(&self, index: Index) -> io::Result<()> {
        let config = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        match config.get(index as usize).copied().flatten() {
            Some(msi) => {
                let injector = self.injector.lock().unwrap_or_else(PoisonError::into_inner);
                injector.send(&msi).map(drop).map_err(other)
            }
            // Masked: the source remembers the interrupt.
            None => self.notifiers.get(index as usize).ok_or_else(no_such_index)?.write(1),
        }
    }

    fn notifier(&self, index: Index) -> Option<EventFd> {
        self.notifiers.get(index as usize)?.try_clone().ok()
    }

    fn update(&self, index: Index, config: SourceConfig, masked: bool) -> io::Result<()> {
        let SourceConfig::Msi(msi) = config else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        let config = configs.get_mut(index as usize).ok_or_else(no_such_index)?;
        let gsi = self.base + index;
        self.sources.set_route(gsi, Route::Msi(msi));
        self.sources.set_masked(gsi, masked);
        *config = (!masked).then_some(msi);
        Ok(())
    }
}

impl Drop for MsiGroup {
    fn drop(&mut self) {
        for n in 0..self.notifiers.len() as u32 {
            let _ = self.sources.remove(self.base + n);
        }
    }
}

struct MsiManager {
    gic: KvmGic,
    sources: Arc<EventSources>,
}

impl InterruptManager for MsiManager {
    type GroupConfig = MsiGroupConfig;

    fn create_group(&self, config: MsiGroupConfig) -> io::Result<Arc<dyn InterruptSourceGroup>> {
        let MsiGroupConfig { base, count } = config;
        let mut group = MsiGroup {
            base,
            notifiers: Vec::new(),
            configs: Mutex::new(vec![None; count as usize]),
            injector: Mutex::new(self.gic.msi_injector().map_err(other)?),
            sources: Arc::clone(&self.sources),
        };
        for n in 0..count {
            let notifier = EventFd::new(libc::EFD_NONBLOCK)?;
            // A failure drops the group, and with it the sources that were added so far.
            self.sources.add(base + n, &notifier).map_err(other)?;
            group.notifiers.push(notifier);
        }
        Ok(Arc::new(group))
    }
}

/// A group of wires. Each index is an SPI.
struct LegacyGroup(Mutex<SpiLine>);

impl InterruptSourceGroup for LegacyGroup {
    fn trigger(&self, _: Index) -> io::Result<()> {
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        vm_superio::Trigger::trigger(&*line).map_err(io::Error::other)
    }

    fn notifier(&self, _: Index) -> Option<EventFd> {
        None
    }

    fn update(&self, _: Index, config: SourceConfig, _: bool) -> io::Result<()> {
        match config {
            SourceConfig::Legacy => Ok(()),
            SourceConfig::Msi(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

struct LegacyManager(KvmGic);

impl InterruptManager for LegacyManager {
    type GroupConfig = LegacyGroupConfig;

    fn create_group(&self, config: LegacyGroupConfig) -> io::Result<Arc<dyn InterruptSourceGroup>> {
        let line = self.0.spi(Intid(config.irq)).map_err(other)?;
        Ok(Arc::new(LegacyGroup(Mutex::new(line))))
    }
}

/// A device that knows only the traits, and no interrupt controller.
fn device(
    msi: &dyn InterruptManager<GroupConfig = MsiGroupConfig>,
    wires: &dyn InterruptManager<GroupConfig = LegacyGroupConfig>,
) -> io::Result<()> {
    let vectors = msi.create_group(MsiGroupConfig { base: 1000, count: 2 })?;
    vectors.enable()?;
    let message = Msi { address: 0x0802_0040, data: 64, device: 8 };
    vectors.update(0, SourceConfig::Msi(message), false)?;
    vectors.trigger(0)?;
    if let Some(notifier) = vectors.notifier(1) {
        notifier.write(1)?;
    }
    let wire = wires.create_group(LegacyGroupConfig { irq: 33 })?;
    wire.update(0, SourceConfig::Legacy, false)?;
    wire.trigger(0)?;
    vectors.disable()?;
    msi.destroy_group(vectors);
    wires.destroy_group(wire);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    use vgic_core::gic::MsiFrame;
    use vgic_kvm::{GicV2Map, Machine, error::open_kvm};

    let vm = Arc::new(open_kvm()?.create_vm()?);
    let msi = Some(MsiFrame { base: 0x0802_0000, first: 64, count: 32 });
    let map = GicV2Map { distributor: 0x0800_0000, cpu_interface: 0x0801_0000, msi };
    // This returns an error on a host that is not arm64.
    let gic = Machine::gicv2(map, 1, 96)?.build(&vm)?;
    let sources = Arc::new(EventSources::start(&gic)?);
    device(&MsiManager { gic: gic.clone(), sources }, &LegacyManager(gic))?;
    println!("interrupts were raised");
    Ok(())
}
