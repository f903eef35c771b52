//! Progress output of a training: burn-train's dashboard on a terminal, lines elsewhere.

use std::io::Write;
use std::time::{Duration, Instant};

use burn::train::Interrupter;
use burn::train::metric::MetricDefinition;
use burn::train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};

use super::metrics::{Measure, Scores};

/// burn-train's dashboard, if there is a terminal and `plain` is not set.
#[cfg(feature = "dashboard")]
pub(super) fn dashboard(
    plain: bool,
    interrupter: &Interrupter,
) -> Option<super::dashboard::Dashboard> {
    match plain {
        true => None,
        false => super::dashboard::Dashboard::open(interrupter),
    }
}

/// Whether a dashboard has the terminal: what else is printed there is lost when it is left.
pub fn has_dashboard() -> bool {
    #[cfg(feature = "dashboard")]
    return crossterm::terminal::is_raw_mode_enabled().unwrap_or(false);
    #[cfg(not(feature = "dashboard"))]
    false
}

/// Restores the terminal after a dashboard, for a program that exits without dropping it.
pub fn leave_dashboard() {
    #[cfg(feature = "dashboard")]
    {
        use crossterm::{cursor::Show, execute, terminal};
        use std::io::{IsTerminal, stdout};
        if terminal::is_raw_mode_enabled().unwrap_or(false) {
            execute!(stdout(), terminal::LeaveAlternateScreen).ok();
            terminal::disable_raw_mode().ok();
        }
        // burn-train's own way out leaves it hidden.
        if stdout().is_terminal() {
            execute!(stdout(), Show).ok();
        }
    }
}

/// None: this build has no dashboard.
#[cfg(not(feature = "dashboard"))]
pub(super) fn dashboard(_plain: bool, _interrupter: &Interrupter) -> Option<Silent> {
    None
}

/// Shows nothing of what burn-train would show: there are [`Lines`] instead or, of several processes, the first one shows.
pub(super) struct Silent;

impl MetricsRendererTraining for Silent {
    fn update_train(&mut self, _: MetricState) {}
    fn update_valid(&mut self, _: MetricState) {}
    fn render_train(&mut self, _: TrainingProgress, _: Vec<ProgressType>) {}
    fn render_valid(&mut self, _: TrainingProgress, _: Vec<ProgressType>) {}
}

impl MetricsRendererEvaluation for Silent {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
    fn render_test(&mut self, _: EvaluationProgress, _: Vec<ProgressType>) {}
}

impl MetricsRenderer for Silent {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, _: MetricDefinition) {}
}

/// Prints a line per log interval and per evaluation: metrics, steps per second and time left.
pub(super) struct Lines {
    steps: usize,
    /// Time and step of the last line.
    last: (Instant, usize),
    /// Time and step of the first step of this process.
    begin: Option<(Instant, usize)>,
}

impl Lines {
    /// Of a training of so many optimizer steps.
    pub(super) fn new(steps: usize) -> Self {
        Self {
            steps,
            last: (Instant::now(), 0),
            begin: None,
        }
    }

    /// After each step, with the scores since the last line where one is due.
    pub(super) fn train(&mut self, step: usize, scores: Option<&Scores>) {
        let now = Instant::now();
        // The rate is measured from the end of the first step, which includes the start-up.
        let (start, first) = *self.begin.get_or_insert_with(|| {
            self.last = (now, step);
            (now, step)
        });
        let Some(scores) = scores else { return };
        let rate = |since: Instant, from: usize| {
            (step - from) as f64 / now.duration_since(since).as_secs_f64().max(1e-9)
        };
        let tail = (step > self.last.1).then(|| {
            let left = (self.steps - step) as f64 / rate(start, first);
            let left = duration(Duration::from_secs_f64(left.clamp(0.0, 1e9)));
            format!("{:.2} steps/s, {left} left", rate(self.last.0, self.last.1))
        });
        self.last = (now, step);
        self.line("train", step, scores, tail);
    }

    /// After an evaluation.
    pub(super) fn valid(&mut self, step: usize, scores: &Scores) {
        self.line("valid", step, scores, None);
        // The next line's rate must not include the evaluation.
        self.last = (Instant::now(), step);
    }

    /// Between the evaluations of two versions of the task.
    pub(super) fn stage(&self, step: usize, next: &str) {
        self.put("stage", step, &format!("learned; next is {next}"));
    }

    fn line(&self, split: &str, step: usize, scores: &Scores, tail: Option<String>) {
        let parts: Vec<String> = means(scores).into_iter().chain(tail).collect();
        self.put(split, step, &parts.join("  "));
    }

    fn put(&self, what: &str, step: usize, text: &str) {
        let width = self.steps.to_string().len();
        let mut out = std::io::stdout().lock();
        // A closed pipe must not stop the training.
        writeln!(out, "{what} {step:width$}/{}  {text}", self.steps).ok();
        out.flush().ok();
    }
}

/// What is shown of scores: shares in percent, losses in nats a token.
fn means(scores: &Scores) -> Vec<String> {
    let mean = |measure| scores.mean(measure);
    let share = |measure: Measure| {
        mean(measure).map(|v| format!("{} {:5.1} %", measure.name().to_lowercase(), 100.0 * v))
    };
    let write = mean(Measure::WriteLossBefore).map(|before| match mean(Measure::WriteLossAfter) {
        Some(after) => format!("WRITE {before:.3} → {after:.3}"),
        None => format!("WRITE {before:.3}"),
    });
    let parts = [
        share(Measure::ExactMatch),
        share(Measure::TokenAccuracy),
        mean(Measure::ReadLoss).map(|v| format!("READ {v:.3}")),
        write,
        mean(Measure::InnerGradNorm).map(|v| format!("inner gradient {v:.3}")),
    ];
    parts.into_iter().flatten().collect()
}

/// Formats a time: `75 s`, `4 min 12 s`, `3 h 05 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..100 => format!("{seconds} s"),
        100..6000 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_shown_in_percent_and_losses_as_they_are() {
        let mut scores = Scores::default();
        scores.add(Measure::ExactMatch, 3.0, 4);
        scores.add(Measure::TokenAccuracy, 1.0, 1);
        scores.add(Measure::ReadLoss, 0.5, 2);
        scores.add(Measure::WriteLossBefore, 4.0, 1);
        let shown = means(&scores);
        let expected = [
            "exact match  75.0 %",
            "token accuracy 100.0 %",
            "READ 0.250",
            "WRITE 4.000",
        ];
        assert_eq!(shown, expected);
        scores.add(Measure::WriteLossAfter, 1.0, 1);
        assert_eq!(means(&scores)[3], "WRITE 4.000 → 1.000");
    }
}
