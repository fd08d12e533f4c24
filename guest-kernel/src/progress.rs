//! Telling a person how far a build is.
//!
//! On a terminal a bar with the objects compiled against what the last build
//! needed; elsewhere (CI logs, pipes) a plain line for each tenth.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// Objects of a full build, until one has been counted.
const FIRST_ESTIMATE: u64 = 1500;

/// The way to tell.
#[derive(Debug)]
pub enum Progress {
    /// Standard error is a terminal.
    Bar(ProgressBar),
    /// It is not; tenths told so far.
    Lines {
        /// Expected objects.
        expected: u64,
        /// Counted objects.
        done: u64,
    },
    /// Nobody wants to know.
    Silent,
}

impl Progress {
    /// By what standard error is.
    #[must_use]
    pub fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines {
                expected: FIRST_ESTIMATE,
                done: 0,
            };
        }
        let bar = ProgressBar::new(FIRST_ESTIMATE);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        Self::Bar(bar)
    }

    /// Tells what is done now.
    pub fn step(&mut self, what: &str) {
        match self {
            Self::Bar(bar) => bar.set_message(format!("guest kernel: {what}")),
            Self::Lines { .. } => say(what),
            Self::Silent => {}
        }
    }

    /// Starts counting towards `expected` objects.
    pub fn count_to(&mut self, expected: Option<u64>) {
        let total = expected.unwrap_or(FIRST_ESTIMATE).max(1);
        match self {
            Self::Bar(bar) => {
                bar.set_length(total);
                let template = "{msg} {wide_bar} {pos}/{len} {elapsed}";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
            }
            Self::Lines { expected, done } => (*expected, *done) = (total, 0),
            Self::Silent => {}
        }
    }

    /// One more object is compiled.
    pub fn object(&mut self) {
        match self {
            Self::Bar(bar) => {
                bar.inc(1);
                if bar.length().is_some_and(|length| bar.position() > length) {
                    bar.set_length(bar.position());
                }
            }
            Self::Lines { expected, done } => {
                let tenth = |count: u64| (count * 10 / *expected).min(10);
                if tenth(*done + 1) > tenth(*done) {
                    say(&format!("{} of about {expected} objects", *done + 1));
                }
                *done += 1;
            }
            Self::Silent => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

fn say(what: &str) {
    // Nobody is left to hear that standard error is closed.
    let _ = writeln!(io::stderr(), "guest-kernel: {what}");
}
