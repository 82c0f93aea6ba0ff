//! The results as a picture: latencies and rates, in SVG.
//!
//! The renderer's fonts are unknown, so no position depends on the width of a text.

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::accounts::Accounts;
use super::machine::Machine;
use super::text::{Nanos, headline};

pub(super) const SIZE: (u32, u32) = (1200, 680);
/// Blue, vermilion, green and purple, which color-blind readers can distinguish.
pub(super) const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];
pub(super) const INK: RGBColor = RGBColor(40, 40, 40);
pub(super) const FAINT: RGBColor = RGBColor(110, 110, 110);
pub(super) const GRID: RGBColor = RGBColor(225, 225, 225);
/// Height of a row of the legend.
const LEGEND_ROW: i32 = 24;
const CAPTION: &str = "Latency from injection to acknowledge (dots: p50, p99, p99.9)";
pub(super) const FONT: &str = "sans-serif";
/// Percentiles that are marked on the curves and stated in the legend.
const MARKED: [(&str, f64); 3] = [("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9)];

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws one curve and one pair of bars for each run.
pub(super) fn draw(runs: &[Accounts], machine: &Machine) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw_on(&root, runs, machine)
            .and_then(|()| root.present().map_err(Into::into))
            .map_err(|error| anyhow!("drawing: {error}"))?;
    }
    Ok(svg)
}

pub(super) type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw_on(root: &Area<'_>, runs: &[Accounts], machine: &Machine) -> Drawn {
    root.fill(&WHITE)?;
    let mut names: Vec<_> = runs.iter().map(|run| run.engine).collect();
    names.dedup();
    let title = format!("lpi-storm: {}", names.join(" and "));
    root.draw(&Text::new(title, (24, 18), (FONT, 26).into_font().color(&INK)))?;
    if let Some(run) = runs.first() {
        let small = (FONT, 15).into_font().color(&FAINT);
        let churned = runs.iter().any(|other| other.plan.churn);
        root.draw(&Text::new(headline(&run.plan, churned), (24, 52), small.clone()))?;
        let taken_on = format!("{}, {}, {}", machine.words(), machine.compiler, machine.date);
        root.draw(&Text::new(taken_on, (24, 73), small))?;
    }
    legend(root, runs)?;
    let rows = runs.len().div_ceil(2) as i32;
    let (_, panels) = root.split_vertically(118 + LEGEND_ROW * rows);
    let (left, right) = panels.split_horizontally(770);
    latencies(&left, runs)?;
    rates(&right, runs)
}

/// Draws the legend of both panels, with the figures that curves do not show exactly. It is above
/// the panels, where no curve crosses it.
fn legend(root: &Area<'_>, runs: &[Accounts]) -> Drawn {
    for (n, (run, colour)) in (0..).zip(runs.iter().zip(COLOURS)) {
        let (left, top) = (24 + 590 * (n % 2), 106 + LEGEND_ROW * (n / 2));
        let line = vec![(left, top + 9), (left + 26, top + 9)];
        root.draw(&PathElement::new(line, colour.stroke_width(3)))?;
        root.draw(&Circle::new((left + 13, top + 9), 5, colour.filled()))?;
        let text = |size: i32| (FONT, size).into_font().color(&INK);
        root.draw(&Text::new(run.name(), (left + 36, top), text(17)))?;
        let mut figures = MARKED.map(|(name, percent)| (name, run.percentile(percent))).to_vec();
        figures.push(("max", run.latency.max()));
        let figures = figures.iter().map(|(name, ns)| format!("{name} {}", Nanos(*ns)));
        let figures = typeset(&figures.collect::<Vec<_>>().join(", "));
        root.draw(&Text::new(figures, (left + 156, top + 2), text(14)))?;
    }
    Ok(())
}

/// Draws the share of samples that took at least a given time. Both axes are logarithmic: each
/// further nine of a percentile has the same height, and the tail is as visible as the middle.
fn latencies(area: &Area<'_>, runs: &[Accounts]) -> Drawn {
    let sampled = runs.iter().filter(|run| !run.latency.is_empty());
    let least = sampled.clone().map(|run| run.latency.min()).min().unwrap_or(100).max(1) as f64;
    let most = runs.iter().map(|run| run.latency.max()).max().unwrap_or(1_000).max(1) as f64;
    let samples = runs.iter().map(|run| run.latency.len()).max().unwrap_or(1).max(100) as f64;
    let x = decade(least).min(most / 10.0)..10.0 * decade(most);
    let y = decade(1.0 / samples)..1.0;

    let mut chart = ChartBuilder::on(area)
        .caption(CAPTION, (FONT, 18).into_font().color(&INK))
        .margin_left(16)
        .margin_right(16)
        .margin_bottom(14)
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d(x.clone().log_scale(), y.clone().log_scale())?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .axis_style(FAINT)
        .x_desc("latency (logarithmic)")
        .y_desc("LPIs that took at least as long")
        .x_label_formatter(&|ns| axis_time(*ns))
        .y_label_formatter(&|share| format!("{} %", significant(share * 100.0)))
        .label_style((FONT, 14).into_font().color(&INK))
        .axis_desc_style((FONT, 15).into_font().color(&INK))
        .draw()?;

    for (run, colour) in runs.iter().zip(COLOURS) {
        let points = survival(&run.latency);
        chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        let slower = |percent: f64| 1.0 - percent / 100.0;
        // A percentile beyond the resolution of the samples is not on the curve.
        let told = MARKED.iter().map(|(_, percent)| *percent);
        let told = told.filter(|percent| slower(*percent) * run.latency.len() as f64 >= 1.0);
        chart.draw_series(told.map(|percent| {
            let at = (run.percentile(percent) as f64, slower(percent));
            Circle::new(at, 5, colour.filled())
        }))?;
    }

    Ok(())
}

