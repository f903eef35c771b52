//! burn-train's dashboard, on terminals where it works, and without what it would do to a program whose terminal is
//! gone.

use std::error::Error;
use std::io::IsTerminal;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use burn::train::metric::MetricDefinition;
use burn::train::renderer::tui::TuiMetricsRendererWrapper;
use burn::train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};
use burn::train::{Interrupter, LearnerSummary};
use thread_priority::{ThreadPriority, set_current_thread_priority};

/// The dashboard, as long as there is a terminal.
pub(super) struct Dashboard {
    /// None once the terminal is gone.
    shown: Option<TuiMetricsRendererWrapper>,
    /// The training's.
    interrupter: Interrupter,
    /// The dashboard's own, which it sets back when a training ends, whatever else has stopped it.
    pressed: Interrupter,
}

impl Dashboard {
    /// None if standard output is no terminal or one that cannot place text, or no terminal can be read from.
    pub(super) fn open(interrupter: &Interrupter) -> Option<Self> {
        let is_dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
        if !std::io::stdout().is_terminal() || is_dumb {
            return None;
        }
        #[cfg(unix)]
        terminal::read_without_waiting()?;
        hold_panics();
        PANICKED.store(false, Ordering::Release);
        let pressed = Interrupter::new();
        let to_dashboard = pressed.clone();
        // The dashboard's thread never sleeps between frames. It inherits its priority from the thread that
        // starts it; at the lowest priority it does not slow the training down.
        let start = std::thread::spawn(move || {
            set_current_thread_priority(ThreadPriority::Min).ok();
            TuiMetricsRendererWrapper::new(to_dashboard, None)
        });
        let shown = start.join().ok()?;
        #[cfg(unix)]
        terminal::let_ctrl_c_interrupt();
        Some(Self {
            shown: Some(shown),
            interrupter: interrupter.clone(),
            pressed,
        })
    }

    /// The dashboard, if it and its terminal are still there. If not, the training is stopped, to save. The dashboard's
    /// thread is left behind: it reads from the lost terminal for ever, and nothing may wait for it. What was pressed there
    /// stops the training too.
    fn shown(&mut self) -> Option<&mut TuiMetricsRendererWrapper> {
        if self.pressed.should_stop() && !self.interrupter.should_stop() {
            self.interrupter.stop(self.pressed.get_message().as_deref());
        }
        if is_lost()
            && let Some(lost) = self.shown.take()
        {
            std::mem::forget(lost);
            self.interrupter
                .stop(Some("The dashboard's terminal is gone."));
        }
        self.shown.as_mut()
    }
}

impl Drop for Dashboard {
    /// Closes the dashboard, whose thread may be lost until the last moment.
    fn drop(&mut self) {
        self.shown();
        let Some(shown) = self.shown.take() else {
            return;
        };
        // burn-train's wrapper does not wait for its thread while a panic unwinds.
        if std::thread::panicking() {
            return drop(shown);
        }
        let closing = std::thread::spawn(move || drop(shown));
        while !closing.is_finished() && !is_lost() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What burn-train panics with when the key k is pressed.
const KILLED: &str = "Killing training from user input";

/// Whether the dashboard's thread has panicked.
static PANICKED: AtomicBool = AtomicBool::new(false);

fn is_lost() -> bool {
    #[cfg(unix)]
    if !terminal::is_there() {
        return true;
    }
    PANICKED.load(Ordering::Acquire)
}

/// Makes a panic of the dashboard's thread end there, without unwinding. burn-train panics where it cannot restore a lost
/// terminal; what it then drops prints to that terminal and panics again, which would abort the program and lose the work.
fn hold_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // As burn-train names it. Other hooks may end the process, as the program's does where the key k is pressed.
            let is_dashboard = std::thread::current().name() == Some("train-renderer");
            if is_dashboard && !info.to_string().contains(KILLED) {
                log::error!("the dashboard ended: {info}");
                PANICKED.store(true, Ordering::Release);
                loop {
                    std::thread::park();
                }
            }
            hook(info);
        }));
    });
}

impl MetricsRendererTraining for Dashboard {
    fn update_train(&mut self, state: MetricState) {
        if let Some(shown) = self.shown() {
            shown.update_train(state);
        }
    }

    fn update_valid(&mut self, state: MetricState) {
        if let Some(shown) = self.shown() {
            shown.update_valid(state);
        }
    }

    fn render_train(&mut self, item: TrainingProgress, indicators: Vec<ProgressType>) {
        if let Some(shown) = self.shown() {
            shown.render_train(item, indicators);
        }
    }

    fn render_valid(&mut self, item: TrainingProgress, indicators: Vec<ProgressType>) {
        if let Some(shown) = self.shown() {
            shown.render_valid(item, indicators);
        }
    }

    fn on_train_end(&mut self, summary: Option<LearnerSummary>) -> Result<(), Box<dyn Error>> {
        self.shown()
            .map_or(Ok(()), |shown| shown.on_train_end(summary))
    }
}

impl MetricsRendererEvaluation for Dashboard {
    fn update_test(&mut self, name: EvaluationName, state: MetricState) {
        if let Some(shown) = self.shown() {
            shown.update_test(name, state);
        }
    }

    fn render_test(&mut self, item: EvaluationProgress, indicators: Vec<ProgressType>) {
        if let Some(shown) = self.shown() {
            shown.render_test(item, indicators);
        }
    }
}

impl MetricsRenderer for Dashboard {
    fn manual_close(&mut self) {
        if let Some(shown) = self.shown() {
            shown.manual_close();
        }
    }

    fn register_metric(&mut self, definition: MetricDefinition) {
        if let Some(shown) = self.shown() {
            shown.register_metric(definition);
        }
    }
}

#[cfg(unix)]
mod terminal {
    use std::time::Duration;

    use rustix::fs::{Mode, OFlags, open};
    use rustix::stdio::dup2_stdin;
    use rustix::termios::{LocalModes, OptionalActions, isatty, tcgetattr, tcsetattr, ttyname};

    /// Makes standard input a terminal that is read without waiting: that of standard input, or the controlling one. The
    /// dashboard reads on after a key's first byte; a byte that no other follows would stop it, and with it the program's
    /// end. The terminal is opened anew, because the shell and standard output share the state of the old one.
    pub fn read_without_waiting() -> Option<()> {
        let stdin = std::io::stdin();
        let name = ttyname(&stdin, Vec::new()).unwrap_or(c"/dev/tty".into());
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = open(name, flags, Mode::empty()).ok()?;
        if !isatty(&terminal) {
            return None;
        }
        dup2_stdin(terminal).ok()
    }

    /// Makes Ctrl-C interrupt the program under the dashboard. The dashboard sets the terminal to raw mode, where
    /// Ctrl-C is a key, and burn-train does not handle that key.
    pub fn let_ctrl_c_interrupt() {
        let terminal = std::io::stdin();
        // The dashboard's thread sets raw mode; on a busy machine, with the lowest priority, not at once.
        while !super::is_lost() {
            let Ok(mut modes) = tcgetattr(&terminal) else {
                return;
            };
            if !modes.local_modes.contains(LocalModes::ICANON) {
                modes.local_modes.insert(LocalModes::ISIG);
                tcsetattr(&terminal, OptionalActions::Now, &modes).ok();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether the terminal of standard input has not been closed.
    pub fn is_there() -> bool {
        tcgetattr(std::io::stdin()).is_ok()
    }
}
