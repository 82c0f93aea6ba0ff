//! QEMU with the payload `accesses`, which gets batches on its stdin and answers on its stdout.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::steps::{Machine, Outcome, Step};
use super::wire::{MAX_BATCH, RESET, RESULT_SIZE};
use crate::qtest::PROGRAM;
use crate::target::Model;

/// The time limit for an answer, which takes milliseconds. A missing answer means that QEMU has
/// ended, and is reported as such.
const LIMIT: Duration = Duration::from_secs(30);

/// A QEMU with running CPUs. It ends when this handle is dropped.
pub struct Guest {
    child: Child,
    stdin: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// Output of QEMU that has arrived and has not been read yet.
    buffer: Vec<u8>,
}

impl Guest {
    /// Starts QEMU.
    ///
    /// # Errors
    /// If QEMU is missing, or the payload does not answer.
    pub fn start(model: Model, payload: &Path) -> Result<Self> {
        let machine = format!("virt,gic-version={}", model.revision());
        let mut child = Command::new(PROGRAM)
            .args(["-M", &machine, "-cpu", "cortex-a57", "-smp", "2", "-m", "128"])
            // All CPUs run on one thread, so that a CPU that waits for the other one yields to it
            // at once.
            .args(["-accel", "tcg,thread=single"])
            .args(["-semihosting-config", "enable=on,target=native"])
            .args(["-display", "none", "-monitor", "none", "-serial", "none", "-net", "none"])
            .arg("-kernel")
            .arg(payload)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("cannot start {PROGRAM}: `cargo xtask setup` installs it"))?;
        let stdin = child.stdin.take().context("QEMU's stdin")?;
        let mut stdout = child.stdout.take().context("QEMU's stdout")?;
        let (sender, output) = mpsc::channel();
        // Reads on a separate thread, so that waits can have a time limit. The thread ends when
        // QEMU does.
        thread::spawn(move || {
            let mut bytes = [0; 1 << 14];
            while let Ok(n @ 1..) = stdout.read(&mut bytes) {
                if sender.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut guest = Self { child, stdin, output, buffer: Vec::new() };
        guest.expect_start()?;
        Ok(guest)
    }

    /// Resets the machine.
    ///
    /// # Errors
    /// If the machine does not come up again.
    pub fn reset(&mut self) -> Result<()> {
        self.stdin.write_all(&RESET.to_le_bytes()).context("QEMU has ended")?;
        self.expect_start()
    }

    fn expect_start(&mut self) -> Result<()> {
        let start = self.take(4).context("the payload does not start")?;
        ensure!(start == RESET.to_le_bytes(), "the payload starts with {start:x?}");
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        while self.buffer.len() < count {
            match self.output.recv_timeout(LIMIT) {
                Ok(bytes) => self.buffer.extend(bytes),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no answer from QEMU in {} s", LIMIT.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("QEMU has ended"),
            }
        }
        let rest = self.buffer.split_off(count);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }
}

impl Machine for Guest {
    fn perform(&mut self, steps: &[Step]) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(steps.len());
        for batch in steps.chunks(MAX_BATCH) {
            let mut bytes = (batch.len() as u32).to_le_bytes().to_vec();
            bytes.extend(batch.iter().flat_map(|step| step.operation.encode()));
            self.stdin.write_all(&bytes).context("QEMU has ended")?;
            let answers = self.take(batch.len() * RESULT_SIZE)?;
            let results = answers.chunks_exact(RESULT_SIZE).filter_map(<[u8]>::first_chunk);
            outcomes.extend(results.map(Outcome::decode));
        }
        Ok(outcomes)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // QEMU may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
