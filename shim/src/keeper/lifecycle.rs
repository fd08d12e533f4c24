//! Containers and processes: made, started, deleted.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use protobuf::MessageField;
use protocol::agent::api::{CreateTaskRequest, ExecProcessRequest};
use protocol::agent::events::{TaskCreate, TaskDelete, TaskIO};
use protocol::agent::topics;

use super::container::{Container, Exit, Phase, Process};
use super::follow::UNMOUNT;
use super::streams::{Paths, Streams};
use super::{Keeper, KeeperError, Result};
use crate::bundle::Bundle;
use crate::machine::{guest_memory, memory_limit, processors, resources};
use crate::mounts;
use crate::rootmount::RootMount;
use crate::sandbox::{NewContainer, Sandbox, SandboxConfig, SandboxError, StdioRequest, open_kvm};
use crate::size::ByteSize;
use crate::vmm::Vmm;

/// How long output that nobody has read yet keeps a deletion waiting.
const DRAIN: Duration = Duration::from_secs(1);

/// How long a guest may take for what an engine waits for.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

impl Keeper {
    /// Makes a container with its machine; answers the process id that stands
    /// for it on the host.
    pub(super) async fn create(self: &Arc<Self>, request: CreateTaskRequest) -> Result<u32> {
        if !request.checkpoint.is_empty() {
            return Err(KeeperError::Unsupported(
                "a container cannot be restored from a checkpoint".into(),
            ));
        }
        {
            let mut containers = self.containers();
            if containers.contains_key(&request.id) {
                return Err(KeeperError::Exists(format!("container {:?}", request.id)));
            }
            if let Some(other) = containers.keys().next() {
                return Err(KeeperError::Unsupported(format!(
                    "this sandbox has the container {other:?} and cannot have another one"
                )));
            }
            containers.insert(request.id.clone(), None);
        }
        let created = self.build(&request).await;
        let mut containers = self.containers();
        match created {
            Err(error) => {
                containers.remove(&request.id);
                Err(error)
            }
            Ok((container, sandbox)) => {
                let pid = container.init.pid();
                containers.insert(request.id.clone(), Some(Arc::clone(&container)));
                drop(containers);
                self.tell_creation(&container, &request);
                tokio::spawn(Arc::clone(self).follow(container, sandbox));
                Ok(pid)
            }
        }
    }

    async fn build(&self, request: &CreateTaskRequest) -> Result<(Arc<Container>, Arc<Sandbox>)> {
        let directory = PathBuf::from(&request.bundle);
        let root = RootMount::new(&request.rootfs, &directory.join("rootfs"))?;
        let bundle = Bundle::read(&directory)?;
        let resources = resources(&bundle.spec);
        let cpus = processors(&resources);
        let memory = guest_memory(memory_limit(&resources))?;
        let plan = mounts::plan(bundle)?;
        // The plan holds what it takes of it.
        drop(root);
        let writes_to_disks = plan.disks.iter().any(|disk| !disk.read_only);
        let kvm = open_kvm()?;
        let vmm = Vmm::spawn(&self.assets.vmm).map_err(SandboxError::from)?;
        let config = SandboxConfig {
            memory,
            window: ByteSize(0),
            vcpus: cpus.vcpus(),
            images: plan.images,
            disks: plan.disks,
            limits: plan.limits,
            trees: plan.trees,
            console: None,
            kernel_arguments: Vec::new(),
        };
        let sandbox = Arc::new(Sandbox::start(vmm, &self.assets, &kvm, config).await?);
        let stdio = sandbox
            .create(NewContainer {
                id: &request.id,
                spec: &plan.spec,
                root: &plan.root,
                stdio: StdioRequest {
                    stdin: !request.stdin.is_empty(),
                    terminal: request.terminal,
                },
                sockets: plan.sockets,
                vcpus: cpus.vcpus(),
            })
            .await?;
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        let streams = Streams::new(paths, stdio);
        streams.join()?;
        let init = Process::new("", streams, request.terminal, sandbox.vmm_id());
        let container = Container::new(
            &request.id,
            directory,
            init,
            Arc::clone(&sandbox),
            writes_to_disks,
        );
        Ok((Arc::new(container), sandbox))
    }

