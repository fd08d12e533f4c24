//! The life of containers and processes: made, started, ended, deleted.

use std::fs;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use protobuf::MessageField;
use protocol::agent::api::{CreateTaskRequest, ExecProcessRequest};
use protocol::agent::events::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskStart,
};
use protocol::agent::{PROCESS_TYPE_URL, SPEC_TYPE_URL, topics};
use protocol::oci;
use protocol::timeline::{
    CONTAINER_CREATE, CONTAINER_CREATED, CONTAINER_START, WORKLOAD_EXEC, WORKLOAD_EXIT,
};
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

use super::Agent;
use crate::container::cgroup::Cgroup;
use crate::container::identity::MESSAGE_ROOM;
use crate::container::identity::MOST_GROUPS;
use crate::container::namespaces::{NamespacePlan, Namespaces};
use crate::container::plan::{ContainerPlan, Plan, ProcessPlan, Scratch};
use crate::container::process::{Exit, Live, Phase, Process};
use crate::container::rootfs::RootPlan;
use crate::container::spawn::{self, Conversation, Spawned};
use crate::container::stdio::{Connections, Stdio, StdioRequest, Until, window};
use crate::container::{Container, check_id, limits, oom, user};
use crate::error::{Attempt, Failure, Result};
use crate::{log, sys};

/// Status of a process whose program could not be started for a reason other
/// than the program.
const NOT_STARTED: u32 = 127;

impl Agent {
    /// Makes a container; its first process waits for [`Agent::start`].
    pub(super) async fn create(self: &Arc<Self>, request: CreateTaskRequest) -> Result<u32> {
        self.timeline.stamp(CONTAINER_CREATE);
        check_id("id", &request.id)?;
        let spec: oci::Spec = json("options", SPEC_TYPE_URL, &request.options)?;
        if self.containers().contains_key(&request.id) {
            return Err(Failure::exists(format!(
                "container {:?} exists already",
                request.id
            )));
        }
        self.containers().insert(request.id.clone(), None);
        let container = match self.build(&request, &spec).await {
            Ok(container) => Arc::new(container),
            Err(error) => {
                self.containers().remove(&request.id);
                return Err(error);
            }
        };
        self.containers()
            .insert(request.id.clone(), Some(Arc::clone(&container)));
        self.timeline.stamp(CONTAINER_CREATED);
        let pid = container.init.pid();
        self.events.publish(
            topics::TASK_CREATE_EVENT_TOPIC,
            &TaskCreate {
                container_id: request.id,
                bundle: request.bundle,
                rootfs: request.rootfs,
                io: MessageField::some(TaskIO {
                    stdin: request.stdin,
                    stdout: request.stdout,
                    stderr: request.stderr,
                    terminal: request.terminal,
                    ..TaskIO::default()
                }),
                pid,
                ..TaskCreate::default()
            },
        );
        self.watch_shares();
        let agent = Arc::clone(self);
        let watched = Arc::downgrade(&container);
        tokio::spawn(oom::watch(watched, move |container| {
            agent.publish_oom(container);
        }));
        Ok(pid)
    }

    async fn build(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        spec: &oci::Spec,
    ) -> Result<Container> {
        if !request.checkpoint.is_empty() {
            return Err(Failure::unsupported(
                "checkpoint: containers cannot be restored",
            ));
        }
        let cgroup = Cgroup::create(&request.id)?;
        match self.populate(request, spec, &cgroup).await {
            Ok((namespaces, root, init)) => Ok(Container::new(
                &request.bundle,
                cgroup,
                namespaces,
                root,
                init,
            )),
            Err(error) => {
                let emptied = match cgroup.kill() {
                    Ok(()) => cgroup.remove().await,
                    Err(error) => Err(error),
                };
                if let Err(left) = emptied {
                    log::line(&protocol::error::chain(&left));
                }
                Err(error)
            }
        }
    }

