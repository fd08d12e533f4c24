//! One run of `nerite-vmm`: from the first message to the last.
//!
//! A single epoll loop serves everything that is not a processor: the control
//! socket, the devices' kicks, the streams' sockets and the machine's end.

use std::error::Error;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use protocol::control::{
    ControlError, Exit, ExitReason, FromVmm, MachineConfig, StreamConfig, ToVmm, receive, send,
};
use protocol::timeline::{self, Point};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::devices::console::Tail;
use crate::devices::vsock::StreamKey;
use crate::machine::{Descriptors, Machine, probe};
use crate::slots::{Occupant, SlotAddress};

/// Events taken from epoll at a time.
const EVENTS: usize = 64;

/// The event loop's own tokens: streams to the port that names no port, so
/// that no stream has one of them.
const CONTROL: u64 = own_token(0);
const ENDED: u64 = own_token(1);
const FIRST_SLOT: u32 = 2;

const fn own_token(number: u32) -> u64 {
    (number as u64) << 32 | u32::MAX as u64
}

/// Serves the control socket until its machine has ended.
///
/// # Errors
///
/// What could not even be reported to the keeper.
pub fn run(control: BorrowedFd<'_>) -> Result<(), SessionError> {
    let mut points = vec![Point::now(timeline::VMM_START)];
    let poller = Arc::new(Epoll::new().map_err(SessionError::Poll)?);
    watch(&poller, control.as_raw_fd(), CONTROL).map_err(SessionError::Poll)?;
    let (message, descriptors) = loop {
        match receive::<ToVmm>(control) {
            Ok(received) => break received,
            Err(error) if error.would_block() => {
                wait(&poller, &mut [EpollEvent::default(); 1]).map_err(SessionError::Poll)?;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let mut descriptors = Descriptors::new(descriptors);
    let exit = match message {
        ToVmm::Probe { kvm } => match descriptors.take(kvm).and_then(probe) {
            Ok(probe) => return Ok(send(control, &FromVmm::Probed(probe), &[])?),
            Err(error) => failed(&error),
        },
        ToVmm::Start(config) => {
            points.push(Point::now(timeline::VMM_CONFIGURED));
            let session = Session {
                control,
                poller,
                points,
            };
            session.start(&config, &mut descriptors)
        }
        ToVmm::Stream(_) => failed(&SessionError::NotStarted),
    };
    match send(control, &FromVmm::Exited(exit), &[]) {
        Ok(()) | Err(ControlError::Closed) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A session that could not be held.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The control socket failed.
    #[error("talk to the keeper")]
    Control(#[from] ControlError),
    /// Events could not be waited for.
    #[error("wait for events")]
    Poll(#[source] io::Error),
    /// A stream came before there was a machine.
    #[error("a stream was given before the machine was started")]
    NotStarted,
}

/// A session with a machine.
#[derive(Debug)]
struct Session<'a> {
    control: BorrowedFd<'a>,
    poller: Arc<Epoll>,
    points: Vec<Point>,
}

impl Session<'_> {
    fn start(mut self, config: &MachineConfig, descriptors: &mut Descriptors) -> Exit {
        let poller = Arc::clone(&self.poller);
        let mut machine = match Machine::build(config, descriptors, poller, &mut self.points) {
            Ok(machine) => machine,
            Err(error) => return failed(&error),
        };
        if !machine.speed().is_hardware() {
            let rate = machine.speed().rate();
            return without_console(ExitReason::EmulatedKvm { rate });
        }
        let reason = self
            .enter(&mut machine)
            .and_then(|()| self.serve(&machine))
            .unwrap_or_else(|reason| reason);
        let exit = self.report(&machine, reason);
        // Threads of the devices may still be at work in guest memory, until
        // the process ends, which it is about to do.
        std::mem::forget(machine);
        exit
    }

    /// Reports that the machine runs, and runs it.
    fn enter(&mut self, machine: &mut Machine) -> Result<(), ExitReason> {
        let fail = |error: &dyn Error| failed(error).reason;
        machine.aim().map_err(|error| fail(&error))?;
        let board = machine.board();
        let watched = watch(&self.poller, board.ending.told().as_raw_fd(), ENDED).and_then(|()| {
            board.slots.iter().try_for_each(|(slot, occupant)| {
                if !occupant.is_drained() {
                    return Ok(());
                }
                let number = u32::try_from(slot.0).map_err(io::Error::other)?;
                let token = own_token(FIRST_SLOT + number);
                watch(&self.poller, occupant.kick().as_raw_fd(), token)
            })
        });
        watched.map_err(|error| fail(&SessionError::Poll(error)))?;
        let clock = machine.clock().map_err(|error| fail(&error))?;
        self.points.push(Point::now(timeline::VMM_KERNEL_ENTRY));
        let running = FromVmm::Running {
            clock,
            points: std::mem::take(&mut self.points),
            disks: machine.disk_engine(),
        };
        send(self.control, &running, &[]).map_err(|error| lost(&error))?;
        machine.start().map_err(|error| fail(&error))
    }

    /// The event loop. Ends with the machine.
    fn serve(&self, machine: &Machine) -> Result<ExitReason, ExitReason> {
        let board = machine.board();
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            let ready = wait(&self.poller, &mut events)
                .map_err(|error| failed(&SessionError::Poll(error)).reason)?;
            let mut streams = false;
            for event in events.iter().take(ready) {
                match event.data() {
                    CONTROL => self.control_message(machine)?,
                    ENDED => {
                        if let Some(reason) = board.ending.take() {
                            return Ok(reason);
                        }
                    }
                    token => {
                        let key = StreamKey::from_token(token);
                        if key.host_port == u32::MAX {
                            let slot = key.guest_port.saturating_sub(FIRST_SLOT);
                            let slot = SlotAddress(usize::try_from(slot).unwrap_or(usize::MAX));
                            if let Some(occupant) = board.slots.get(slot) {
                                occupant.drain(&board.ram);
                            }
                        } else {
                            let events = event.event_set();
                            machine
                                .vsock()
                                .with_device(|vsock| vsock.socket_ready(key, events));
                            streams = true;
                        }
                    }
                }
            }
            if streams {
                machine.vsock().drain(&board.ram);
            }
        }
    }

    fn control_message(&self, machine: &Machine) -> Result<(), ExitReason> {
        loop {
            match receive::<ToVmm>(self.control) {
                Ok((ToVmm::Stream(StreamConfig { port, socket }), descriptors)) => {
                    let socket = Descriptors::new(descriptors)
                        .take(socket)
                        .map_err(|error| failed(&error).reason)?;
                    machine
                        .vsock()
                        .with_device(|vsock| vsock.offer(port, socket));
                }
                Ok((ToVmm::Probe { .. } | ToVmm::Start(_), _)) => {
                    return Err(ExitReason::Failed {
                        message: "the keeper sent a second first message".into(),
                    });
                }
                Err(error) if error.would_block() => return Ok(()),
                Err(error) => return Err(lost(&error)),
            }
        }
    }

    /// The last message: what the guest wrote before it ended says how.
    fn report(&self, machine: &Machine, reason: ExitReason) -> Exit {
        let board = machine.board();
        board.console.drain(&board.ram);
        let console = board.console.with_device(|console| console.tail().lines());
        let reason = match (reason, Tail::panic_message(&console)) {
            (ExitReason::Shutdown, Some(message)) => ExitReason::Panic { message },
            (reason, _) => reason,
        };
        Exit { reason, console }
    }
}

fn watch(poller: &Epoll, descriptor: RawFd, token: u64) -> io::Result<()> {
    let event = EpollEvent::new(EventSet::IN, token);
    poller.ctl(ControlOperation::Add, descriptor, event)
}

/// Waits for events, as long as it takes.
fn wait(poller: &Epoll, events: &mut [EpollEvent]) -> io::Result<usize> {
    loop {
        match poller.wait(-1, events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn lost(error: &ControlError) -> ExitReason {
    match error {
        ControlError::Closed => ExitReason::KeeperGone,
        error => failed(error).reason,
    }
}

fn failed(error: &dyn Error) -> Exit {
    let message = protocol::error::chain(error);
    without_console(ExitReason::Failed { message })
}

fn without_console(reason: ExitReason) -> Exit {
    Exit {
        reason,
        console: Vec::new(),
    }
}
