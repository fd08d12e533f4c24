//! The machine: everything of one VM, built in the order in which the pieces
//! need each other, before its first instruction.
//!
//! ```text
//!  KVM VM ─ irqchip ─ memory ─ kernel, tables ─ images ─ slots ─ processors
//! ```

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use protocol::broker::Policy;
use protocol::control::{BlockEngine, ExitReason, Fd, MachineConfig, Probe};
use protocol::timeline::{self, ClockPair, GuestClock, Point, tsc};
use vm_memory::{GuestAddress, GuestMemoryError};
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::{IDENTITY_MAP, TSS, cpuid, mptable, registers, zero_page};
use crate::boot::command_line::{self, Boot, CommandLineError};
use crate::boot::elf::{self, KernelError};
use crate::devices::block::{Block, BlockSettings, DiskError, Engine};
use crate::devices::console::Console;
use crate::devices::fs::{self, FileWindow, Fs, FsFront, Server};
use crate::devices::pmem::{ImageError, Pmem};
use crate::devices::rng::Rng;
use crate::devices::vsock::Vsock;
use crate::judge::{self, JudgeError};
use crate::kvm::{self, IrqLine, Window};
use crate::memory::{GuestMemory, MemoryError};
use crate::slots::{FIRST_ADDRESS, NoSlot, OWN_SLOTS, Occupant, Slot, Slots};
use crate::vcpu::{Board, Ending, Vcpu};
use crate::virtio::Interrupt;

/// Processors that a machine may have.
const MOST_VCPUS: u8 = 64;
/// RAM of the machine that only measures speed.
const PROBE_MEMORY: u64 = 64 << 20;