    /// Makes a container's first process and waits until it is prepared.
    async fn populate(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        spec: &oci::Spec,
        cgroup: &Cgroup,
    ) -> Result<(Namespaces, OwnedFd, Arc<Process>)> {
        let process = spec
            .process
            .as_ref()
            .ok_or_else(|| Failure::argument("options: no process"))?;
        let stdio = StdioRequest {
            terminal: request.terminal,
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        if request.terminal != process.terminal {
            return Err(Failure::argument(
                "terminal differs from options' process.terminal",
            ));
        }
        if let Some(resources) = spec
            .linux
            .as_ref()
            .and_then(|linux| linux.resources.as_ref())
        {
            limits::apply(cgroup, resources)?;
        }
        let none = oci::Linux::default();
        let linux = spec.linux.as_ref().unwrap_or(&none);
        let mut namespaces = NamespacePlan::new(&linux.namespaces)?;
        self.shares.prepare(&request.rootfs, spec)?;
        let connections = stdio.connect(&self.transport).await?;
        let init = Arc::new(Process::new(&request.id, "", stdio, Phase::Starting(None)));
        let kinds = namespaces.kinds();
        let draft = Draft {
            container: Some(ContainerPlan::new(spec, RootPlan::new(&request.rootfs)?)?),
            new_namespaces: namespaces.new,
            join: mem::take(&mut namespaces.join),
            pid_namespace: namespaces.pid.as_ref().map(AsFd::as_fd),
            cgroup: cgroup.directory(),
        };
        let conversation = self
            .prepare(&init, process, connections, Until::End, draft)
            .await?;
        let pid = init.pid();
        let namespaces = Namespaces::of(pid, kinds)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())
            .attempt(|| "open the container's root".into())?;
        let identity = user::resolve(root.as_fd(), process)?;
        // A process that has ended already is found out when it is started.
        *init.phase() = Phase::Waiting {
            conversation,
            identity,
        };
        Ok((namespaces, root, init))
    }

    /// Makes a process and waits until it is prepared.
    async fn prepare(
        &self,
        process: &Arc<Process>,
        config: &oci::Process,
        connections: Connections,
        until: Until,
        draft: Draft<'_>,
    ) -> Result<Conversation> {
        let (conversation, sync) = spawn::conversation()?;
        let (pipes, stdio) = if config.terminal {
            (None, None)
        } else {
            let (pipes, ends) = connections.pipes(&self.null)?;
            (Some(pipes), Some(ends))
        };
        self.spawn(process, config, sync, stdio, draft)?;
        let master = conversation.ready().await?;
        let stdio = match (pipes, master) {
            (Some(pipes), _) => Stdio::with_pipes(connections, pipes, until)?,
            (None, Some(master)) => Stdio::with_terminal(connections, master)?,
            (None, None) => return Err(Failure::internal("the process has sent no terminal")),
        };
        process.set_stdio(stdio);
        Ok(conversation)
    }

    /// Makes a process. Not async: a plan must not move between threads, and
    /// nobody may reap before the process is known.
    fn spawn(
        &self,
        process: &Arc<Process>,
        config: &oci::Process,
        sync: OwnedFd,
        stdio: Option<[OwnedFd; 3]>,
        draft: Draft<'_>,
    ) -> Result<()> {
        let most_mounts = draft
            .container
            .as_ref()
            .map_or(0, |container| container.mounts.len());
        let plan = Plan {
            sync,
            stdio,
            terminal_size: config
                .console_size
                .map(|size| window(size.height, size.width)),
            join: draft.join,
            new_cgroup_namespace: draft.new_namespaces & libc::CLONE_NEWCGROUP != 0,
            new_network: draft.new_namespaces & libc::CLONE_NEWNET != 0,
            container: draft.container,
            process: ProcessPlan::new(config)?,
            scratch: Scratch {
                message: vec![0; MESSAGE_ROOM],
                groups: Vec::with_capacity(MOST_GROUPS),
                read_only: Vec::with_capacity(most_mounts),
            },
        };
        let spawned = self.spawn_in(
            plan,
            draft.new_namespaces,
            draft.cgroup,
            draft.pid_namespace,
        )?;
        let Spawned { pid, pidfd } = spawned;
        self.children().insert(pid, Arc::clone(process));
        process.set_live(Live { pid, pidfd });
        let pid = process.pid();
        let adjustment = config.oom_score_adj.unwrap_or(0);
        if adjustment != 0 {
            fs::write(format!("/proc/{pid}/oom_score_adj"), adjustment.to_string())
                .attempt(|| format!("set process.oomScoreAdj {adjustment}"))?;
        }
        Ok(())
    }

    fn spawn_in(
        &self,
        plan: Plan,
        new_namespaces: i32,
        cgroup: BorrowedFd<'_>,
        pid_namespace: Option<BorrowedFd<'_>>,
    ) -> Result<Spawned> {
        let act = || "make a process".into();
        let Some(namespace) = pid_namespace else {
            return spawn::spawn(plan, new_namespaces, cgroup).attempt(act);
        };
        // A process is born in the namespace that its parent has chosen for
        // its children; so it stays the agent's child, without a process
        // between them.
        sys::setns(namespace, libc::CLONE_NEWPID).attempt(|| "join the pid namespace".into())?;
        let spawned = spawn::spawn(plan, new_namespaces, cgroup);
        sys::setns(self.pid_namespace.as_fd(), libc::CLONE_NEWPID)
            .attempt(|| "leave the pid namespace".into())?;
        spawned.attempt(act)
    }

