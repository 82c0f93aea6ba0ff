//! The guest's output. A separate thread writes it to its target, which may be a pipe without a
//! reader.
//!
//! The guest's vCPUs only put output into a buffer of [`ROOM`] bytes, and never wait. Bytes that do
//! not fit are lost. As soon as there is room again, the number of lost bytes is printed in their
//! place.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The size of the buffer, in bytes.
const ROOM: usize = 64 << 10;

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    /// Bytes lost since the last write to the target.
    lost: u64,
    /// Whether the thread is writing.
    writing: bool,
    /// The number of pieces written.
    written: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic leaves no half-done update.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle to print through. Clones share the buffer.
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
                // An error is ignored: if the terminal is gone, there is no place to report it.
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

    /// Waits until everything has been written, but at most `patience` for each piece, as the
    /// reader may have stopped.
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

    /// Writes only when the test lets it.
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

    /// Without a reader, prints and the wait for the end do not block, and memory is bounded.
    #[test]
    fn what_is_not_read_holds_up_nobody() {
        let ((open, gate), (to, from)) = (channel(), channel());
        let mut output = Output::start(Gate(gate, to)).unwrap();
        // The thread has the first piece; the rest is in the buffer.
        output.write_all(b"!").unwrap();
        while !output.0.state().writing {
            thread::yield_now();
        }
        (0..3).for_each(|_| output.write_all(&vec![b'x'; ROOM]).unwrap());
        assert_eq!(output.0.state().waiting.len(), ROOM);
        output.finish(Duration::from_millis(1));
        // The reader is back.
        (0..100).for_each(|_| _ = open.send(()));
        output.finish(Duration::from_secs(60));
        let text: Vec<u8> = from.try_iter().flatten().collect();
        let said = format!("\r\n[{} bytes of output lost]\r\n", 2 * ROOM);
        assert_eq!(text.len(), 1 + ROOM + said.len());
        assert!(text.starts_with(b"!x") && text.ends_with(said.as_bytes()));
    }
}