/// A machine that could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The message names a descriptor that did not come with it.
    #[error("descriptor {} did not come with the message", .0.0)]
    Descriptor(Fd),
    /// No machine has so many processors.
    #[error("{0} processors are not between 1 and {MOST_VCPUS}")]
    Vcpus(u8),
    /// KVM refused something.
    #[error("{act}")]
    Kvm {
        /// What was asked of it.
        act: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// Something of the host ran out.
    #[error("{act}")]
    System {
        /// What was asked of it.
        act: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// Guest memory.
    #[error("make guest memory")]
    Memory(#[from] MemoryError),
    /// The tables that the kernel finds could not be written.
    #[error("write boot tables into guest memory")]
    Tables(#[from] GuestMemoryError),
    /// The kernel.
    #[error("load the guest kernel")]
    Kernel(#[from] KernelError),
    /// Its command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// An image.
    #[error("attach image {index}")]
    Image {
        /// Which, from 0.
        index: usize,
        /// Why not.
        source: ImageError,
    },
    /// A disk.
    #[error("attach disk {identity}")]
    Disk {
        /// Which.
        identity: String,
        /// Why not.
        source: DiskError,
    },
    /// Too many devices.
    #[error(transparent)]
    NoSlot(#[from] NoSlot),
    /// The speed judge failed.
    #[error("measure the speed of guest code")]
    Judge(#[from] JudgeError),
}

/// Descriptors of a message, each taken at most once.
#[derive(Debug)]
pub(crate) struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    pub(crate) fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter().map(Some).collect())
    }

    pub(crate) fn take(&mut self, index: Fd) -> Result<OwnedFd, BuildError> {
        self.0
            .get_mut(index.0)
            .and_then(Option::take)
            .ok_or(BuildError::Descriptor(index))
    }
}

/// A KVM VM with memory and its first processor in 64-bit mode: what the
/// kernel and the speed judge both need.
#[derive(Debug)]
struct Core {
    kvm: Kvm,
    vm: Arc<VmFd>,
    memory: GuestMemory,
    next_window: u32,
}

fn refused(act: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |error| BuildError::Kvm {
        act,
        source: error.into(),
    }
}

impl Core {
    fn new(kvm: OwnedFd, bytes: u64) -> Result<Self, BuildError> {
        let kvm = kvm::from_descriptor(kvm);
        let vm = kvm
            .create_vm()
            .map_err(refused("create a virtual machine"))?;
        vm.set_tss_address(TSS)
            .map_err(refused("place kvm's task state"))?;
        vm.set_identity_map_address(IDENTITY_MAP)
            .map_err(refused("place kvm's identity map"))?;
        let mut core = Self {
            kvm,
            vm: Arc::new(vm),
            memory: GuestMemory::new(bytes)?,
            next_window: 0,
        };
        let ranges: Vec<_> = core.memory.host_ranges().collect();
        for (guest, host, bytes) in ranges {
            core.map(guest, host, bytes, false)?;
        }
        registers::write_tables(core.memory.ram())?;
        Ok(core)
    }

    fn map(
        &mut self,
        guest: GuestAddress,
        host: u64,
        bytes: u64,
        read_only: bool,
    ) -> Result<(), BuildError> {
        let window = Window {
            slot: self.next_window,
            guest,
            host,
            bytes,
            read_only,
        };
        self.next_window += 1;
        kvm::map(&self.vm, window).map_err(refused("give memory to the guest"))
    }

    /// Processor `id` of `count` in the state that firmware would leave.
    fn vcpu(&self, id: u8, count: u8) -> Result<Vcpu, BuildError> {
        let fd = self
            .vm
            .create_vcpu(id.into())
            .map_err(refused("create a processor"))?;
        let mut supported = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("read supported processor features"))?;
        let deadline = self.kvm.check_extension(Cap::TscDeadlineTimer);
        cpuid::adapt(&mut supported, id, count, deadline);
        fd.set_cpuid2(&supported)
            .map_err(refused("set processor features"))?;
        if id == 0 {
            let special = fd.get_sregs().map_err(refused("read special registers"))?;
            fd.set_sregs(&registers::special(special))
                .map_err(refused("set special registers"))?;
            fd.set_fpu(&registers::floating_point())
                .map_err(refused("set floating point registers"))?;
        }
        Ok(Vcpu { id, fd })
    }
}

/// Measures how fast guest kernel code runs, in a machine of its own.
///
/// # Errors
///
/// [`BuildError`] when KVM cannot be used at all.
pub fn probe(kvm: OwnedFd) -> Result<Probe, BuildError> {
    let core = Core::new(kvm, PROBE_MEMORY)?;
    let mut vcpu = core.vcpu(0, 1)?;
    Ok(judge::measure(&mut vcpu.fd, core.memory.ram())?)
}

/// A worker of a directory device, not yet running.
type FsWorker = (Arc<Slot<Fs>>, Server);

/// A disk and its engine, not yet running.
type DiskWorker = (Arc<Slot<Block>>, Engine);

/// A machine, complete, its first instruction not yet executed.
#[derive(Debug)]
pub(crate) struct Machine {
    #[expect(dead_code, reason = "owns the memory that the guest runs in")]
    core: Core,
    vcpus: Vec<Vcpu>,
    fs: Vec<FsWorker>,
    disks: Vec<DiskWorker>,
    entry: GuestAddress,
    board: Board,
    vsock: Arc<Slot<Vsock>>,
    speed: Probe,
}

impl Machine {
    /// Builds what `config` describes. `poller` will watch its streams.
    pub(crate) fn build(
        config: &MachineConfig,
        descriptors: &mut Descriptors,
        poller: Arc<Epoll>,
        points: &mut Vec<Point>,
    ) -> Result<Self, BuildError> {
        if !(1..=MOST_VCPUS).contains(&config.vcpus) {
            return Err(BuildError::Vcpus(config.vcpus));
        }
        let mut core = Core::new(descriptors.take(config.kvm)?, config.memory)?;
        core.vm
            .create_irq_chip()
            .map_err(refused("create interrupt controllers"))?;
        let mut vcpus = Vec::with_capacity(config.vcpus.into());
        for id in 0..config.vcpus {
            vcpus.push(boot_state(core.vcpu(id, config.vcpus)?)?);
        }
        let speed = match vcpus.first_mut() {
            Some(vcpu) => judge::measure(&mut vcpu.fd, core.memory.ram())?,
            None => return Err(BuildError::Vcpus(config.vcpus)),
        };

        let kernel = File::from(descriptors.take(config.kernel)?);
        let entry = elf::load(core.memory.ram(), &kernel)?;
        let boot = Boot {
            vcpus: config.vcpus,
            devices: OWN_SLOTS + config.pmem.len() + config.block.len() + config.fs.len(),
            verbose: config.console.is_some(),
            arguments: &config.kernel_arguments,
        };
        let line = command_line::build(&boot)?;
        zero_page::write(core.memory.ram(), core.memory.layout(), &line)?;
        mptable::write(core.memory.ram(), config.vcpus)?;
        points.push(Point::now(timeline::VMM_KERNEL_LOADED));

        let mut slots = Slots::new().map_err(|source| BuildError::System {
            act: "make the devices' registers",
            source,
        })?;
        let registers = slots.registers();
        let (host, bytes) = (registers.host_address(), registers.bytes() as u64);
        core.map(FIRST_ADDRESS, host, bytes, true)?;
        let free = attach_images(&mut core, &mut slots, config, descriptors)?;
        let disks = attach_disks(&core.vm, &mut slots, config, descriptors)?;
        attach(&core.vm, &mut slots, device(Rng::new())?)?;
        let mut streams = Vsock::new(poller);
        for stream in &config.streams {
            streams.offer(stream.port, descriptors.take(stream.socket)?);
        }
        let vsock = device(streams)?;
        attach(&core.vm, &mut slots, vsock.clone())?;
        let log = config
            .console
            .map(|log| descriptors.take(log))
            .transpose()?;
        let console = device(Console::new(log.map(File::from)))?;
        attach(&core.vm, &mut slots, console.clone())?;
        let directories = attach_directories(&mut core, free, &mut slots, config, descriptors)?;

        let ending = Ending::new().map_err(|source| BuildError::System {
            act: "make an event",
            source,
        })?;
        let board = Board {
            slots,
            ram: core.memory.ram().clone(),
            console,
            ending: Arc::new(ending),
            windows: directories.windows,
        };
        Ok(Self {
            core,
            vcpus,
            fs: directories.workers,
            disks,
            entry,
            board,
            vsock,
            speed,
        })
    }

    /// How fast guest kernel code runs here.
    pub(crate) fn speed(&self) -> Probe {
        self.speed
    }

    /// What the processors and the event loop share.
    pub(crate) fn board(&self) -> &Board {
        &self.board
    }

    /// The device with the streams.
    pub(crate) fn vsock(&self) -> &Arc<Slot<Vsock>> {
        &self.vsock
    }

    /// What performs the disks' requests; where it is the lesser engine for one
    /// of them, that.
    pub(crate) fn disk_engine(&self) -> Option<BlockEngine> {
        let engines = || self.disks.iter().map(|(_, engine)| engine.describe());
        engines()
            .find(|engine| *engine != BlockEngine::IoUring)
            .or_else(|| engines().next())
    }

    /// How the guest's time stamps map to the host's clock.
    pub(crate) fn clock(&self) -> Result<GuestClock, BuildError> {
        let Some(vcpu) = self.vcpus.first() else {
            return Err(BuildError::Vcpus(0));
        };
        let anchor = ClockPair::now();
        // The middle of two host reads around the guest's: right to within
        // half a microsecond, with nothing newer needed from KVM.
        let before = tsc();
        let guest = registers::time_stamp(&vcpu.fd).map_err(refused("read the guest's clock"))?;
        let after = tsc();
        let host = before.wrapping_add(after.wrapping_sub(before) / 2);
        Ok(GuestClock {
            anchor,
            tsc_offset: guest.wrapping_sub(host).cast_signed(),
            tsc_khz: vcpu
                .fd
                .get_tsc_khz()
                .map_err(refused("read the guest's clock rate"))?,
        })
    }

    /// Sets the first processor to the kernel's entry.
    pub(crate) fn aim(&self) -> Result<(), BuildError> {
        for vcpu in self.vcpus.iter().take(1) {
            vcpu.fd
                .set_regs(&registers::general(self.entry))
                .map_err(refused("set general registers"))?;
        }
        Ok(())
    }

    /// Starts all workers and processors. What remains must live as long as
    /// they run.
    pub(crate) fn start(&mut self) -> Result<(), BuildError> {
        for (slot, server) in self.fs.drain(..) {
            fs::start(slot, server, self.board.ram.clone()).map_err(|source| {
                BuildError::System {
                    act: "start a worker's thread",
                    source,
                }
            })?;
        }
        for (slot, engine) in self.disks.drain(..) {
            let ending = self.board.ending.clone();
            let failed = move |error| {
                let message = format!("serve a disk: {error}");
                ending.tell(ExitReason::Failed { message });
            };
            engine
                .start(slot, self.board.ram.clone(), failed)
                .map_err(|source| BuildError::System {
                    act: "start a disk's thread",
                    source,
                })?;
        }
        for vcpu in self.vcpus.drain(..).rev() {
            vcpu.start(self.board.clone())
                .map_err(|source| BuildError::System {
                    act: "start a processor's thread",
                    source,
                })?;
        }
        Ok(())
    }
}

/// What a kernel wants to find that KVM's reset does not give.
fn boot_state(vcpu: Vcpu) -> Result<Vcpu, BuildError> {
    if let Some(msrs) = registers::msrs() {
        vcpu.fd
            .set_msrs(&msrs)
            .map_err(refused("set model-specific registers"))?;
    }
    let mut lapic = vcpu
        .fd
        .get_lapic()
        .map_err(refused("read the interrupt controller"))?;
    registers::wire_local_interrupts(&mut lapic);
    vcpu.fd
        .set_lapic(&lapic)
        .map_err(refused("set the interrupt controller"))?;
    Ok(vcpu)
}

/// Images, each in its window; answers the first address above them.
fn attach_images(
    core: &mut Core,
    slots: &mut Slots,
    config: &MachineConfig,
    descriptors: &mut Descriptors,
) -> Result<GuestAddress, BuildError> {
    let mut start = core.memory.layout().windows();
    for (index, image) in config.pmem.iter().enumerate() {
        let file = File::from(descriptors.take(image.image)?);
        let pmem = Pmem::new(&file, start).map_err(|source| BuildError::Image { index, source })?;
        let (guest, host, bytes) = pmem.window();
        core.map(guest, host, bytes, true)?;
        core.memory.add_window(guest, pmem.mapping(), bytes)?;
        start = pmem.end();
        attach(&core.vm, slots, device(pmem)?)?;
    }
    Ok(start)
}

/// Disks, each with the best engine that the host allows.
fn attach_disks(
    vm: &Arc<VmFd>,
    slots: &mut Slots,
    config: &MachineConfig,
    descriptors: &mut Descriptors,
) -> Result<Vec<DiskWorker>, BuildError> {
    let mut workers = Vec::with_capacity(config.block.len());
    for disk in &config.block {
        let settings = BlockSettings {
            read_only: disk.read_only,
            identity: disk.identity.clone(),
            limits: disk.limits,
            vcpus: config.vcpus,
        };
        let image = File::from(descriptors.take(disk.image)?);
        let block = Block::new(image, &settings).map_err(|source| BuildError::Disk {
            identity: disk.identity.clone(),
            source,
        })?;
        let engine = Engine::new().map_err(|source| BuildError::System {
            act: "set up io_uring for a disk",
            source,
        })?;
        let slot = device(block)?;
        attach(vm, slots, slot.clone())?;
        workers.push((slot, engine));
    }
    Ok(workers)
}

/// The directory devices of a machine.
#[derive(Debug, Default)]
struct Directories {
    workers: Vec<FsWorker>,
    windows: Vec<Arc<FileWindow>>,
}

/// Directories: a device for each policy, a worker for each channel, a window
/// from `free` on for each device that is to have one.
fn attach_directories(
    core: &mut Core,
    mut free: GuestAddress,
    slots: &mut Slots,
    config: &MachineConfig,
    descriptors: &mut Descriptors,
) -> Result<Directories, BuildError> {
    let mut all = Directories::default();
    for directories in &config.fs {
        let mut fs = Fs::new(directories.policy);
        if directories.window > 0 {
            let reserve = |source| BuildError::System {
                act: "reserve a window for files",
                source,
            };
            let window = FileWindow::new(free, directories.window).map_err(reserve)?;
            let (start, bytes) = window.place();
            core.map(start, window.mapping().host_address(), bytes, false)?;
            core.memory.add_window(start, window.mapping(), bytes)?;
            free = GuestAddress(start.0.saturating_add(bytes));
            let window = Arc::new(window);
            all.windows.push(Arc::clone(&window));
            fs = fs.with_window(window);
        }
        let slot = device(fs)?;
        let appends = directories.policy == Policy::Shared;
        let mut servers = Vec::with_capacity(directories.channels.len());
        for channel in &directories.channels {
            let channel = descriptors.take(*channel)?;
            servers.push(slot.with_device(|device| Server::new(device, channel, appends)));
        }
        // One serves on the processors, the others have threads.
        if let (Some(first), false) = (servers.pop(), servers.is_empty()) {
            slot.put_front(Box::new(FsFront::new(first)));
        }
        attach(&core.vm, slots, slot.clone())?;
        all.workers
            .extend(servers.into_iter().map(|server| (slot.clone(), server)));
    }
    Ok(all)
}

fn device<D: crate::virtio::Device>(device: D) -> Result<Arc<Slot<D>>, BuildError> {
    Slot::new(device)
        .map(Arc::new)
        .map_err(|source| BuildError::System {
            act: "make a device's events",
            source,
        })
}

/// Puts a device into the next slot and connects its two signals.
fn attach(
    vm: &Arc<VmFd>,
    slots: &mut Slots,
    occupant: Arc<dyn Occupant>,
) -> Result<(), BuildError> {
    let (slot, occupant) = slots.fill(occupant)?;
    occupant.connect(Box::new(IrqLine {
        vm: vm.clone(),
        number: slot.line(),
    }));
    // The answer to an interrupt of a queue changes nothing: KVM swallows it,
    // by an event that nobody waits for, which spares the exit. KVM keeps it.
    let swallowed = EventFd::new(EFD_NONBLOCK).map_err(|source| BuildError::System {
        act: "make an event",
        source,
    })?;
    vm.register_ioevent(
        &swallowed,
        &IoEventAddress::Mmio(slot.acknowledge_address()),
        Interrupt::USED,
    )
    .map_err(refused("connect a device's interrupt"))?;
    if occupant.has_front() {
        return Ok(());
    }
    vm.register_ioevent(
        occupant.kick(),
        &IoEventAddress::Mmio(slot.notify_address()),
        NoDatamatch,
    )
    .map_err(refused("connect a device's doorbell"))
}