    /// Adds a process to a container; [`Agent::start`] makes it.
    pub(super) fn add(&self, request: ExecProcessRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        check_id("exec_id", &request.exec_id)?;
        let config: oci::Process = json("spec", PROCESS_TYPE_URL, &request.spec)?;
        // What is wrong with it is told here, not when it is started.
        drop(ProcessPlan::new(&config)?);
        if request.terminal != config.terminal {
            return Err(Failure::argument("terminal differs from spec's terminal"));
        }
        if !matches!(*container.init.phase(), Phase::Running) {
            return Err(not_running(&container));
        }
        let stdio = StdioRequest {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let mut execs = container.execs();
        if execs.contains_key(&request.exec_id) {
            return Err(Failure::exists(format!(
                "process {:?} of container {:?} exists already",
                request.exec_id, request.id
            )));
        }
        let phase = Phase::Added(Box::new(config));
        let process = Process::new(&request.id, &request.exec_id, stdio, phase);
        execs.insert(request.exec_id.clone(), Arc::new(process));
        drop(execs);
        self.events.publish(
            topics::TASK_EXEC_ADDED_EVENT_TOPIC,
            &TaskExecAdded {
                container_id: request.id,
                exec_id: request.exec_id,
                ..TaskExecAdded::default()
            },
        );
        Ok(())
    }

    /// Lets a prepared process become its program.
    pub(super) async fn start(self: &Arc<Self>, id: &str, exec: &str) -> Result<u32> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        if process.is_init() {
            self.timeline.stamp(CONTAINER_START);
        }
        let phase = {
            let mut phase = process.phase();
            match &*phase {
                Phase::Waiting { .. } | Phase::Added(_) => {
                    mem::replace(&mut *phase, Phase::Starting(None))
                }
                other => {
                    return Err(Failure::state(format!(
                        "{} is {}, it cannot be started",
                        process.name(),
                        other.name()
                    )));
                }
            }
        };
        let prepared = match phase {
            Phase::Waiting {
                conversation,
                identity,
            } => Ok((conversation, identity)),
            Phase::Added(config) => self.prepare_exec(&container, &process, &config).await,
            Phase::Starting(_) | Phase::Running | Phase::Stopped(_) => {
                return Err(not_running(&container));
            }
        };
        let (conversation, identity) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                process.set_stopped(Exit::now(NOT_STARTED));
                return Err(error);
            }
        };
        if let Err(failure) = conversation.start(&identity).await {
            process.set_stopped(Exit::now(failure.status()));
            return Err(failure.into_error());
        }
        self.started(&container, &process);
        Ok(process.pid())
    }

    async fn prepare_exec(
        &self,
        container: &Container,
        process: &Arc<Process>,
        config: &oci::Process,
    ) -> Result<(Conversation, crate::container::identity::Identity)> {
        if !matches!(*container.init.phase(), Phase::Running) {
            return Err(not_running(container));
        }
        if container.paused.load(Ordering::Relaxed) {
            return Err(Failure::state(format!(
                "container {:?} is paused",
                container.id
            )));
        }
        let connections = process.request.connect(&self.transport).await?;
        let identity = user::resolve(container.root.as_fd(), config)?;
        let leaf;
        let cgroup = if container.cgroup.is_leaf() {
            container.cgroup.directory()
        } else {
            leaf = container.cgroup.leaf_of(container.init.pid())?;
            leaf.as_fd()
        };
        let draft = Draft {
            container: None,
            new_namespaces: 0,
            join: container.namespaces.join()?,
            pid_namespace: container.namespaces.pid(),
            cgroup,
        };
        let conversation = self
            .prepare(process, config, connections, Until::Exit, draft)
            .await?;
        Ok((conversation, identity))
    }

    /// A program runs; if it has ended meanwhile, that is told after.
    fn started(&self, container: &Container, process: &Process) {
        let ended = match mem::replace(&mut *process.phase(), Phase::Running) {
            Phase::Starting(ended) => ended,
            _ => None,
        };
        let pid = process.pid();
        if process.is_init() {
            self.timeline.stamp(WORKLOAD_EXEC);
            self.events.publish(
                topics::TASK_START_EVENT_TOPIC,
                &TaskStart {
                    container_id: container.id.clone(),
                    pid,
                    ..TaskStart::default()
                },
            );
        } else {
            self.events.publish(
                topics::TASK_EXEC_STARTED_EVENT_TOPIC,
                &TaskExecStarted {
                    container_id: container.id.clone(),
                    exec_id: process.exec.clone(),
                    pid,
                    ..TaskExecStarted::default()
                },
            );
        }
        if let Some(exit) = ended {
            self.process_ended(process, exit);
        }
    }

    /// A child of the agent has ended; strangers are only reaped.
    pub(super) fn child_ended(&self, pid: Pid, status: u32) {
        let Some(process) = self.children().remove(&pid) else {
            return;
        };
        let exit = Exit::now(status);
        let starting = {
            let mut phase = process.phase();
            match &mut *phase {
                Phase::Starting(ended) => {
                    *ended = Some(exit);
                    true
                }
                // Its start has failed, and has told why.
                Phase::Stopped(_) => true,
                _ => false,
            }
        };
        if !starting {
            self.process_ended(&process, exit);
        }
    }

    fn process_ended(&self, process: &Process, exit: Exit) {
        let container = self.containers().get(&process.container).cloned().flatten();
        if let Some(container) = container {
            if process.is_init() {
                self.timeline.stamp(WORKLOAD_EXIT);
                // Nothing outlives a container's first process.
                if let Err(error) = container.cgroup.kill() {
                    log::line(&protocol::error::chain(&error));
                }
            }
            if container.new_oom_kills() {
                self.publish_oom(&container);
            }
        }
        process.set_stopped(exit);
        self.events.publish(
            topics::TASK_EXIT_EVENT_TOPIC,
            &TaskExit {
                container_id: process.container.clone(),
                id: event_id(process),
                pid: process.pid(),
                exit_status: exit.status,
                exited_at: MessageField::some(exit.timestamp()),
                ..TaskExit::default()
            },
        );
    }

    fn publish_oom(&self, container: &Container) {
        self.events.publish(
            topics::TASK_OOM_EVENT_TOPIC,
            &TaskOOM {
                container_id: container.id.clone(),
                ..TaskOOM::default()
            },
        );
    }

    /// Forgets a process that has ended or never ran, and with a container's
    /// first one the container.
    pub(super) async fn delete(&self, id: &str, exec: &str) -> Result<(u32, Exit)> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        let exit = match &*process.phase() {
            Phase::Stopped(exit) => *exit,
            Phase::Added(_) => Exit::now(0),
            Phase::Waiting { .. } => Exit::now(128_u32.saturating_add(sys::KILL.unsigned_abs())),
            phase => {
                return Err(Failure::state(format!(
                    "{} is {}, it cannot be deleted",
                    process.name(),
                    phase.name()
                )));
            }
        };
        if !process.is_init() {
            container.execs().remove(exec);
            return Ok((process.pid(), exit));
        }
        container.cgroup.kill()?;
        container.cgroup.remove().await?;
        if self.containers().remove(id).is_none() {
            return Err(Failure::not_found(format!(
                "container {id:?} does not exist"
            )));
        }
        self.events.publish(
            topics::TASK_DELETE_EVENT_TOPIC,
            &TaskDelete {
                container_id: id.into(),
                id: event_id(&process),
                pid: process.pid(),
                exit_status: exit.status,
                exited_at: MessageField::some(exit.timestamp()),
                ..TaskDelete::default()
            },
        );
        Ok((process.pid(), exit))
    }
}

