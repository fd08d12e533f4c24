//! The picture: one lane for keeper, VMM and guest, one bar per phase.
//!
//! A phase belongs to the lane of the point that ends it: whoever reports an
//! event is the one that was waited for. Colours are chosen to be read on
//! white and on black.

use svg::Document;
use svg::node::element::{Rectangle, Style, Text};

use super::{Phase, Timeline, milliseconds};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 56.0;
const LANE: f64 = 34.0;
const ROW: f64 = 18.0;

const LANES: [(&str, &str); 3] = [
    ("keeper", "#2a7de1"),
    ("vmm", "#d9822b"),
    ("guest", "#1f9d78"),
];

pub(super) fn draw(timeline: &Timeline) -> String {
    let phases: Vec<_> = timeline.phases().collect();
    let total = milliseconds(timeline.total()).max(0.001);
    let scale = (WIDTH - LEFT - RIGHT) / total;
    let lanes_end = TOP + LANE * 3.0;
    #[expect(clippy::cast_precision_loss, reason = "as many rows as phases")]
    let height = lanes_end + ROW * (phases.len() as f64 + 2.0);

    let style = "text { font: 13px sans-serif; fill: #777 } .title { font-size: 16px } \
                 .small { font-size: 12px }";
    let mut document = Document::new()
        .set("viewBox", (0.0, 0.0, WIDTH, height))
        .set("width", WIDTH)
        .set("height", height)
        .add(Style::new(style))
        .add(text(&title(timeline, total), 12.0, 26.0).set("class", "title"));
    for (lane, (name, _)) in (0_u8..).zip(LANES) {
        let y = TOP + LANE * f64::from(lane) + LANE * 0.62;
        document = document.add(text(name, 12.0, y));
    }
    for (row, phase) in (0_u16..).zip(&phases) {
        let (lane, colour) = lane_of(phase.name);
        let y = TOP + LANE * f64::from(lane);
        let x = LEFT + milliseconds(phase.start) * scale;
        let width = (milliseconds(phase.length) * scale).max(0.5);
        let bar = Rectangle::new()
            .set("x", x)
            .set("y", y + 4.0)
            .set("width", width)
            .set("height", LANE - 8.0)
            .set("fill", colour)
            .set("stroke", "#777")
            .set("stroke-width", 0.3);
        let y = lanes_end + ROW * (f64::from(row) + 1.5);
        let key = Rectangle::new()
            .set("x", LEFT)
            .set("y", y - 10.0)
            .set("width", 10)
            .set("height", 10)
            .set("fill", colour);
        let label = text(&legend(phase), LEFT + 18.0, y).set("class", "small");
        document = document.add(bar).add(key).add(label);
    }
    document.to_string()
}

fn title(timeline: &Timeline, total: f64) -> String {
    let labels: Vec<_> = timeline
        .labels
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    format!("{total:.1} ms   {}", labels.join(", "))
}

fn legend(phase: &Phase<'_>) -> String {
    let (start, length) = (milliseconds(phase.start), milliseconds(phase.length));
    format!("{length:.3} ms until {} (from {start:.3})", phase.name)
}

fn lane_of(name: &str) -> (u8, &'static str) {
    let prefix = name.split('.').next().unwrap_or_default();
    match prefix {
        "keeper" => (0, LANES[0].1),
        "vmm" => (1, LANES[1].1),
        _ => (2, LANES[2].1),
    }
}

fn text(content: &str, x: f64, y: f64) -> Text {
    // Control characters have no place in XML, escaped or not.
    let content: String = content.chars().filter(|c| !c.is_control()).collect();
    Text::new(content).set("x", x).set("y", y)
}
