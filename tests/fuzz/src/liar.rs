//! A broker that has been taken over: it answers whatever the input says.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};

use protocol::fuse::{InHeader, MAX_REQUEST, Opcode, OutHeader};
use zerocopy::{FromBytes, IntoBytes};

use crate::input::Input;
use crate::share::{self, Tree};

/// One answer.
#[derive(Debug)]
struct Answer {
    bytes: Vec<u8>,
    descriptors: u8,
}

/// Answers to come, in turn, then the end.
#[derive(Debug)]
pub(crate) struct Script {
    answers: Vec<Answer>,
}

impl Script {
    pub(crate) fn parse(input: &mut Input<'_>) -> Option<Self> {
        let count = input.u8()? % 16;
        let mut answers = Vec::new();
        for _ in 0..count {
            let kind = input.u8()?;
            let length = usize::from(input.u16()?) * 4;
            // Mostly it is as long as it says.
            let told = match kind & 0x0f {
                0 => input.u32()?,
                _ => u32::try_from(length).unwrap(),
            };
            let error = i32::from(input.u8()?.cast_signed());
            let header = OutHeader {
                len: told,
                error,
                unique: 1,
            };
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend(input.u8()?.to_le_bytes());
            bytes.resize(length.max(1), 0);
            answers.push(Answer {
                bytes,
                descriptors: kind >> 4 & 3,
            });
        }
        Some(Self { answers })
    }

    /// Answers on a channel's other end, which is returned.
    pub(crate) fn serve(self, tree: &Tree) -> (OwnedFd, JoinHandle<()>) {
        let (ours, theirs) = share::pair();
        let path = tree.share().join("file");
        let file = File::options().read(true).write(true).open(path).unwrap();
        let thread = thread::spawn(move || {
            let mut room = vec![0; MAX_REQUEST];
            for answer in self.answers {
                loop {
                    let (length, _) = share::receive(&theirs, &mut room);
                    let Ok((header, _)) = InHeader::read_from_prefix(&room[..length]) else {
                        return;
                    };
                    let opcode = Opcode::from_number(header.opcode);
                    if !opcode.is_some_and(Opcode::is_one_way) {
                        break;
                    }
                }
                let beside: Vec<OwnedFd> = (0..answer.descriptors)
                    .map(|_| file.try_clone().unwrap().into())
                    .collect();
                // One that says nothing would make its guest wait for ever.
                if !share::send(&theirs, &answer.bytes, &beside) {
                    return;
                }
            }
        });
        (ours, thread)
    }
}
