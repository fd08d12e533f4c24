//! A recorded start timeline: its file form, its table, its picture.
//!
//! Points come from three processes and two kernels, all on the host's clock
//! (protocol::timeline). A phase is the time between two points that follow
//! each other, so that phases always add up to the total (BOOT-7).

mod picture;

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use protocol::timeline::Point;
use serde::{Deserialize, Serialize};

/// The only version of the file form so far.
const VERSION: u32 = 1;

/// Longest bar of the table, in characters.
const BAR: u64 = 30;

/// A timeline that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("read the timeline {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("write the timeline {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is no timeline.
    #[error("{} is no timeline; record one with `nerite try --trace FILE`", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The file is of another version.
    #[error("{} has timeline version {version}, this nerite reads {VERSION}; record it again", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A picture of one point or none would be empty.
    #[error("{} has fewer than two points; record one with `nerite try --trace FILE`", path.display())]
    TooShort {
        /// The file.
        path: PathBuf,
    },
}

/// A start, point by point.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    version: u32,
    /// What was started: names and values, in order.
    labels: Vec<(String, String)>,
    /// In order of time.
    points: Vec<Point>,
}

/// The time between two points.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Phase<'a> {
    /// The name of the point that ends it.
    name: &'a str,
    /// From the first point, in nanoseconds.
    start: u64,
    /// Its length in nanoseconds.
    length: u64,
}

impl Timeline {
    /// A timeline of points in any order.
    #[must_use]
    pub fn new<'a>(
        mut points: Vec<Point>,
        labels: impl IntoIterator<Item = (&'a str, String)>,
    ) -> Self {
        points.sort_by_key(|point| point.ns);
        let labels = labels
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Self {
            version: VERSION,
            labels,
            points,
        }
    }

    /// Reads a file that [`Timeline::save`] wrote.
    ///
    /// # Errors
    ///
    /// [`TraceError`], naming the file.
    pub fn load(path: &Path) -> Result<Self, TraceError> {
        let text = fs::read(path).map_err(|source| TraceError::Read {
            path: path.into(),
            source,
        })?;
        let mut timeline: Self =
            serde_json::from_slice(&text).map_err(|source| TraceError::Malformed {
                path: path.into(),
                source,
            })?;
        if timeline.version != VERSION {
            return Err(TraceError::Version {
                path: path.into(),
                version: timeline.version,
            });
        }
        if timeline.points.len() < 2 {
            return Err(TraceError::TooShort { path: path.into() });
        }
        timeline.points.sort_by_key(|point| point.ns);
        Ok(timeline)
    }

    /// Writes it to a file.
    ///
    /// # Errors
    ///
    /// [`TraceError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), TraceError> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        text.and_then(|text| fs::write(path, text))
            .map_err(|source| TraceError::Write {
                path: path.into(),
                source,
            })
    }

    /// A table for a terminal: one line a point, with the time since the
    /// first, the step from the one before, and a bar for the step.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::from("    at ms   step ms\n");
        let longest = self
            .phases()
            .map(|phase| phase.length)
            .max()
            .unwrap_or(0)
            .max(1);
        if let Some(first) = self.points.first() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:>9.3}            {}", 0.0, first.name);
        }
        for phase in self.phases() {
            let bar = u128::from(phase.length) * u128::from(BAR) / u128::from(longest);
            let bar = "█".repeat(usize::try_from(bar).unwrap_or(0));
            let end = milliseconds(phase.start.saturating_add(phase.length));
            let step = milliseconds(phase.length);
            let _ = writeln!(text, "{end:>9.3} {step:>9.3}  {:<22} {bar}", phase.name);
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// A picture, as SVG that needs nothing else.
    #[must_use]
    pub fn svg(&self) -> String {
        picture::draw(self)
    }

    fn phases(&self) -> impl Iterator<Item = Phase<'_>> {
        let first = self.points.first().map_or(0, |point| point.ns);
        self.points.windows(2).filter_map(move |pair| match pair {
            [from, to] => Some(Phase {
                name: &to.name,
                start: from.ns.saturating_sub(first),
                length: to.ns.saturating_sub(from.ns),
            }),
            _ => None,
        })
    }

    fn total(&self) -> u64 {
        self.phases().map(|phase| phase.length).sum()
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "for people; exact below 104 days"
)]
fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timeline() -> Timeline {
        let point = |name: &str, ns| Point {
            name: name.into(),
            ns,
        };
        let points = vec![
            point("keeper.start", 1_000_000),
            point("agent.start", 61_000_000),
            point("vmm.start", 3_000_000),
            point("keeper.done", 81_000_000),
        ];
        Timeline::new(points, [("image", "<busybox> & \"co\"".to_owned())])
    }

    #[test]
    fn phases_are_in_order_and_add_up() {
        let timeline = timeline();
        let names: Vec<_> = timeline.phases().map(|phase| phase.name).collect();
        assert_eq!(names, ["vmm.start", "agent.start", "keeper.done"]);
        assert_eq!(timeline.total(), 80_000_000);
    }

    #[test]
    fn table_shows_each_point() {
        insta::assert_snapshot!(timeline().table(), @r"
            at ms   step ms
            0.000            keeper.start
            2.000     2.000  vmm.start              █
           60.000    58.000  agent.start            ██████████████████████████████
           80.000    20.000  keeper.done            ██████████
        ");
    }

    #[test]
    fn picture_is_svg_with_escaped_text() {
        let svg = timeline().svg();
        assert!(svg.starts_with("<svg"), "{svg}");
        assert!(svg.contains("&lt;busybox&gt; &amp;"), "{svg}");
        assert!(svg.contains("80.0 ms"), "{svg}");
    }

    #[test]
    fn file_survives_and_others_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        timeline().save(&path).unwrap();
        assert_eq!(Timeline::load(&path).unwrap(), timeline());
        let cases = [
            ("nonsense", "is no timeline"),
            (
                r#"{"version":2,"labels":[],"points":[]}"#,
                "has timeline version 2",
            ),
            (
                r#"{"version":1,"labels":[],"points":[]}"#,
                "fewer than two points",
            ),
        ];
        for (text, message) in cases {
            fs::write(&path, text).unwrap();
            let error = Timeline::load(&path).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(matches!(
            Timeline::load(Path::new("/no/such/trace")),
            Err(TraceError::Read { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_points_make_a_table_and_a_picture(
            times in proptest::collection::vec(any::<u64>(), 0..20),
            name in ".*",
        ) {
            let points = times.into_iter().map(|ns| Point { name: name.clone(), ns }).collect();
            let timeline = Timeline::new(points, []);
            prop_assert!(timeline.table().lines().count() >= 1);
            prop_assert!(timeline.svg().ends_with("</svg>"));
        }
    }
}
