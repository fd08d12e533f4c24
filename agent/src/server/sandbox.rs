//! `nerite.agent.v1.Sandbox`: the guest as a whole.

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;

use async_trait::async_trait;
use protocol::agent::sandbox::{
    CopyInRequest, CopyInResponse, CopyOutRequest, CopyOutResponse, ForwardSocketRequest,
    ForwardSocketResponse, InfoRequest, InfoResponse, NextEventsRequest, NextEventsResponse,
    OnlineCpusRequest, OnlineCpusResponse, Sandbox, ShutdownRequest, ShutdownResponse,
    TimelinePoint, TimelineRequest, TimelineResponse,
};
use rustix::system::{sysinfo, uname};
use ttrpc::r#async::TtrpcContext;

use super::Agent;
use crate::copy;
use crate::error::{Attempt, Failure, Result};

/// The service.
pub(super) struct SandboxService(pub(super) Arc<Agent>);

#[async_trait]
impl Sandbox for SandboxService {
    async fn info(
        &self,
        _context: &TtrpcContext,
        _request: InfoRequest,
    ) -> ttrpc::Result<InfoResponse> {
        let memory = sysinfo();
        Ok(InfoResponse {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            kernel_release: uname().release().to_string_lossy().into(),
            memory_bytes: memory.totalram.saturating_mul(memory.mem_unit.into()),
            cpus: online()?,
            ..InfoResponse::default()
        })
    }

    async fn next_events(
        &self,
        _context: &TtrpcContext,
        request: NextEventsRequest,
    ) -> ttrpc::Result<NextEventsResponse> {
        let events = self.0.events.after(request.after).await;
        Ok(NextEventsResponse {
            events,
            ..NextEventsResponse::default()
        })
    }

    async fn timeline(
        &self,
        _context: &TtrpcContext,
        _request: TimelineRequest,
    ) -> ttrpc::Result<TimelineResponse> {
        let points = self
            .0
            .timeline
            .points()
            .into_iter()
            .map(|(name, tsc)| TimelinePoint {
                name: name.into(),
                tsc,
                ..TimelinePoint::default()
            })
            .collect();
        Ok(TimelineResponse {
            points,
            ..TimelineResponse::default()
        })
    }

    async fn online_cpus(
        &self,
        _context: &TtrpcContext,
        request: OnlineCpusRequest,
    ) -> ttrpc::Result<OnlineCpusResponse> {
        bring_online(request.count)?;
        Ok(OnlineCpusResponse {
            online: online()?,
            ..OnlineCpusResponse::default()
        })
    }

    async fn forward_socket(
        &self,
        _context: &TtrpcContext,
        request: ForwardSocketRequest,
    ) -> ttrpc::Result<ForwardSocketResponse> {
        let agent = &self.0;
        agent.sockets.forward(&agent.transport, &request).await?;
        Ok(ForwardSocketResponse::default())
    }

    async fn copy_out(
        &self,
        _context: &TtrpcContext,
        request: CopyOutRequest,
    ) -> ttrpc::Result<CopyOutResponse> {
        let container = self.0.container(&request.id)?;
        let (root, transport) = (container.root.as_fd(), &self.0.transport);
        copy::out(root, &request.path, transport, &request.stream).await?;
        Ok(CopyOutResponse::default())
    }

    async fn copy_in(
        &self,
        _context: &TtrpcContext,
        request: CopyInRequest,
    ) -> ttrpc::Result<CopyInResponse> {
        let container = self.0.container(&request.id)?;
        let (root, transport) = (container.root.as_fd(), &self.0.transport);
        copy::into(root, &request.directory, transport, &request.stream).await?;
        Ok(CopyInResponse::default())
    }

    async fn shutdown(
        &self,
        _context: &TtrpcContext,
        _request: ShutdownRequest,
    ) -> ttrpc::Result<ShutdownResponse> {
        self.0.shut_down();
        Ok(ShutdownResponse::default())
    }
}

const CPUS: &str = "/sys/devices/system/cpu";

fn online() -> Result<u32> {
    list_length("online")
}

/// How many processors a list in sysfs has.
fn list_length(file: &str) -> Result<u32> {
    let path = format!("{CPUS}/{file}");
    let text = fs::read_to_string(&path).attempt(|| format!("read {path}"))?;
    count(text.trim()).ok_or_else(|| Failure::internal(format!("{path} says {text:?}")))
}

/// The length of a list such as `0-1,3`.
fn count(list: &str) -> Option<u32> {
    list.split(',').try_fold(0_u32, |total, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        total.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// Brings processors up from the lowest number on until `wanted` run.
fn bring_online(wanted: u32) -> Result<()> {
    let present = list_length("present")?;
    if wanted > present {
        return Err(Failure::argument(format!(
            "count {wanted}: the guest has {present} processors"
        )));
    }
    let mut running = online()?;
    for number in 1..present {
        if running >= wanted {
            break;
        }
        let path = format!("{CPUS}/cpu{number}/online");
        if fs::read_to_string(&path).is_ok_and(|state| state.trim() == "0") {
            fs::write(&path, "1").attempt(|| format!("bring processor {number} online"))?;
            running = running.saturating_add(1);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_lists_are_counted() {
        for (list, length) in [
            ("0", Some(1)),
            ("0-3", Some(4)),
            ("0-1,3,5-6", Some(5)),
            ("", None),
            ("3-1", None),
        ] {
            assert_eq!(count(list), length, "{list}");
        }
    }
}
