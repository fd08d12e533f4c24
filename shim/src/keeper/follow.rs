//! What the agent reports, and the machine's end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use protobuf::Message;
use protocol::agent::events::{
    TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use protocol::agent::topics;

use super::Keeper;
use super::container::{Container, Exit, Phase, Process};
use crate::sandbox::{Reported, Sandbox};

/// How long the guest may take to write to its disks what it holds back.
pub(super) const UNMOUNT: Duration = Duration::from_secs(60);

impl Keeper {
    /// Passes on what the agent reports, until the container's first process
    /// has ended or its machine has; then lets that go.
    pub(super) async fn follow(self: Arc<Self>, container: Arc<Container>, sandbox: Arc<Sandbox>) {
        let mut after = 0;
        while matches!(container.init.phase(), Phase::Created | Phase::Running) {
            let events = tokio::select! {
                events = sandbox.events(after) => events,
                // Its start has failed, of which the agent reports nothing.
                _ = container.init.ended() => break,
                // It is deleted without having been started.
                () = container.given_up() => break,
            };
            let Ok(events) = events else {
                self.note_end(&container);
                break;
            };
            for event in events {
                after = event.sequence;
                self.pass_on(&container, &event);
            }
        }
        tokio::select! {
            () = container.init.streams.finished() => {}
            () = container.given_up() => {}
        }
        if container.writes_to_disks {
            // The guest may be dead; then there is nobody to do it.
            let unmount = sandbox.delete_process(&container.id, "");
            let _ = tokio::time::timeout(UNMOUNT, unmount).await;
        }
        container.end();
    }

    /// Notes that what still runs has gone: with the first process, or with
    /// the machine.
    fn note_end(&self, container: &Container) {
        self.note_end_of_execs(container);
        self.note_exit(container, &container.init, Exit::killed());
    }

    fn note_end_of_execs(&self, container: &Container) {
        let left: Vec<_> = container.execs().values().cloned().collect();
        for process in left {
            self.note_exit(container, &process, Exit::killed());
        }
    }

    fn pass_on(&self, container: &Container, event: &Reported) {
        let id = container.id.clone();
        match event.topic.as_str() {
            topics::TASK_START_EVENT_TOPIC => self.events.tell(
                topics::TASK_START_EVENT_TOPIC,
                "TaskStart",
                &TaskStart {
                    container_id: id,
                    pid: container.init.pid(),
                    ..TaskStart::default()
                },
            ),
            topics::TASK_EXEC_ADDED_EVENT_TOPIC => {
                self.again::<TaskExecAdded>(event, topics::TASK_EXEC_ADDED_EVENT_TOPIC);
            }
            topics::TASK_EXEC_STARTED_EVENT_TOPIC => {
                self.again::<TaskExecStarted>(event, topics::TASK_EXEC_STARTED_EVENT_TOPIC);
            }
            topics::TASK_OOM_EVENT_TOPIC => {
                self.again::<TaskOOM>(event, topics::TASK_OOM_EVENT_TOPIC);
            }
            topics::TASK_PAUSED_EVENT_TOPIC => {
                container.paused.store(true, Ordering::Relaxed);
                self.again::<TaskPaused>(event, topics::TASK_PAUSED_EVENT_TOPIC);
            }
            topics::TASK_RESUMED_EVENT_TOPIC => {
                container.paused.store(false, Ordering::Relaxed);
                self.again::<TaskResumed>(event, topics::TASK_RESUMED_EVENT_TOPIC);
            }
            topics::TASK_EXIT_EVENT_TOPIC => {
                let Ok(exit) = TaskExit::parse_from_bytes(&event.payload) else {
                    return;
                };
                let exec = if exit.id == container.id {
                    ""
                } else {
                    &exit.id
                };
                let Ok(process) = container.process(exec) else {
                    return;
                };
                if process.is_init() {
                    // The guest's kernel has killed them before.
                    self.note_end_of_execs(container);
                }
                let ended = Exit {
                    status: exit.exit_status,
                    at: SystemTime::now(),
                };
                self.note_exit(container, &process, ended);
            }
            // Creation and deletion are the keeper's own to tell.
            _ => {}
        }
    }

    /// Passes a message on as it is, if it is one.
    fn again<M: Message>(&self, event: &Reported, topic: &'static str) {
        if let Ok(message) = M::parse_from_bytes(&event.payload) {
            self.events.tell(topic, M::NAME, &message);
        }
    }

    /// Notes that a process has ended, once.
    fn note_exit(&self, container: &Container, process: &Process, exit: Exit) {
        let started = process.phase() == Phase::Running;
        if !process.advance(Phase::Stopped(exit)) || !(started || process.is_init()) {
            return;
        }
        let id = if process.is_init() {
            &container.id
        } else {
            &process.exec
        };
        self.events.tell(
            topics::TASK_EXIT_EVENT_TOPIC,
            "TaskExit",
            &TaskExit {
                container_id: container.id.clone(),
                id: id.clone(),
                pid: process.pid(),
                exit_status: exit.status,
                exited_at: protobuf::MessageField::some(exit.timestamp()),
                ..TaskExit::default()
            },
        );
    }
}
