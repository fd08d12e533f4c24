//! Makes people's forms of a bench result: a table, a chart, README's figures.
#![allow(clippy::print_stdout, reason = "a command that prints its result")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Parser;
use plotters::prelude::*;
use serde::Deserialize;

/// Makes a table and a chart of a bench result.
#[derive(Debug, Parser)]
struct Options {
    /// The result, as `tests/bench/measure` writes it
    result: PathBuf,
    /// Where the table goes, as Markdown
    #[arg(long)]
    table: PathBuf,
    /// Where the chart goes, as SVG
    #[arg(long)]
    chart: PathBuf,
    /// A file whose figures between the markers are replaced
    #[arg(long)]
    readme: PathBuf,
    /// An earlier result to compare with
    #[arg(long)]
    previous: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct BenchResult {
    machine: String,
    guest_kernel: String,
    starts: Vec<Start>,
    phases: Vec<Phase>,
    memory: Vec<Memory>,
    sizes: Vec<Size>,
    #[serde(default)]
    files: Vec<FileWork>,
    #[serde(default)]
    disks: Vec<DiskWork>,
}

#[derive(Debug, Deserialize)]
struct Start {
    name: String,
    median_ms: f64,
}

#[derive(Debug, Deserialize)]
struct Phase {
    from: String,
    to: String,
    us: f64,
}

#[derive(Debug, Deserialize)]
struct Memory {
    process: String,
    rss_kib: f64,
    pss_kib: f64,
    own_private_kib: f64,
}

#[derive(Debug, Deserialize)]
struct Size {
    name: String,
    bytes: f64,
}

/// Work with files in a container's root, on the same directory.
#[derive(Debug, Deserialize)]
struct FileWork {
    name: String,
    runc_ms: f64,
    nerite_ms: f64,
    ratio: f64,
}

/// Reads of a disk.
#[derive(Debug, Deserialize)]
struct DiskWork {
    name: String,
    runc_iops: f64,
    nerite_iops: f64,
    ratio: f64,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let result = read(&options.result)?;
    let table = table(&result);
    fs::write(&options.table, &table).context("write the table")?;
    chart(&result, &options.chart)?;
    put_into(&options.readme, &table)?;
    println!("{table}");
    if let Some(previous) = &options.previous {
        println!("{}", comparison(&read(previous)?, &result));
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<BenchResult> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
}

fn table(result: &BenchResult) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{arguments}");
    };
    line(format_args!(
        "On the reference machine ({}), guest kernel {}.\n",
        result.machine, result.guest_kernel
    ));
    line(format_args!(
        "| start, exec to exit | ms | ratio to crun |\n|---|--:|--:|"
    ));
    let crun = result.starts.iter().find(|start| start.name == "crun run");
    for start in &result.starts {
        let ratio = crun.map_or(f64::NAN, |crun| start.median_ms / crun.median_ms);
        line(format_args!(
            "| `{}` | {:.1} | {ratio:.2} |",
            start.name, start.median_ms
        ));
    }
    line(format_args!("\n| phase of `nerite try` | ms |\n|---|--:|"));
    for phase in &result.phases {
        line(format_args!(
            "| {} → {} | {:.2} |",
            phase.from,
            phase.to,
            phase.us / 1000.0
        ));
    }
    line(format_args!(
        "\n| idle container, MiB | RSS | PSS | private, without the guest |\n|---|--:|--:|--:|"
    ));
    for memory in &result.memory {
        line(format_args!(
            "| {} | {:.1} | {:.1} | {:.2} |",
            memory.process,
            memory.rss_kib / 1024.0,
            memory.pss_kib / 1024.0,
            memory.own_private_kib / 1024.0
        ));
    }
    line(format_args!(
        "\n| work in the root directory of a bundle | runc, ms | nerite, ms | nerite's speed |\n|---|--:|--:|--:|"
    ));
    for work in &result.files {
        line(format_args!(
            "| {} | {:.0} | {:.0} | {:.0} % |",
            work.name,
            work.runc_ms,
            work.nerite_ms,
            work.ratio * 100.0
        ));
    }
    line(format_args!(
        "\n| reads of a disk | runc, per s | nerite, per s | nerite's speed |\n|---|--:|--:|--:|"
    ));
    for work in &result.disks {
        line(format_args!(
            "| {} | {:.0} | {:.0} | {:.0} % |",
            work.name,
            work.runc_iops,
            work.nerite_iops,
            work.ratio * 100.0
        ));
    }
    line(format_args!("\n| file | MB |\n|---|--:|"));
    for size in &result.sizes {
        line(format_args!("| {} | {:.2} |", size.name, size.bytes / 1e6));
    }
    text
}

