//! The report's pictures, as SVG. The renderer's fonts are unknown, so no position depends on them.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::data::Report;
use super::operations::Operation;
use super::path::thousands;
use super::paths::{NOTHING_TAKEN, ONE_TAKEN};
use super::stats::Spread;

const SIZE: (u32, u32) = (900, 520);
/// Colors that color-blind readers can distinguish.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(140, 110, 0),
    RGBColor(90, 90, 90),
];
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(110, 110, 110);
const GRID: RGBColor = RGBColor(225, 225, 225);
const FONT: &str = "sans-serif";
/// Height of a row of the legend.
const ROW: i32 = 20;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// A line of a chart.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// An axis of a chart.
#[derive(Clone, Copy)]
struct Axis {
    name: &'static str,
    log: bool,
}

impl Axis {
    const fn log(name: &'static str) -> Self {
        Self { name, log: true }
    }

    const fn linear(name: &'static str) -> Self {
        Self { name, log: false }
    }

    fn place(self, value: f64) -> f64 {
        if self.log { value.max(1e-9).log10() } else { value }
    }

    fn label(self, place: f64) -> String {
        let value = if self.log { 10_f64.powf(place) } else { place };
        if value >= 10_000.0 {
            thousands(value.round() as u64)
        } else if value >= 10.0 || value.fract().abs() < 0.005 {
            format!("{value:.0}")
        } else {
            format!("{value:.2}")
        }
    }

    fn range(self, values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
        let most = values.clone().map(|v| self.place(v)).fold(f64::NEG_INFINITY, f64::max);
        let least = values.map(|v| self.place(v)).fold(f64::INFINITY, f64::min);
        if self.log {
            let (least, most) = (least.floor(), most.ceil());
            (least, if most > least { most } else { least + 1.0 })
        } else {
            (least.min(0.0), most.max(1e-9) * 1.05)
        }
    }
}

fn draw(title: &str, size: (u32, u32), f: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let all = || -> Drawn {
            root.fill(&WHITE)?;
            root.draw(&Text::new(title.to_owned(), (20, 14), (FONT, 20).into_font().color(&INK)))?;
            f(&root)?;
            Ok(root.present()?)
        };
        all().map_err(|error| anyhow!("drawing {title:?}: {error}"))?;
    }
    svg.push('\n');
    Ok(svg)
}

fn chart(title: &str, x: Axis, y: Axis, lines: &[Line]) -> Result<String> {
    if lines.iter().all(|line| line.points.is_empty()) {
        // Nothing was measured, and an axis without numbers has no end.
        return Ok(String::new());
    }
    let rows = lines.len().div_ceil(2) as i32;
    let size = (SIZE.0, SIZE.1 + (ROW * rows) as u32);
    draw(title, size, |root| {
        for (n, line) in lines.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let (left, top) = (24 + n as i32 % 2 * 430, 46 + n as i32 / 2 * ROW);
            root.draw(&PathElement::new(
                [(left, top + 8), (left + 24, top + 8)],
                colour.stroke_width(3),
            ))?;
            let style = (FONT, 14).into_font().color(&INK);
            root.draw(&Text::new(line.name.clone(), (left + 32, top), style))?;
        }
        let (_, area) = root.split_vertically(52 + ROW * rows);
        let points = || lines.iter().flat_map(|line| line.points.iter().copied());
        let (xs, ys) = (x.range(points().map(|p| p.0)), y.range(points().map(|p| p.1)));
        let mut chart = ChartBuilder::on(&area)
            .margin(14)
            // Room for half of the last number.
            .margin_right(36)
            .x_label_area_size(44)
            .y_label_area_size(78)
            .build_cartesian_2d(xs.0..xs.1, ys.0..ys.1)?;
        let steps = |axis: Axis, (from, to): (f64, f64)| {
            if axis.log { (to - from).round() as usize + 1 } else { 8 }
        };
        chart
            .configure_mesh()
            .x_labels(steps(x, xs))
            .y_labels(steps(y, ys))
            .x_desc(x.name)
            .y_desc(y.name)
            .x_label_formatter(&|v| x.label(*v))
            .y_label_formatter(&|v| y.label(*v))
            .light_line_style(WHITE)
            .bold_line_style(GRID)
            .axis_style(FAINT)
            .label_style((FONT, 13).into_font().color(&INK))
            .axis_desc_style((FONT, 14).into_font().color(&FAINT))
            .draw()?;
        for (n, line) in lines.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let places: Vec<_> = line.points.iter().map(|p| (x.place(p.0), y.place(p.1))).collect();
            chart.draw_series(LineSeries::new(places.clone(), colour.stroke_width(2)))?;
            chart.draw_series(places.into_iter().map(|p| Circle::new(p, 3, colour.filled())))?;
        }
        Ok(())
    })
}