    fn tell_creation(&self, container: &Container, request: &CreateTaskRequest) {
        let streams = TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..TaskIO::default()
        };
        self.events.tell(
            topics::TASK_CREATE_EVENT_TOPIC,
            "TaskCreate",
            &TaskCreate {
                container_id: request.id.clone(),
                bundle: request.bundle.clone(),
                rootfs: request.rootfs.clone(),
                io: MessageField::some(streams),
                pid: container.init.pid(),
                ..TaskCreate::default()
            },
        );
    }

    /// Starts a process; answers its id.
    pub(super) async fn start(&self, id: &str, exec: &str) -> Result<u32> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        if process.phase() != Phase::Created {
            return Err(KeeperError::State(format!(
                "{} has been started already",
                name(&container.id, exec)
            )));
        }
        let sandbox = container.running()?;
        // A terminal's or a pipe's other end is opened when it is used.
        process.streams.join()?;
        // Its exit may be reported before this is answered.
        process.advance(Phase::Running);
        match sandbox.start_process(id, exec).await {
            Ok(pid) => {
                if !process.is_init() {
                    process.set_pid(pid);
                }
                Ok(process.pid())
            }
            Err(error) => {
                let exit = Exit {
                    status: 127,
                    ..Exit::killed()
                };
                process.advance(Phase::Stopped(exit));
                Err(error.into())
            }
        }
    }

    /// Adds a process to a container, to be started.
    pub(super) async fn add(&self, request: ExecProcessRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        let exec = request.exec_id.clone();
        if exec.is_empty() {
            return Err(KeeperError::State("a process needs an exec id".into()));
        }
        if container.execs().contains_key(&exec) {
            return Err(KeeperError::Exists(format!("process {exec:?}")));
        }
        if !matches!(container.init.phase(), Phase::Running) {
            return Err(KeeperError::State(format!(
                "container {:?} is not running",
                request.id
            )));
        }
        let sandbox = container.running()?;
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
        };
        let terminal = request.terminal;
        paths.check()?;
        let stdio = sandbox.exec(request).await?;
        let streams = Streams::new(paths, stdio);
        let process = Process::new(&exec, streams, terminal, 0);
        container.execs().insert(exec, Arc::new(process));
        Ok(())
    }

    /// Removes a process that has ended, or a container with its machine.
    pub(super) async fn delete(&self, id: &str, exec: &str) -> Result<(u32, Exit)> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        let exit = match process.phase() {
            Phase::Running => {
                return Err(KeeperError::State(format!(
                    "cannot delete a running process: {}",
                    name(id, exec)
                )));
            }
            Phase::Created => Exit::killed(),
            Phase::Stopped(exit) => exit,
        };
        if !process.is_init() {
            let _ = tokio::time::timeout(DRAIN, process.streams.finished()).await;
            process.streams.abort();
            container.execs().remove(exec);
            if let Some(sandbox) = container.sandbox() {
                // The guest may be on its way out, or dead.
                let delete = sandbox.delete_process(id, exec);
                let _ = tokio::time::timeout(ANSWER, delete).await;
            }
            return Ok((process.pid(), exit));
        }
        if process.phase() != Phase::Created {
            let _ = tokio::time::timeout(DRAIN, container.over()).await;
        }
        container.give_up();
        // It ends by itself when its disks are written.
        let _ = tokio::time::timeout(UNMOUNT + DRAIN, container.over()).await;
        process.streams.abort();
        self.containers().remove(id);
        self.events.tell(
            topics::TASK_DELETE_EVENT_TOPIC,
            "TaskDelete",
            &TaskDelete {
                container_id: id.into(),
                pid: process.pid(),
                exit_status: exit.status,
                exited_at: MessageField::some(exit.timestamp()),
                ..TaskDelete::default()
            },
        );
        Ok((process.pid(), exit))
    }

    /// Lets the keeper end, if it has no container.
    pub(super) fn shut_down(&self) {
        // One that is only being made has nobody any more who asked for it.
        if self.containers().values().all(Option::is_none) {
            self.shutdown.notify_one();
        }
    }
}

/// What a message calls a process.
pub(super) fn name(id: &str, exec: &str) -> String {
    if exec.is_empty() {
        format!("container {id:?}")
    } else {
        format!("process {exec:?} of container {id:?}")
    }
}
