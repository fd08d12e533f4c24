//! What a child tells the agent before it gives up.

use rustix::io::Errno;

/// A failed step: what was tried on what, and the system's answer.
#[derive(Debug)]
pub(crate) struct Fault<'p> {
    kind: FaultKind,
    act: &'static str,
    object: &'p [u8],
    errno: Errno,
}

/// Which part failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FaultKind {
    /// Something before the program.
    Setup,
    /// The program itself.
    Exec,
}

/// Longest record; a longer object is cut.
pub(crate) const RECORD_ROOM: usize = 1024;

impl<'p> Fault<'p> {
    /// The program could not be executed.
    pub(crate) fn exec(program: &'p [u8], errno: Errno) -> Self {
        Self {
            kind: FaultKind::Exec,
            act: "exec",
            object: program,
            errno,
        }
    }

    /// Writes `[kind, errno, act length, act, object]` and returns how much.
    pub(crate) fn encode(&self, record: &mut [u8; RECORD_ROOM]) -> usize {
        let kind = match self.kind {
            FaultKind::Setup => 0,
            FaultKind::Exec => 1,
        };
        let act = self.act.as_bytes();
        let act_length = u8::try_from(act.len()).unwrap_or(0);
        let errno = self.errno.raw_os_error().to_le_bytes();
        let bytes = [kind]
            .into_iter()
            .chain(errno)
            .chain([act_length])
            .chain(act.iter().copied().take(usize::from(act_length)))
            .chain(self.object.iter().copied());
        record
            .iter_mut()
            .zip(bytes)
            .map(|(to, from)| *to = from)
            .count()
    }
}

/// A fault as the agent reads it.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Report {
    /// Which part failed.
    pub(crate) kind: FaultKind,
    /// What was tried.
    pub(crate) act: String,
    /// On what.
    pub(crate) object: String,
    /// The system's answer.
    pub(crate) errno: Errno,
}

impl Report {
    /// Reads a record.
    pub(crate) fn decode(record: &[u8]) -> Option<Self> {
        let (&kind, rest) = record.split_first()?;
        let (&errno, rest) = rest.split_first_chunk()?;
        let (&act_length, rest) = rest.split_first()?;
        let (act, object) = rest.split_at_checked(act_length.into())?;
        Some(Self {
            kind: if kind == 1 {
                FaultKind::Exec
            } else {
                FaultKind::Setup
            },
            act: String::from_utf8_lossy(act).into(),
            object: String::from_utf8_lossy(object).into(),
            errno: Errno::from_raw_os_error(i32::from_le_bytes(errno)),
        })
    }
}

/// Gives a step's failure its words.
pub(crate) trait Step<'p, T> {
    /// `act` says what is tried, `object` on what.
    fn step(self, act: &'static str, object: &'p [u8]) -> Result<T, Fault<'p>>;
}

impl<'p, T> Step<'p, T> for Result<T, Errno> {
    fn step(self, act: &'static str, object: &'p [u8]) -> Result<T, Fault<'p>> {
        self.map_err(|errno| Fault {
            kind: FaultKind::Setup,
            act,
            object,
            errno,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_survives_its_record() {
        let fault = Err::<(), _>(Errno::NOENT)
            .step("mount", b"/proc")
            .unwrap_err();
        let mut record = [0; RECORD_ROOM];
        let length = fault.encode(&mut record);
        let report = Report::decode(&record[..length]).unwrap();
        assert_eq!(report.act, "mount");
        assert_eq!(report.object, "/proc");
        assert_eq!(
            (report.kind, report.errno),
            (FaultKind::Setup, Errno::NOENT)
        );
    }

    #[test]
    fn fault_with_a_long_object_is_cut() {
        let object = vec![b'a'; 5000];
        let mut record = [0; RECORD_ROOM];
        let length = Fault::exec(&object, Errno::ACCESS).encode(&mut record);
        assert_eq!(length, RECORD_ROOM);
        assert_eq!(Report::decode(&record).unwrap().kind, FaultKind::Exec);
    }
}