/// Returns points (ns, share of samples that took at least as long), thinned to those that are
/// visible.
fn survival(latency: &Histogram<u64>) -> Vec<(f64, f64)> {
    let all = latency.len() as f64;
    let mut left = latency.len();
    let mut points: Vec<(f64, f64)> = Vec::new();
    for step in latency.iter_recorded() {
        let point = (step.value_iterated_to().max(1) as f64, left as f64 / all);
        left -= step.count_at_value();
        let seen = |a: f64, b: f64| (a / b).ln().abs() > 0.01;
        match points.last() {
            Some(last) if left != 0 && !seen(point.0, last.0) && !seen(point.1, last.1) => {}
            last => {
                // The share is constant between two values, so the curve has steps.
                let step = last.map(|last| (last.0, point.1));
                points.extend(step);
                points.push(point);
            }
        }
    }
    points
}

/// Draws one pair of bars per run: injections and deliveries per second.
fn rates(area: &Area<'_>, runs: &[Accounts]) -> Drawn {
    let rates = |run: &Accounts| [run.injected_per_s() / 1e6, run.delivered_per_s() / 1e6];
    let most = runs.iter().flat_map(rates).fold(0.0_f64, f64::max).max(1e-6);
    let mut chart = ChartBuilder::on(area)
        .caption("Rates", (FONT, 18).into_font().color(&INK))
        .margin_left(8)
        .margin_right(24)
        .margin_bottom(14)
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..2.0, 0.0..most * 1.12)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .axis_style(FAINT)
        .x_labels(0)
        .y_labels(8)
        .y_desc("million LPIs per second")
        .y_label_formatter(&|rate| significant(*rate))
        .label_style((FONT, 14).into_font().color(&INK))
        .axis_desc_style((FONT, 15).into_font().color(&INK))
        .draw()?;

    let above = Pos::new(HPos::Center, VPos::Bottom);
    let below = Pos::new(HPos::Center, VPos::Top);
    let width = 0.72 / runs.len() as f64;
    for (which, name) in ["injected", "delivered"].into_iter().enumerate() {
        let left = which as f64 + 0.14;
        for (n, (run, colour)) in runs.iter().zip(COLOURS).enumerate() {
            let rate = rates(run)[which];
            let (from, to) = (left + width * n as f64, left + width * (n + 1) as f64);
            let bar = Rectangle::new([(from + 0.02, 0.0), (to - 0.02, rate)], colour.filled());
            chart.draw_series([bar])?;
            let style = (FONT, 14).into_font().color(&INK).pos(above);
            let label = Text::new(three_digits(rate), ((from + to) / 2.0, rate), style);
            chart.draw_series([label])?;
        }
        let (x, y) = chart.backend_coord(&(which as f64 + 0.5, 0.0));
        let (base_x, base_y) = area.get_base_pixel();
        let style = (FONT, 15).into_font().color(&INK).pos(below);
        area.draw(&Text::new(name, (x - base_x, y - base_y + 10), style))?;
    }
    Ok(())
}

/// Returns the power of ten at or below `value`.
fn decade(value: f64) -> f64 {
    10.0_f64.powf(value.log10().floor())
}

/// Formats a power of ten, which needs no decimals: `100 ns`, `10 µs`.
fn axis_time(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{} ns", significant(ns)),
        ns if ns < 1e6 => format!("{} µs", significant(ns / 1e3)),
        ns if ns < 1e9 => format!("{} ms", significant(ns / 1e6)),
        ns => format!("{} s", significant(ns / 1e9)),
    }
}

/// Formats all digits of the value, without the residue of floating point.
pub(super) fn significant(value: f64) -> String {
    let text = format!("{value:.9}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Formats at least three digits.
fn three_digits(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// Replaces a terminal's `us` with `µs`.
fn typeset(text: &str) -> String {
    text.replace(" us", " µs")
}
