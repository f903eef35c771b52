//! Progress output of a training: burn-train's dashboard on a terminal, lines elsewhere.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, Instant};

use burn::train::metric::{MetricDefinition, MetricId, NumericEntry};
use burn::train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};
use burn::train::{Interrupter, LearnerSummary};

use super::metrics::Measure;

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
pub(super) fn dashboard(_plain: bool, _interrupter: &Interrupter) -> Option<LineRenderer> {
    None
}

/// Shows nothing: of several processes, the first one shows.
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
pub(super) struct LineRenderer {
    log_every: usize,
    steps: usize,
    names: HashMap<MetricId, String>,
    train: Means,
    valid: Means,
    /// Time and step of the last line.
    last: (Instant, usize),
    /// Time and step of the first step of this process.
    begin: Option<(Instant, usize)>,
}

/// Weighted sums of the metrics since the last line, by name.
type Means = HashMap<String, (f64, f64)>;

impl LineRenderer {
    /// A line every `log_every` of `steps` optimizer steps.
    pub(super) fn new(log_every: usize, steps: usize) -> Self {
        Self {
            log_every,
            steps,
            names: HashMap::new(),
            train: Means::new(),
            valid: Means::new(),
            last: (Instant::now(), 0),
            begin: None,
        }
    }

    fn add(names: &HashMap<MetricId, String>, means: &mut Means, state: MetricState) {
        let MetricState::Numeric(entry, value) = state else {
            return;
        };
        let (value, count) = match value {
            NumericEntry::Value(value) => (value, 1),
            NumericEntry::Aggregated {
                aggregated_value,
                count,
            } => (aggregated_value, count),
        };
        if let Some(name) = names.get(&entry.metric_id)
            && !value.is_nan()
        {
            let mean = means.entry(name.clone()).or_default();
            mean.0 += value * count as f64;
            mean.1 += count as f64;
        }
    }

    fn line(split: &str, step: usize, steps: usize, means: &mut Means, tail: &str) {
        let width = steps.to_string().len();
        let mean = |name: &str| means.get(name).map(|(sum, count)| sum / count);
        let share = |measure: Measure| {
            mean(measure.name()).map(|v| format!("{} {v:5.1} %", measure.name().to_lowercase()))
        };
        let write = match (
            mean(Measure::WriteLossBefore.name()),
            mean(Measure::WriteLossAfter.name()),
        ) {
            (Some(before), Some(after)) => Some(format!("WRITE {before:.3} → {after:.3}")),
            (Some(before), None) => Some(format!("WRITE {before:.3}")),
            _ => None,
        };
        let parts = [
            share(Measure::ExactMatch),
            share(Measure::TokenAccuracy),
            mean(Measure::ReadLoss.name()).map(|v| format!("READ {v:.3}")),
            write,
            mean(Measure::InnerGradNorm.name()).map(|v| format!("inner gradient {v:.3}")),
            (!tail.is_empty()).then(|| tail.to_string()),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        let mut out = std::io::stdout().lock();
        // A closed pipe must not stop the training.
        writeln!(out, "{split} {step:width$}/{steps}  {}", parts.join("  ")).ok();
        out.flush().ok();
        means.clear();
    }
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

impl MetricsRendererTraining for LineRenderer {
    fn update_train(&mut self, state: MetricState) {
        Self::add(&self.names, &mut self.train, state);
    }

    fn update_valid(&mut self, state: MetricState) {
        Self::add(&self.names, &mut self.valid, state);
    }

    fn render_train(&mut self, item: TrainingProgress, _: Vec<ProgressType>) {
        let Some(step) = item.iteration else { return };
        let now = Instant::now();
        // The rate is measured from the end of the first step, which includes the start-up.
        let (start, first) = *self.begin.get_or_insert_with(|| {
            self.last = (now, step);
            (now, step)
        });
        if !step.is_multiple_of(self.log_every) && step != self.steps {
            return;
        }
        let rate = |since: Instant, from: usize| {
            (step - from) as f64 / now.duration_since(since).as_secs_f64().max(1e-9)
        };
        let tail = match step > self.last.1 {
            false => String::new(),
            true => {
                let left = (self.steps - step) as f64 / rate(start, first);
                let left = duration(Duration::from_secs_f64(left.clamp(0.0, 1e9)));
                format!("{:.2} steps/s, {left} left", rate(self.last.0, self.last.1))
            }
        };
        self.last = (now, step);
        Self::line("train", step, self.steps, &mut self.train, &tail);
    }

    fn render_valid(&mut self, item: TrainingProgress, _: Vec<ProgressType>) {
        let done = item
            .progress
            .is_some_and(|p| p.items_processed >= p.items_total);
        if let (true, Some(step)) = (done, item.iteration) {
            Self::line("valid", step, self.steps, &mut self.valid, "");
            // The next line's rate must not include the evaluation.
            self.last = (Instant::now(), step);
        }
    }

    fn on_train_end(
        &mut self,
        _: Option<LearnerSummary>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        Ok(())
    }
}

impl MetricsRendererEvaluation for LineRenderer {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}

    fn render_test(&mut self, _: EvaluationProgress, _: Vec<ProgressType>) {}
}

impl MetricsRenderer for LineRenderer {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names.insert(definition.metric_id, definition.name);
    }
}
