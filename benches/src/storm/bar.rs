//! The progress bar: on a terminal only, on standard error.

use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::plan::{Length, Plan};

/// The progress of the injectors. Cleared when dropped.
pub(super) struct Bar {
    bar: ProgressBar,
    /// The length of a timed storm in ms.
    time: Option<u64>,
}

impl Bar {
    pub(super) fn new(plan: &Plan) -> Self {
        // indicatif hides the bar if standard error, its target, is not a terminal.
        let (bar, template, time) = match plan.length {
            Length::Iterations(_) => {
                let bar = ProgressBar::new(plan.injections().unwrap_or(0));
                (bar, "{bar:40.cyan/blue} {human_pos} of {human_len} LPIs  {msg}", None)
            }
            Length::Time(time) => {
                let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
                (ProgressBar::new(ms), "{bar:40.cyan/blue} {elapsed} {msg}", Some(ms))
            }
        };
        if plan.quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar.set_style(ProgressStyle::with_template(template).expect("the template is valid"));
        Self { bar, time }
    }

    pub(super) fn show(&self, injected: u64, elapsed: Duration) {
        if self.bar.is_hidden() {
            return;
        }
        let rate = injected as f64 / elapsed.as_secs_f64();
        self.bar.set_message(format!("{} LPIs/sec", HumanCount(rate as u64)));
        self.bar.set_position(match self.time {
            None => injected,
            Some(time) => u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).min(time),
        });
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
