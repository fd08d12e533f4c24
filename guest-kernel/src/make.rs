//! The kernel's own build system, watched.
//!
//! kconfig first, with every complaint turned into an error, then make with its
//! output in a log: one line per object is what the progress bar counts, and
//! the log's end is what a failure shows.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::CacheError;
use crate::command::{CommandError, run, tool};
use crate::config::{Config, Lost};
use crate::fragment::{Request, merged};
use crate::progress::Progress;

/// What makes two builds the same bytes: a fixed builder, time and count.
pub const SETTINGS: [&str; 6] = [
    "ARCH=x86_64",
    "LOCALVERSION=",
    "KBUILD_BUILD_TIMESTAMP=1970-01-01T00:00:00Z",
    "KBUILD_BUILD_USER=nerite",
    "KBUILD_BUILD_HOST=guest",
    "KBUILD_BUILD_VERSION=1",
];

/// Lines of the log that a failure shows.
const LAST_LINES: usize = 20;

/// The kernel could not be configured or compiled.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// Fragments name options that this kernel does not have.
    #[error("the kernel has no option {}", .0.join(", "))]
    Unknown(Vec<String>),
    /// kconfig did not grant what the fragments ask for.
    #[error("{} options did not survive kconfig:\n  {}", .0.len(), lines(.0))]
    Lost(Vec<Lost>),
    /// The compiler stopped.
    #[error("make stopped; the log's end ({}):\n{end}", log.display())]
    Failed {
        /// The whole log.
        log: PathBuf,
        /// Its last lines.
        end: String,
    },
    /// A tool failed.
    #[error("build the kernel")]
    Command(#[from] CommandError),
    /// A file could not be written or read.
    #[error("build the kernel")]
    File(#[from] CacheError),
}

fn lines(lost: &[Lost]) -> String {
    let lines: Vec<_> = lost.iter().map(ToString::to_string).collect();
    lines.join("\n  ")
}

/// A source tree and the directory that its objects go to.
#[derive(Debug, Clone, Copy)]
pub struct Trees<'a> {
    /// The kernel's source, never written to.
    pub source: &'a Path,
    /// Objects, reused by the next build.
    pub objects: &'a Path,
}

impl Trees<'_> {
    /// Makes the `.config` and checks that each request is in it.
    ///
    /// # Errors
    ///
    /// [`MakeError::Unknown`] and [`MakeError::Lost`] name every such option.
    pub fn configure(&self, requests: &[Request]) -> Result<Config, MakeError> {
        fs::create_dir_all(self.objects).map_err(CacheError::file("create", self.objects))?;
        let all = self.objects.join("requests.config");
        fs::write(&all, merged(requests)).map_err(CacheError::file("write", &all))?;
        let (out, err) = run(self
            .make()
            .arg("allnoconfig")
            .env("KCONFIG_ALLCONFIG", &all)
            .env("KCONFIG_WARN_UNKNOWN_SYMBOLS", "1"))?;
        let unknown = unknown_options(&out, &err);
        if !unknown.is_empty() {
            return Err(MakeError::Unknown(unknown));
        }
        let path = self.objects.join(".config");
        let text = fs::read_to_string(&path).map_err(CacheError::file("read", &path))?;
        let config = Config::parse(&text);
        let lost = config.lost(requests);
        if lost.is_empty() {
            Ok(config)
        } else {
            Err(MakeError::Lost(lost))
        }
    }

    /// Compiles `vmlinux`, writing make's words to `log`; how many objects.
    ///
    /// # Errors
    ///
    /// [`MakeError::Failed`] with the end of the log.
    pub fn compile(
        &self,
        jobs: NonZeroUsize,
        log: &Path,
        progress: &mut Progress,
    ) -> Result<u64, MakeError> {
        let write = CacheError::file("write", log);
        let (mut objects, mut end) = (0, VecDeque::with_capacity(LAST_LINES));
        let mut watch = || -> io::Result<bool> {
            let mut file = File::create(log)?;
            let (reader, writer) = io::pipe()?;
            let mut command = self.make();
            command.arg(format!("-j{jobs}")).arg("vmlinux");
            command.stdout(writer.try_clone()?).stderr(writer);
            let mut child = command.spawn()?;
            // The command holds the pipe's writing ends; without this the
            // reader would never see its end.
            drop(command);
            for line in BufReader::new(reader).split(b'\n') {
                let line = line?;
                file.write_all(&line)?;
                file.write_all(b"\n")?;
                let line = String::from_utf8_lossy(&line).into_owned();
                if is_object(&line) {
                    objects += 1;
                    progress.object();
                }
                if end.len() == LAST_LINES {
                    end.pop_front();
                }
                end.push_back(line);
            }
            Ok(child.wait()?.success())
        };
        if watch().map_err(write)? {
            return Ok(objects);
        }
        let end = end.into_iter().collect::<Vec<_>>().join("\n");
        Err(MakeError::Failed {
            log: log.to_owned(),
            end,
        })
    }

    fn make(&self) -> Command {
        let mut make = tool("make");
        make.arg("-C")
            .arg(self.source)
            .arg(format!("O={}", self.objects.display()));
        make.args(SETTINGS);
        make
    }
}