/// What a process to be made needs besides its configuration.
struct Draft<'a> {
    container: Option<ContainerPlan>,
    new_namespaces: i32,
    join: Vec<(i32, OwnedFd)>,
    pid_namespace: Option<BorrowedFd<'a>>,
    cgroup: BorrowedFd<'a>,
}

/// Events call a container's first process by the container's id.
fn event_id(process: &Process) -> String {
    if process.is_init() {
        process.container.clone()
    } else {
        process.exec.clone()
    }
}

fn not_running(container: &Container) -> Failure {
    Failure::state(format!(
        "container {:?} is {}, not running",
        container.id,
        container.init.phase().name()
    ))
}

/// A structure of the OCI in an `Any`.
pub(super) fn json<T: serde::de::DeserializeOwned>(
    field: &str,
    type_url: &str,
    any: &MessageField<protobuf::well_known_types::any::Any>,
) -> Result<T> {
    let any = any
        .as_ref()
        .ok_or_else(|| Failure::argument(format!("{field} is missing")))?;
    if any.type_url.trim_start_matches('/') != type_url {
        return Err(Failure::argument(format!(
            "{field} has type {:?}, not {type_url:?}",
            any.type_url
        )));
    }
    serde_json::from_slice(&any.value)
        .map_err(|error| Failure::argument(format!("{field} is not readable: {error}")))
}
