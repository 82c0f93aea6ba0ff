//! What the guest prints: a thread of its own writes it to where it goes, which may be a pipe that nobody reads.
//!
//! The guest's vCPUs only put it into a buffer of [`ROOM`] bytes, and never wait. What does not fit is lost, and the number of bytes that were is said in its place, as soon as there is room again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Bytes that wait to be written.
const ROOM: usize = 64 << 10;

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    /// Bytes that have not fitted since the last that did.
    lost: u64,
    /// The thread is writing.
    writing: bool,
    /// Pieces that have been written.
    written: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle to print through, cloned freely.
#[derive(Clone)]
pub(crate) struct Output(Arc<Shared>);

impl Output {
    /// Starts the thread, which ends with the process.
    pub(crate) fn start(mut to: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let output = Self(Arc::clone(&shared));
        thread::Builder::new().name("output".into()).spawn(move || {
            loop {
                let mut state = shared.state();
                while state.waiting.is_empty() {
                    state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                let piece: Vec<u8> = state.waiting.drain(..).collect();
                let lost = std::mem::take(&mut state.lost);
                state.writing = true;
                drop(state);
                // Nobody to tell if the terminal has gone.
                let _ = to.write_all(&piece);
                if lost > 0 {
                    let _ = write!(to, "\r\n[{lost} bytes of output lost]\r\n");
                }
                let _ = to.flush();
                let mut state = shared.state();
                (state.writing, state.written) = (false, state.written + 1);
                drop(state);
                shared.changed.notify_all();
            }
        })?;
        Ok(output)
    }

    /// Waits until everything has been written, but no longer than `patience` for a piece of it: whoever should read it may not.
    pub(crate) fn finish(&self, patience: Duration) {
        let mut state = self.0.state();
        while state.writing || !state.waiting.is_empty() {
            let before = state.written;
            let waited = self.0.changed.wait_timeout(state, patience);
            let (now, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = now;
            if timeout.timed_out() && state.written == before {
                return;
            }
        }
    }
}

impl Write for Output {
    /// Never waits, and takes everything.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state();
        let fits = bytes.len().min(ROOM - state.waiting.len());
        state.waiting.extend(&bytes[..fits]);
        state.lost += (bytes.len() - fits) as u64;
        drop(state);
        self.0.changed.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Writes only when it is let.
    struct Gate(Receiver<()>, Sender<Vec<u8>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// While nobody reads, whoever prints goes on, whoever waits for the end does, too, and memory is bounded.
    #[test]
    fn what_is_not_read_holds_up_nobody() {
        let ((open, gate), (to, from)) = (channel(), channel());
        let mut output = Output::start(Gate(gate, to)).unwrap();
        // The first piece is in the thread's hands, the rest in the buffer.
        output.write_all(b"!").unwrap();
        while !output.0.state().writing {
            thread::yield_now();
        }
        (0..3).for_each(|_| output.write_all(&vec![b'x'; ROOM]).unwrap());
        assert_eq!(output.0.state().waiting.len(), ROOM);
        output.finish(Duration::from_millis(1));
        // Somebody reads again.
        (0..100).for_each(|_| _ = open.send(()));
        output.finish(Duration::from_secs(60));
        let text: Vec<u8> = from.try_iter().flatten().collect();
        let said = format!("\r\n[{} bytes of output lost]\r\n", 2 * ROOM);
        assert_eq!(text.len(), 1 + ROOM + said.len());
        assert!(text.starts_with(b"!x") && text.ends_with(said.as_bytes()));
    }
}
