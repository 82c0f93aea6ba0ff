//! A picture of a sweep: the rate over the number of events, one line for each number of devices.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::machine::Machine;
use super::plot::{Area, COLOURS, Drawn, FAINT, FONT, GRID, INK, SIZE, significant};
use super::sweep::{DEVICES, EVENTS, Mode, Swept};
use super::table::headline;
use super::text::{Count, Grouped};

/// Height of the area above the panels.
const TOP: i32 = 130;
/// Height of an engine's row of panels.
const ROW: u32 = SIZE.1 - TOP as u32;
const WAYS: [(bool, &str); 2] = [(false, "By route"), (true, "By look-up of (DeviceID, EventID)")];

/// Draws two panels for each engine.
pub(super) fn draw(swept: &[Swept], machine: &Machine) -> Result<String> {
    let mut svg = String::new();
    {
        let size = (SIZE.0, TOP as u32 + ROW * swept.len().max(1) as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw_on(&root, swept, machine)
            .and_then(|()| root.present().map_err(Into::into))
            .map_err(|error| anyhow!("drawing: {error}"))?;
    }
    Ok(svg)
}

fn draw_on(root: &Area<'_>, swept: &[Swept], machine: &Machine) -> Drawn {
    root.fill(&WHITE)?;
    let title = "lpi-storm --its --sweep: rate of injections over the number of mapped events";
    root.draw(&Text::new(title, (24, 18), (FONT, 26).into_font().color(&INK)))?;
    let small = (FONT, 15).into_font().color(&FAINT);
    if let Some(first) = swept.first() {
        root.draw(&Text::new(headline(&first.plan), (24, 52), small.clone()))?;
        let taken_on = format!("{}, {}, {}", machine.words(), machine.compiler, machine.date);
        root.draw(&Text::new(taken_on, (24, 73), small.clone()))?;
    }
    for (n, (devices, colour)) in (0..).zip(DEVICES.into_iter().zip(COLOURS)) {
        let (left, top) = (24 + 170 * n, 102);
        let line = vec![(left, top + 9), (left + 26, top + 9)];
        root.draw(&PathElement::new(line, colour.stroke_width(3)))?;
        let name = Count(devices.into(), "device").to_string();
        let style = (FONT, 16).into_font().color(&INK);
        root.draw(&Text::new(name, (left + 36, top + 1), style))?;
    }
    root.draw(&Text::new("dashed: while events are remapped by commands", (724, 104), small))?;
    let (_, rest) = root.split_vertically(TOP);
    let rows = rest.split_evenly((swept.len().max(1), 2));
    for (swept, row) in swept.iter().zip(rows.chunks(2)) {
        for (area, (lookup, name)) in row.iter().zip(WAYS) {
            panel(area, swept, lookup, &format!("{}: {}", swept.engine, name))?;
        }
    }
    Ok(())
}

fn panel(area: &Area<'_>, swept: &Swept, lookup: bool, name: &str) -> Drawn {
    let all = swept.cells.iter().flat_map(|cell| &cell.results);
    let most = all.map(|measured| measured.injected_per_cpu_s / 1e6).fold(1e-6, f64::max);
    let events = f64::from(EVENTS[0])..f64::from(EVENTS[EVENTS.len() - 1]);
    let mut chart = ChartBuilder::on(area)
        .caption(name, (FONT, 18).into_font().color(&INK))
        .margin_left(12)
        .margin_right(28)
        .margin_bottom(14)
        .x_label_area_size(52)
        .y_label_area_size(64)
        .build_cartesian_2d(events.log_scale().base(2.0), 0.0..most * 1.08)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(WHITE)
        .axis_style(FAINT)
        .x_labels(9)
        .x_desc("events of each device (logarithmic)")
        .y_desc("million injections per second of CPU time")
        .x_label_formatter(&|events| Grouped(events.round() as u64).to_string())
        .y_label_formatter(&|rate| significant(*rate))
        .label_style((FONT, 14).into_font().color(&INK))
        .axis_desc_style((FONT, 15).into_font().color(&INK))
        .draw()?;
    for (devices, colour) in DEVICES.into_iter().zip(COLOURS) {
        let points = |churn| {
            let cells = swept.cells.iter().filter(move |cell| cell.devices == devices);
            let point = move |cell: &super::sweep::Cell| {
                let rate = cell.of(Mode { lookup, churn }).injected_per_cpu_s;
                (f64::from(cell.events), rate / 1e6)
            };
            cells.map(point).collect::<Vec<_>>()
        };
        chart.draw_series(LineSeries::new(points(false), colour.stroke_width(2)))?;
        let dots = points(false).into_iter().map(|at| Circle::new(at, 4, colour.filled()));
        chart.draw_series(dots)?;
        let dashed = DashedLineSeries::new(points(true), 6, 4, colour.stroke_width(2));
        chart.draw_series(dashed)?;
    }
    Ok(())
}
