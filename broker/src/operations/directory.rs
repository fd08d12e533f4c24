//! Listings of directories.

use protocol::fuse::{Attr, Dirent, EntryOut, Name, Opcode, ROOT, ReadIn, StatfsOut};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::attributes;
use crate::answer::Answer;
use crate::caller;
use crate::device::Device;
use crate::nodes::Found;
use crate::request::Request;
use crate::streams::Entry;

/// Most bytes of a listing in one answer.
const MOST_BYTES: usize = 64 * 1024;

/// READDIR, and READDIRPLUS with `plus`: entries with what LOOKUP would say.
pub(crate) fn read(
    device: &Device,
    request: &mut Request<'_>,
    answer: &mut Answer,
    plus: bool,
) -> Result<(), Errno> {
    let wanted: ReadIn = request.take()?;
    let room = usize::try_from(wanted.size)
        .unwrap_or(MOST_BYTES)
        .min(MOST_BYTES);
    let id = request.node();
    if device.nodes.kind(id)? != FileType::Directory {
        return Err(Errno::NOTDIR);
    }
    let descriptor = device.nodes.descriptor(id)?;
    let stream = device.streams.get(id, &descriptor)?;
    let mut stream = stream.lock();
    stream.seek(wanted.offset)?;
    while let Some(entry) = stream.next()? {
        let size = entry_size(&entry, plus);
        if answer.len().saturating_add(size) > room {
            if answer.len() == 0 {
                return Err(Errno::INVAL);
            }
            stream.put_back();
            break;
        }
        if plus {
            let found = look_up(device, request, &entry);
            answer.push(&found.map_or_else(EntryOut::default, |found| device.entry(&found)));
        }
        push_entry(answer, &entry);
    }
    Ok(())
}

/// The entry as a node, if it is one that can be named and still exists.
fn look_up(device: &Device, request: &Request<'_>, entry: &Entry<'_>) -> Option<Found> {
    let name = Name::new(entry.name).ok()?;
    device.nodes.look_up(request.node(), name).ok()
}

fn entry_size(entry: &Entry<'_>, plus: bool) -> usize {
    let head = if plus { size_of::<EntryOut>() } else { 0 };
    let name = entry.name.count_bytes().next_multiple_of(8);
    head.saturating_add(size_of::<Dirent>())
        .saturating_add(name)
}

fn push_entry(answer: &mut Answer, entry: &Entry<'_>) {
    let name = entry.name.to_bytes();
    answer.push(&Dirent {
        ino: entry.inode,
        off: entry.next,
        namelen: u32::try_from(name.len()).unwrap_or(0),
        kind: entry.kind.into(),
    });
    answer.push_bytes(name);
    answer.align();
}

/// What is asked of the device's root: a read-only directory that shows the
/// shares by number to whoever names them, and lists nothing.
pub(crate) fn answer_root(
    device: &Device,
    opcode: Opcode,
    request: &mut Request<'_>,
    answer: &mut Answer,
) -> Result<(), Errno> {
    caller::become_self()?;
    match opcode {
        Opcode::Lookup => {
            let name = request.name()?;
            let number = std::str::from_utf8(name.bytes())
                .ok()
                .and_then(|text| text.parse().ok());
            let found = number.map(|number| device.nodes.enter_share(number));
            match found.transpose()?.flatten() {
                Some(found) => answer.push(&device.entry(&found)),
                None => answer.push(&device.no_entry()),
            }
            Ok(())
        }
        Opcode::Getattr => {
            answer.push(&device.attributes(root()));
            Ok(())
        }
        Opcode::Statfs => {
            answer.push(&StatfsOut {
                bsize: 4096,
                frsize: 4096,
                namelen: 255,
                ..StatfsOut::default()
            });
            Ok(())
        }
        Opcode::Syncfs => match device.nodes.main_share() {
            Some(share) => attributes::sync(device, share, true),
            None => Ok(()),
        },
        Opcode::Readdir | Opcode::Readdirplus | Opcode::Fsyncdir => Ok(()),
        Opcode::Init => device.init(request, answer),
        Opcode::Destroy => Ok(()),
        Opcode::Getxattr | Opcode::Listxattr => Err(Errno::OPNOTSUPP),
        _ => Err(Errno::ROFS),
    }
}

fn root() -> Attr {
    Attr {
        ino: ROOT,
        mode: FileType::Directory.as_raw_mode() | 0o555,
        nlink: 2,
        blksize: 4096,
        ..Attr::default()
    }
}
