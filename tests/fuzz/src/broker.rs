//! The broker: any requests over a channel, on a real tree.
//!
//! Input: a byte for the device's policy, then messages: a byte that says
//! whether it is mostly right or anything at all, and its bytes.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ::broker::Device;
use protocol::broker::{Changed, Policy, entry_bytes};
use protocol::fuse::{MAX_ANSWER, Opcode, OutHeader};
use zerocopy::FromBytes;

use crate::input::Input;
use crate::request::Request;
use crate::share::{self, Tree};

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let Some(choices) = input.u8() else {
        return;
    };
    let tree = Tree::new();
    let device = tree.device(policy(choices));
    let (channel, thread) = share::serve_channel(&device);
    let mut vmm = Vmm {
        tree: &tree,
        device: &device,
        channel,
        room: vec![0; MAX_ANSWER + 1],
        opened: 0,
        answers: Vec::new(),
    };
    let _ = vmm.work(&mut input);
    drop(vmm);
    thread.join().expect("the channel's thread has panicked");
    tree.check();
}

pub(crate) fn policy(choices: u8) -> Policy {
    if choices & 1 == 0 {
        Policy::Exclusive
    } else {
        Policy::Shared
    }
}

/// The broker's peer, which passes on whatever it is told to.
struct Vmm<'a> {
    tree: &'a Tree,
    device: &'a Arc<Device>,
    channel: OwnedFd,
    room: Vec<u8>,
    /// Requests that may have opened a file.
    opened: usize,
    /// Errors of the answers so far.
    answers: Vec<i32>,
}

impl Vmm<'_> {
    fn work(&mut self, input: &mut Input<'_>) -> Option<()> {
        for unique in 1.. {
            let request = match input.u8()? {
                0..=0xef => Request::mostly_right(input, unique)?,
                _ => Request::raw(input)?,
            };
            // An empty message is a channel's end.
            if request.bytes.is_empty() {
                continue;
            }
            assert!(share::send(&self.channel, &request.bytes, &[]));
            if !(request.is_whole() && request.is_one_way()) {
                self.answer(&request);
            }
            share::check_census(self.device, self.opened);
        }
        Some(())
    }

    fn answer(&mut self, request: &Request) {
        let (length, files) = share::receive(&self.channel, &mut self.room);
        let answer = &self.room[..length];
        let (header, body) = OutHeader::read_from_prefix(answer).expect("half a header");
        let asked = request.header().filter(|_| request.is_whole());
        let opcode = asked.and_then(|asked| Opcode::from_number(asked.opcode));
        // What follows is how a changed directory is now.
        let changed = opcode.and_then(entry_bytes).map_or(0, |entry| {
            let told = size_of::<OutHeader>() + entry + size_of::<Changed>();
            usize::from(length == told) * size_of::<Changed>()
        });
        let (length, body) = (length - changed, &body[..body.len() - changed]);
        assert_eq!(
            usize::try_from(header.len),
            Ok(length),
            "a lie in its length"
        );
        assert!(length <= MAX_ANSWER, "longer than an answer may be");
        assert!(
            (-4095..=0).contains(&header.error),
            "error {}",
            header.error
        );
        assert!(header.error == 0 || body.is_empty() && files.is_empty());
        assert_eq!(header.unique, asked.map_or(0, |asked| asked.unique));
        assert!(files.len() <= 1, "more than one descriptor");
        for file in &files {
            self.tree.check_descriptor(file);
        }
        if let Some(Opcode::Open | Opcode::Create | Opcode::Tmpfile) = opcode {
            self.opened += 1;
        }
        self.answers.push(-header.error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The corpus is only worth something if well-formed input gets through.
    #[test]
    fn requests_reach_their_operations() {
        let tree = Tree::new();
        let device = tree.device(Policy::Shared);
        let (channel, thread) = share::serve_channel(&device);
        let mut vmm = Vmm {
            tree: &tree,
            device: &device,
            channel,
            room: vec![0; MAX_ANSWER + 1],
            opened: 0,
            answers: Vec::new(),
        };
        // Share 0 of the root, `file` and `..` in it; then the data of `file`.
        let seed = [
            [0, 0, 1, 0, 0, 0].as_slice(),
            &[0, 0, 2, 0, 0, 1],
            &[0, 0, 2, 0, 0, 10],
            &[0, 43, 3, 0, 0],
        ];
        vmm.work(&mut Input(&seed.concat()));
        assert_eq!(vmm.answers, [0, 0, 22, 0]);
        assert_eq!(device.census().nodes, 2);
        drop(vmm);
        thread.join().unwrap();
        tree.check();
    }
}
