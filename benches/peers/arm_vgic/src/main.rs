//! Drives arm_vgic for `cargo xtask perf`, in a process of its own. One command a line on stdin, one answer a line on stdout:
//!
//! | command | does | answer |
//! |---|---|---|
//! | `coalesced N` | makes a machine with N LPIs, all pending | its number |
//! | `first N` | one of which batches are injected and then taken | its number |
//! | `cycle N` | one with nothing pending, of which one LPI at a time is injected, taken and ended | its number |
//! | `pending N P` | one with P of its N LPIs pending, of which one at a time is taken and comes again | its number |
//! | `entry N P` | the same, whose guest takes nothing | its number |
//! | `run M CALLS` | that many calls on machine M | nanoseconds of all of them |
//! | `drop M` | | `0` |
//! | `memory N` | makes a machine with N LPIs, each injected and taken once | heap bytes of it, less those of one with none |
//! | `deliver N MS` | one thread injects N LPIs in turn, another is their vCPU | LPIs delivered per second |

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