/// Bars of the starts above, one stacked bar of the phases, bars of the work
/// below.
fn chart(result: &BenchResult, path: &Path) -> anyhow::Result<()> {
    let area = SVGBackend::new(path, (900, 840)).into_drawing_area();
    area.fill(&WHITE)?;
    let (starts, rest) = area.split_vertically(240);
    let (phases, work) = rest.split_vertically(240);
    let most = result.starts.iter().map(|start| start.median_ms);
    let starts_bars: Vec<_> = result
        .starts
        .iter()
        .map(|start| Bar {
            name: &start.name,
            value: start.median_ms,
            label: format!(" {:.1}", start.median_ms),
            ours: start.name.starts_with("nerite"),
        })
        .collect();
    let caption = "Start of busybox true, exec to exit, ms (less is better)";
    draw_bars(
        &starts,
        caption,
        &starts_bars,
        most.fold(1.0, f64::max),
        100,
    )?;
    draw_phases(&phases, result)?;
    let files = result.files.iter().map(|work| (&work.name, work.ratio));
    let disks = result.disks.iter().map(|work| (&work.name, work.ratio));
    let work_bars: Vec<_> = files
        .chain(disks)
        .map(|(name, ratio)| Bar {
            name,
            value: ratio * 100.0,
            label: format!(" {:.0} %", ratio * 100.0),
            ours: true,
        })
        .collect();
    let caption = "Work with files and disks, % of runc's speed (more is better)";
    draw_bars(&work, caption, &work_bars, 100.0, 180)?;
    area.present().context("write the chart")
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// One bar of a chart.
struct Bar<'a> {
    name: &'a str,
    value: f64,
    label: String,
    /// In nerite's colour.
    ours: bool,
}

/// Horizontal bars, the first at the bottom. `most` is what the scale shows
/// at least; names have `names` pixels.
fn draw_bars(
    area: &Area<'_>,
    caption: &str,
    bars: &[Bar<'_>],
    most: f64,
    names: u32,
) -> anyhow::Result<()> {
    let most = bars.iter().map(|bar| bar.value).fold(most, f64::max);
    let count = i32::try_from(bars.len())?;
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 18))
        .margin(10)
        .y_label_area_size(names)
        .x_label_area_size(28)
        .build_cartesian_2d(0.0..most * 1.12, (0..count).into_segmented())?;
    let name = |position: &SegmentValue<i32>| match position {
        SegmentValue::CenterOf(index) => usize::try_from(*index)
            .ok()
            .and_then(|index| bars.get(index))
            .map_or_else(String::new, |bar| bar.name.into()),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(bars.len() + 1)
        .y_label_formatter(&name)
        .draw()?;
    for (index, bar) in (0..).zip(bars) {
        let colour = if bar.ours {
            RGBColor(0, 110, 120)
        } else {
            RGBColor(150, 160, 170)
        };
        let corners = [
            (0.0, SegmentValue::Exact(index)),
            (bar.value, SegmentValue::Exact(index + 1)),
        ];
        let mut rectangle = Rectangle::new(corners, colour.filled());
        rectangle.set_margin(4, 4, 0, 0);
        chart.draw_series([rectangle])?;
        let place = (bar.value, SegmentValue::CenterOf(index));
        chart.draw_series([Text::new(bar.label.clone(), place, ("sans-serif", 14))])?;
    }
    Ok(())
}

fn draw_phases(area: &Area<'_>, result: &BenchResult) -> anyhow::Result<()> {
    let total: f64 = result.phases.iter().map(|phase| phase.us / 1000.0).sum();
    let mut chart = ChartBuilder::on(area)
        .caption("Where nerite's time goes, ms", ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(28)
        .build_cartesian_2d(0.0..total.max(0.001), 0.0..10.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .draw()?;
    let mut at = 0.0;
    for (index, phase) in result.phases.iter().enumerate() {
        let end = at + phase.us / 1000.0;
        let colour = Palette99::pick(index).mix(0.75);
        chart.draw_series([Rectangle::new([(at, 6.5), (end, 9.5)], colour.filled())])?;
        // Only phases that are wide enough to carry a name get one.
        if end - at > total / 60.0 {
            #[expect(clippy::cast_precision_loss, reason = "a handful of labels")]
            let row = 5.5 - 1.1 * (index % 5) as f64;
            let text = format!("{} {:.1}", phase.to, end - at);
            chart.draw_series([PathElement::new(
                [(at, 6.5), (at, row)],
                colour.stroke_width(1),
            )])?;
            chart.draw_series([Text::new(text, (at, row), ("sans-serif", 12))])?;
        }
        at = end;
    }
    Ok(())
}

const BEGIN: &str = "<!-- figures -->";
const END: &str = "<!-- /figures -->";

fn put_into(path: &Path, table: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let Some((before, rest)) = text.split_once(BEGIN) else {
        bail!("{} has no line {BEGIN}", path.display());
    };
    let Some((_, after)) = rest.split_once(END) else {
        bail!("{} has no line {END}", path.display());
    };
    let chart = "![Start times, phases, work with files](tests/bench/results/reference.svg)";
    let text = format!("{before}{BEGIN}\n{table}\n{chart}\n{END}{after}");
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn comparison(before: &BenchResult, after: &BenchResult) -> String {
    let mut text = String::from("Against the result before:\n");
    for start in &after.starts {
        if let Some(old) = before.starts.iter().find(|old| old.name == start.name) {
            let change = (start.median_ms / old.median_ms - 1.0) * 100.0;
            let _ = writeln!(
                text,
                "  {:12} {:8.1} → {:8.1} ms  {change:+.2} %",
                start.name, old.median_ms, start.median_ms
            );
        }
    }
    text
}
