//! A bar for work that takes long enough to wonder about.

use std::cell::OnceCell;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rootfs_builder::image::Progress;

/// A bar on standard error that appears with the first byte of work and goes
/// with its end. Nothing is drawn where standard error is no terminal.
#[derive(Debug)]
pub(crate) struct Bar {
    what: &'static str,
    bar: OnceCell<ProgressBar>,
}

impl Bar {
    /// A bar that says what is being done.
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            bar: OnceCell::new(),
        }
    }

    fn draw(&self) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_message(self.what);
        // The template is a constant and valid; without it the bar is plain.
        if let Ok(style) = ProgressStyle::with_template(
            "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
        ) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

impl Progress for Bar {
    fn update(&self, done: u64, total: u64) {
        let bar = self.bar.get_or_init(|| self.draw());
        bar.set_length(total);
        bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
