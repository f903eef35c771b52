//! The learning rate of each step: a linear warm-up, then constant or falling.

use std::f64::consts::PI;

use burn::optim::LearningRate;
use burn::optim::lr_scheduler::LrScheduler;
use burn::tensor::backend::Backend;

use super::config::{LrDecay, TrainConfig};

/// The learning rates of a training, one after another.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    lr: f64,
    warmup_steps: usize,
    steps: usize,
    decay: LrDecay,
    end: f64,
    taken: usize,
}

impl Schedule {
    /// Behind so many steps that were taken before.
    pub(super) fn new(config: &TrainConfig, taken: usize) -> Self {
        Self {
            lr: config.lr,
            warmup_steps: config.warmup_steps.max(1),
            steps: config.steps,
            decay: config.lr_decay,
            end: config.lr_end,
            taken,
        }
    }

    /// The rate of a step, from 1.
    fn at(&self, step: usize) -> f64 {
        let missing = self.warmup_steps.saturating_sub(step);
        if missing > 0 || self.decay == LrDecay::Constant {
            let first = self.lr / self.warmup_steps as f64;
            let rise = (self.lr - first) / (self.warmup_steps - 1).max(1) as f64;
            return self.lr - rise * missing as f64;
        }
        // The rate would be at its end one step after the last: with an end of 0 that step would be in vain.
        let length = self.steps.saturating_sub(self.warmup_steps) + 1;
        let progress = ((step - self.warmup_steps) as f64 / length as f64).min(1.0);
        let left = match self.decay {
            LrDecay::Cosine => 0.5 + 0.5 * (PI * progress).cos(),
            LrDecay::Linear | LrDecay::Constant => 1.0 - progress,
        };
        self.lr * (self.end + (1.0 - self.end) * left)
    }
}

impl LrScheduler for Schedule {
    type Record<B: Backend> = usize;

    fn step(&mut self) -> LearningRate {
        self.taken += 1;
        self.at(self.taken)
    }

    fn to_record<B: Backend>(&self) -> usize {
        self.taken
    }

    fn load_record<B: Backend>(mut self, taken: usize) -> Self {
        self.taken = taken;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(decay: LrDecay, end: f64, taken: usize) -> Vec<f64> {
        let config = TrainConfig {
            lr: 0.8,
            warmup_steps: 4,
            steps: 8,
            lr_decay: decay,
            lr_end: end,
            ..TrainConfig::default()
        };
        let mut schedule = Schedule::new(&config, taken);
        (taken..9).map(|_| schedule.step()).collect()
    }

    #[test]
    fn rates_rise_in_the_warm_up_and_fall_to_the_end() {
        let close = |found: Vec<f64>, expected: [f64; 9]| {
            let pairs = found.iter().zip(&expected);
            assert!(
                pairs.clone().all(|(a, b)| (a - b).abs() < 1e-12),
                "{found:?}"
            );
        };
        close(
            rates(LrDecay::Constant, 0.0, 0),
            [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8],
        );
        close(
            rates(LrDecay::Linear, 0.0, 0),
            [0.2, 0.4, 0.6, 0.8, 0.64, 0.48, 0.32, 0.16, 0.0],
        );
        close(
            rates(LrDecay::Linear, 0.5, 0),
            [0.2, 0.4, 0.6, 0.8, 0.72, 0.64, 0.56, 0.48, 0.4],
        );
        let cosine = |part: f64| 0.4 + 0.4 * (PI * part).cos();
        close(
            rates(LrDecay::Cosine, 0.0, 0),
            [
                0.2,
                0.4,
                0.6,
                0.8,
                cosine(0.2),
                cosine(0.4),
                cosine(0.6),
                cosine(0.8),
                0.0,
            ],
        );
        // A resumed run goes on where it was.
        assert_eq!(
            rates(LrDecay::Cosine, 0.1, 0)[5..],
            rates(LrDecay::Cosine, 0.1, 5)[..]
        );
    }
}
