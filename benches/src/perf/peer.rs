//! arm_vgic, in a process of its own: see `benches/peers/arm_vgic`.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::path::Group;
use super::paths::{
    ARM_VGIC, BY_EVENT, BY_ROUTE, CYCLE, FIRST_BY_EVENT, FIRST_BY_ROUTE, NOTHING_TAKEN, ONE_TAKEN,
    SIZES, TRANSLATER,
};

/// The peer's process, which ends when its standard input is closed.
pub struct Peer(Rc<RefCell<Talk>>);

struct Talk {
    child: Child,
    /// `None` once the process is to end.
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Talk {
    fn ask(&mut self, question: &str) -> Result<u64> {
        let to = self.to.as_mut().context("arm_vgic has ended")?;
        writeln!(to, "{question}").context("arm_vgic has ended")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("arm_vgic answers {line:?} to {question:?}"))
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        drop(self.to.take());
        // Its exit status is irrelevant at this point.
        let _ = self.child.wait();
    }
}

/// A machine in the peer's process, dropped with its kernel.
struct Machine {
    talk: Rc<RefCell<Talk>>,
    number: u64,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // If the process has ended, the machine no longer exists.
        let _ = self.talk.borrow_mut().ask(&format!("drop {}", self.number));
    }
}

impl Peer {
    /// Starts the process.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(program: &Path) -> Result<Self> {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self(Rc::new(RefCell::new(Talk { child, to, from }))))
    }

    /// Asks a question that is not about a path.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn ask(&self, question: &str) -> Result<u64> {
        self.0.borrow_mut().ask(question)
    }

    /// Adds the peer's paths to their groups.
    pub(super) fn add_to(&self, groups: &mut [Group]) {
        for group in groups {
            for (what, kind, sizes) in [
                // arm_vgic has one way to inject, by (DeviceID, EventID).
                (BY_ROUTE, "coalesced N", &SIZES[..]),
                (BY_EVENT, "coalesced N", &SIZES),
                (TRANSLATER, "coalesced N", &SIZES),
                (FIRST_BY_ROUTE, "first N", &SIZES[1..]),
                (FIRST_BY_EVENT, "first N", &SIZES[1..]),
                (CYCLE, "cycle N", &SIZES),
                (ONE_TAKEN, "pending N N", &[16, 1024, 65_536]),
                (NOTHING_TAKEN, "entry N N", &[1, 16, 1024, 65_536]),
            ] {
                for &size in sizes {
                    let size = u64::from(size);
                    let find =
                        |p: &&super::path::Path| p.key.what == what && p.key.at == Some(size);
                    let Some(of) = group.paths.iter().find(find).map(|p| p.key.of.clone()) else {
                        continue;
                    };
                    let talk = Rc::clone(&self.0);
                    let question = kind.replace('N', &size.to_string());
                    group.add(ARM_VGIC, what, Some((size, &of)), move || {
                        let number = talk.borrow_mut().ask(&question)?;
                        let machine = Machine { talk: Rc::clone(&talk), number };
                        Ok(Box::new(move |calls| {
                            let ask = format!("run {} {calls}", machine.number);
                            let ns = machine.talk.borrow_mut().ask(&ask)?;
                            Ok(Duration::from_nanos(ns))
                        }))
                    });
                }
            }
        }
    }
}