/// Returns a line for each implementation of the paths `what`, over the numbers at which they were
/// measured.
fn lines_of(report: &Report, what: &[(&str, &str)], value: impl Fn(f64) -> f64) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (what, note) in what {
        for set in report.sets.iter().filter(|set| set.key.what == *what) {
            let Some(at) = set.key.at else { continue };
            for (who, ns) in &set.ns {
                let Some(spread) = Spread::of(ns.iter().copied()) else { continue };
                let name = format!("{who}{note}");
                let point = (at as f64, value(spread.median));
                match lines.iter_mut().find(|line| line.name == name) {
                    Some(line) => line.points.push(point),
                    None => lines.push(Line { name, points: vec![point] }),
                }
            }
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

/// Draws the rates of storms with one vCPU and 256 events, and of the bare injections, over the
/// number of injectors.
fn injectors(report: &Report) -> Result<String> {
    let mut lines: Vec<Line> = Vec::new();
    for storm in &report.storms {
        let (vcpus, devices, events) = storm.shape;
        if vcpus != 1 || events == 1 || storm.paced {
            continue;
        }
        let rate = Spread::of(storm.injected.iter().copied()).map_or(0.0, |s| s.median);
        let name = format!("{}: lpi-storm, 1 vCPU", storm.who);
        let point = (f64::from(devices), rate);
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name, points: vec![point] }),
        }
    }
    for set in report.sets.iter().filter(|set| set.key.group == "threads") {
        let (Some(at), Some((_, how))) = (set.key.at, set.key.what.split_once("route, ")) else {
            continue;
        };
        for (who, _) in &set.ns {
            let Some(ns) = set.ns_of(who) else { continue };
            let name = format!("{who}: coalesced, {how}");
            let point = (at as f64, at as f64 * 1e3 / ns.median);
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push(point),
                None => lines.push(Line { name, points: vec![point] }),
            }
        }
    }
    let title = "Injections, of all injectors together";
    chart(title, Axis::linear("injector threads"), Axis::log("million per second"), &lines)
}

fn latency(report: &Report) -> Result<String> {
    let lines = report.storms.iter().filter(|storm| storm.paced).map(|storm| Line {
        name: format!("{}, {}", storm.who, storm.flags),
        points: storm
            .latency
            .iter()
            .filter(|(p, _)| *p < 100.0)
            // Each nine has the same width.
            .map(|(p, ns)| (100.0 / (100.0 - p), *ns as f64))
            .collect(),
    });
    // Storms without latencies have no line.
    let lines: Vec<_> = lines.filter(|line| !line.points.is_empty()).collect();
    let title = "From injection to acknowledge, each LPI for itself";
    let x = Axis::log("1 in so many takes at least as long (10: p90, 1,000: p99.9)");
    chart(title, x, Axis::log("nanoseconds"), &lines)
}

fn memory(report: &Report) -> Result<String> {
    let lines = report.memory.iter().map(|memory| Line {
        name: format!(
            "{}, {} events a device",
            memory.who,
            thousands(memory.events_per_device.into())
        ),
        points: memory
            .bytes
            .iter()
            .map(|(&lpis, &bytes)| (f64::from(lpis), bytes as f64 / f64::from(lpis)))
            .collect(),
    });
    let lines: Vec<_> = lines.collect();
    let title = "Heap bytes for each mapped LPI, as the allocator was asked for them";
    chart(title, Axis::log("LPIs mapped"), Axis::linear("bytes per LPI"), &lines)
}

/// Draws a bar for each operation, and in it a box for each read-modify-write.
fn breakdown(operations: &[Operation]) -> Result<String> {
    let parts: Vec<_> = operations.iter().filter(|op| op.is_part_of_cycle()).collect();
    let total: u32 = parts.iter().map(|op| op.rmws).sum();
    let title = format!("One LPI from device to handler and back: {total} read-modify-writes");
    let size = (SIZE.0, 90 + 58 * parts.len() as u32);
    draw(&title, size, |root| {
        let style = (FONT, 15).into_font().color(&INK);
        let centre = Pos::new(HPos::Center, VPos::Center);
        let mut done = 0;
        for (row, op) in parts.iter().enumerate() {
            let top = 60 + 58 * row as i32;
            root.draw(&Text::new(op.name.clone(), (24, top + 10), style.clone()))?;
            for n in 0..op.rmws {
                let left = 330 + 64 * (done + n) as i32;
                let colour = COLOURS[row % COLOURS.len()];
                root.draw(&Rectangle::new([(left, top), (left + 58, top + 38)], colour.filled()))?;
                let style = (FONT, 14).into_font().color(&WHITE).pos(centre);
                let text = op.words.get(n as usize).cloned().unwrap_or_default();
                root.draw(&Text::new(text, (left + 29, top + 19), style))?;
            }
            done += op.rmws;
        }
        Ok(())
    })
}

/// Returns all pictures: file name, caption, SVG.
///
/// # Errors
/// If drawing fails.
pub fn all(
    report: &Report,
    operations: &[Operation],
) -> Result<Vec<(&'static str, &'static str, String)>> {
    let (pending, ns) = (Axis::log("pending"), Axis::log("nanoseconds"));
    let entry = lines_of(
        report,
        &[(ONE_TAKEN, ", one delivered, which comes again"), (NOTHING_TAKEN, ", nothing taken")],
        |ns| ns,
    );
    // A logarithmic axis has no zero.
    let entry: Vec<_> = entry
        .into_iter()
        .map(|mut line| {
            line.points.retain(|p| p.0 > 0.0);
            line
        })
        .filter(|line| !line.name.contains("epoch"))
        .collect();
    let events = lines_of(
        report,
        &[
            ("256 hot events, by MsiRoute", ", by route"),
            ("256 hot events, by device and event", ", by device and event"),
        ],
        |ns| 1e3 / ns,
    );
    let mapped = Axis::log("events mapped");
    let mut all = vec![
        (
            "entry.svg",
            "What an entry and the exit after it cost, over what is pending",
            chart("Entry and exit over what is pending", pending, ns, &entry)?,
        ),
        ("injectors.svg", "The rate of injection over the number of injectors", injectors(report)?),
        ("latency.svg", "How long an LPI takes to its handler", latency(report)?),
        ("breakdown.svg", "Where the read-modify-writes of one LPI go", breakdown(operations)?),
        (
            "events.svg",
            "The rate over the number of events that are mapped: no cliff",
            chart(
                "Coalesced injections of 256 events, among many that are mapped",
                mapped,
                Axis::linear("million per second"),
                &events,
            )?,
        ),
        ("memory.svg", "Memory over mapped LPIs", memory(report)?),
    ];
    all.retain(|(_, _, svg)| !svg.is_empty());
    Ok(all)
}
