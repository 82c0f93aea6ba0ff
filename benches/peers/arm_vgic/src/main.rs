//! Drives arm_vgic for `cargo xtask perf`, in a process of its own. It reads one command per line
//! from stdin, and writes one answer per line to stdout. The first five commands make a machine
//! with N LPIs, and answer with the machine's number M.
//!
//! | command | effect | answer |
//! |---|---|---|
//! | `coalesced N` | all LPIs are pending; injects one | M |
//! | `first N` | injects LPIs in batches, and then takes them | M |
//! | `cycle N` | none is pending; injects, takes and ends one LPI at a time | M |
//! | `pending N P` | P are pending; takes one LPI at a time, and makes it pending again | M |
//! | `entry N P` | P are pending; enters and exits, and the guest takes nothing | M |
//! | `run M CALLS` | performs this number of calls on machine M | nanoseconds of all calls |
//! | `drop M` | drops machine M | `0` |
//! | `memory N` | makes a machine with N LPIs, each injected and taken once | heap bytes of them |
//! | `deliver N MS` | one thread injects N LPIs in turn, another is the vCPU | LPIs per second |
//!
//! `deliver` runs for MS milliseconds. The answer to `memory` is extrapolated from the difference
//! to a machine with one LPI.

#![allow(unsafe_code)]

mod machine;
mod memory;
mod spin;

use std::io::{self, BufRead, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use machine::{Kind, Machine, deliver};

#[global_allocator]
static HEAP: memory::Counting = memory::Counting;

fn main() -> Result<()> {
    let mut machines: Vec<Option<Machine>> = Vec::new();
    let mut out = io::stdout();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |n: usize| -> Result<u32> {
            Ok(words.get(n).with_context(|| format!("{line}: too short"))?.parse()?)
        };
        let answer = match words.first().copied().unwrap_or_default() {
            "run" => {
                let machine = machines.get_mut(number(1)? as usize).and_then(Option::as_mut);
                machine.context("no such machine")?.run(number(2)?)?.as_nanos() as u64
            }
            "drop" => {
                let place = machines.get_mut(number(1)? as usize).context("no such machine")?;
                *place = None;
                0
            }
            "memory" => memory::of_machine(number(1)?)?,
            "deliver" => deliver(number(1)?, Duration::from_millis(number(2)?.into()))?,
            kind => {
                let kind = match kind {
                    "coalesced" => Kind::Coalesced,
                    "first" => Kind::First,
                    "cycle" => Kind::Cycle,
                    "pending" => Kind::Pending(number(2)?),
                    "entry" => Kind::Entry(number(2)?),
                    _ => bail!("unknown command: {line}"),
                };
                machines.push(Some(Machine::new(number(1)?, kind)?));
                machines.len() as u64 - 1
            }
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