/// What compiler and linker call themselves; part of a kernel's digest.
///
/// # Errors
///
/// [`CommandError`] if one is not installed.
pub fn toolchain() -> Result<String, CommandError> {
    let mut all = String::new();
    for program in ["gcc", "ld"] {
        let (version, _) = run(tool(program).arg("--version"))?;
        all.push_str(version.lines().next().unwrap_or_default());
        all.push('\n');
    }
    Ok(all)
}

fn unknown_options(out: &str, err: &str) -> Vec<String> {
    out.lines()
        .chain(err.lines())
        .filter_map(|line| Some(line.split_once("unknown symbol: ")?.1.trim().to_owned()))
        .collect()
}

fn is_object(line: &str) -> bool {
    matches!(line.split_whitespace().next(), Some("CC" | "AS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_options_are_read_from_kconfigs_warnings() {
        let err = "/x/requests.config:3:warning: unknown symbol: RANDOM_TRUST_CPU\n\
            /x/requests.config:9:warning: override: reassigning to symbol SMP\n";
        assert_eq!(unknown_options("", err), ["RANDOM_TRUST_CPU"]);
    }

    #[test]
    fn is_object_counts_compiled_files_only() {
        assert!(is_object("  CC      mm/slub.o"));
        assert!(is_object("  AS      arch/x86/entry/entry_64.o"));
        assert!(!is_object("  AR      mm/built-in.a"));
        assert!(!is_object("mm/slub.c: In function 'x':"));
    }

    fn project(makefile: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("Makefile"), makefile).unwrap();
        directory
    }

    #[test]
    fn compile_counts_objects_and_keeps_the_log() {
        let source = project("vmlinux:\n\t@echo '  CC      a.o'\n\t@echo '  LD      vmlinux'\n");
        let log = source.path().join("log");
        let trees = Trees {
            source: source.path(),
            objects: source.path(),
        };
        let jobs = NonZeroUsize::MIN;
        assert_eq!(trees.compile(jobs, &log, &mut Progress::Silent).unwrap(), 1);
        assert!(fs::read_to_string(log).unwrap().contains("LD      vmlinux"));
    }

    #[test]
    fn compile_shows_the_logs_end_on_failure() {
        let source = project("vmlinux:\n\t@echo 'x.c:1: error: no' >&2; exit 1\n");
        let log = source.path().join("log");
        let trees = Trees {
            source: source.path(),
            objects: source.path(),
        };
        let error = trees
            .compile(NonZeroUsize::MIN, &log, &mut Progress::Silent)
            .unwrap_err()
            .to_string();
        assert!(error.contains("x.c:1: error: no"), "{error}");
        assert!(error.contains(&log.display().to_string()), "{error}");
    }
}
