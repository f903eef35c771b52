//! One step of WRITE: the loss, its gradient to the memory, and what the memory becomes.

use burn::module::{AutodiffModule, Module};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use gradmem_kernels::Tape;

use super::noise::sample_squares;
use super::segments::{Reading, Segment};
use super::{GradMem, GraphLock, LiftedObjective, WriteObjective};
use crate::model::rows::repeat;
use crate::model::{CausalLm, Writable};
use crate::support::profile::{Phase, timed};
use crate::support::{is_narrow, wide};

/// What a step begins with.
#[derive(Clone)]
pub(super) struct State<B: Backend> {
    /// What WRITE changes, one tensor for each matrix.
    pub fast: Vec<Tensor<B, 3>>,
    /// With momentum, what the steps before it in its chunk left, if there are any.
    pub velocity: Vec<Tensor<B, 3>>,
}

impl<B: Backend> State<B> {
    /// Where a chunk's steps begin.
    pub fn at_rest(fast: Vec<Tensor<B, 3>>) -> Self {
        Self {
            fast,
            velocity: Vec::new(),
        }
    }

    /// Both in a row.
    pub fn tensors(&self) -> Vec<Tensor<B, 3>> {
        [&self.fast[..], &self.velocity].concat()
    }

    /// The same with each tensor mapped by `f`, which maps all of them.
    pub fn map(&self, f: impl Fn(&[Tensor<B, 3>]) -> Vec<Tensor<B, 3>>) -> Self {
        Self {
            fast: f(&self.fast),
            velocity: f(&self.velocity),
        }
    }
}

/// A step of WRITE, as it was taken.
pub(super) struct Step<'a, B: Backend> {
    /// Its number among all steps of all pieces.
    pub n: usize,
    /// The memory it began with.
    pub before: &'a [Tensor<B, 3>],
    /// The memory it led to.
    pub after: &'a [Tensor<B, 3>],
    /// With momentum, what it leaves to the steps behind it in its chunk.
    pub velocity: &'a [Tensor<B, 3>],
    /// The WRITE loss before it: `[batch]`.
    pub loss: &'a Tensor<B, 1>,
}

/// What of a step the outer gradient passes through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Nothing: the step has no outer graph.
    None,
    /// The memory it began with; the inner gradient is a constant.
    First,
    /// Everything.
    Second,
}

/// The steps of one piece: the models that they are taken on, made when they are first needed, and how far they are.
pub(super) struct StepModels<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> {
    /// With weights on the outer tape.
    tracked: Option<StepModel<B, M, O>>,
    /// With weights that are constants.
    constant: Option<StepModel<B, M, O>>,
    /// Steps taken.
    pub(super) taken: usize,
    /// What they left, with momentum.
    pub(super) velocity: Vec<Tensor<B, 3>>,
}

impl<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> Default for StepModels<B, M, O> {
    fn default() -> Self {
        Self::behind(0, Vec::new())
    }
}

/// A step's loss before it `[batch]`, the norm of the inner gradient to each matrix `[batch, matrices]`, and what the
/// memory becomes.
pub(super) type Stepped<B> = (Tensor<B, 1>, Tensor<B, 2>, Vec<Tensor<B, 3>>);

impl<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> StepModels<B, M, O> {
    /// Behind so many steps, which left this velocity.
    pub(super) fn behind(taken: usize, velocity: Vec<Tensor<B, 3>>) -> Self {
        Self {
            tracked: None,
            constant: None,
            taken,
            velocity,
        }
    }

    /// One step from `fast`.
    pub(super) fn step(
        &mut self,
        gradmem: &GradMem<B, M, O>,
        reading: Reading<'_, B>,
        fast: Vec<Tensor<B, 3>>,
        order: Order,
    ) -> Stepped<B> {
        let Reading {
            segment,
            scale,
            beside,
        } = reading;
        let at: Vec<_> = match beside {
            Some(beside) => fast
                .iter()
                .zip(beside)
                .map(|(x, by)| x.clone() + by)
                .collect(),
            None => fast.clone(),
        };
        let (loss, gradients) = match order {
            Order::First | Order::Second => self
                .tracked
                .get_or_insert_with(|| StepModel::new(gradmem, segment))
                .gradients(at, segment),
            Order::None => self
                .constant
                .get_or_insert_with(|| StepModel::new(&gradmem.clone().no_grad(), segment))
                .gradients(detached(&at), segment),
        };
        let gradients = match order {
            Order::Second => gradients,
            Order::First | Order::None => detached(&gradients),
        };
        let gradients: Vec<_> = match scale {
            Some(scale) => gradients.into_iter().map(|g| g.mul_scalar(scale)).collect(),
            None => gradients,
        };
        let norms = gradients.iter().map(|gradient| {
            let norm = sample_squares(wide(gradient.clone().detach())).sqrt();
            norm.flatten::<2>(1, 2)
        });
        let norms = Tensor::cat(norms.collect(), 1);
        let clipped = gradients.into_iter().map(|g| gradmem.clip(g)).collect();
        let k = self.taken;
        self.taken += 1;
        let inner = gradmem.inner.as_ref();
        let updates = match inner {
            Some(inner) => {
                let velocity = inner.velocity(&self.velocity, clipped);
                if inner.momentum.is_some() {
                    self.velocity = velocity.clone();
                }
                velocity
            }
            None => clipped,
        };
        let lr = gradmem.config.write_lr;
        let idle = gradmem
            .gate
            .as_ref()
            .and(segment.idle(gradmem.first_predicted()));
        let fast = fast.into_iter().zip(updates).enumerate();
        let fast = fast.map(|(matrix, (x, update))| {
            let step = update.clone().mul_scalar(lr);
            let step = match inner {
                Some(inner) => inner.scaled(k, matrix, step),
                None => step,
            };
            let Some(gate) = &gradmem.gate else {
                return x - step;
            };
            let next = gate.apply(x.clone(), update, step, M::product);
            match &idle {
                // A sample that has nothing here takes no step.
                Some(idle) => {
                    let shape = x.shape();
                    next.mask_where(idle.clone().expand(shape), x)
                }
                None => next,
            }
        });
        let fast = fast.collect();
        (loss, norms, fast)
    }
}

/// The model on one more tape, the inner one, where only the memory requires a gradient: the weights are
/// constants there, and stay what they are on the outer tape.
pub(super) struct StepModel<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> {
    gradmem: GradMem<Tape<B>, M::Lifted, O::Lifted>,
    /// `[batch, seq, d_model]`
    embeds: Tensor<Tape<B>, 3>,
}

impl<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> StepModel<B, M, O> {
    pub(super) fn new(gradmem: &GradMem<B, M, O>, segment: &Segment<B>) -> Self {
        let embeds = gradmem.model.embed(segment.tokens.ids());
        Self {
            gradmem: GradMem::from_inner(gradmem.with_adapters().joined()).no_grad(),
            embeds: Tensor::from_inner(embeds),
        }
    }

    /// Each sample's WRITE loss `[batch]` at `fast`, and the gradients to it, all tensors of `B`: if `B`
    /// records, they are differentiable in turn.
    pub(super) fn gradients(
        &self,
        fast: Vec<Tensor<B, 3>>,
        segment: &Segment<B>,
    ) -> (Tensor<B, 1>, Vec<Tensor<B, 3>>) {
        let _lock = GraphLock::inner();
        let fast = on_tape(fast);
        let device = self.embeds.device();
        let loss = timed::<B, _>(Phase::WriteForward, &device, || {
            self.gradmem
                .losses(&fast, self.embeds.clone(), &segment.lift())
        });
        // No sample sees another, so the gradient of their sum is each sample's own.
        let gradients = timed::<B, _>(Phase::WriteBackward, &device, || {
            loss.clone().sum().backward()
        });
        (loss.inner(), gradients_to(&fast, &gradients))
    }
}

impl<B: Backend, M: CausalLm<B>, O: WriteObjective<B, M>> GradMem<B, M, O> {
    /// `L_write`: each sample's mean of its tokens' losses over those of a segment that are predicted, `[batch]`; zero where
    /// there are none.
    fn losses(
        &self,
        fast: &[Tensor<B, 3>],
        embeds: Tensor<B, 3>,
        segment: &Segment<B>,
    ) -> Tensor<B, 1> {
        let fast: Vec<_> = fast
            .iter()
            .map(|x| repeat(x.clone(), segment.times))
            .collect();
        match self.hidden_before(&fast, embeds) {
            Some(hidden) => {
                let next = segment.tokens.targets(self.first_predicted());
                segment.mean(self.objective.losses(&self.model, hidden, next))
            }
            None => {
                let batch = segment.tokens.len() / segment.times;
                fast[0]
                    .clone()
                    .zeros_like()
                    .slice([0..batch, 0..1, 0..1])
                    .flatten(0, 2)
            }
        }
    }

    /// The hidden states before each token of `embeds` that is predicted: `[batch, seq, d_model]` →
    /// `[batch, seq − first_predicted, d_model]`; none if that is no token.
    pub(super) fn hidden_before(
        &self,
        fast: &[Tensor<B, 3>],
        embeds: Tensor<B, 3>,
    ) -> Option<Tensor<B, 3>> {
        let seq = embeds.dims()[1];
        // Nothing that is written follows the last token, so it need not be read.
        let read = (seq > 1).then(|| embeds.narrow(1, 0, seq - 1));
        self.in_write().hidden(&self.model, fast, read, usize::MAX)
    }

    /// Clips the inner gradient to one of the matrices: elements to ± `inner_clip_value`, then each sample
    /// to the norm `inner_clip_norm`.
    fn clip(&self, gradient: Tensor<B, 3>) -> Tensor<B, 3> {
        let gradient = match self.config.inner_clip_value {
            // By masks, which leave NaN: CUDA's minimum of NaN and a number is the number.
            Some(clip) => {
                let above = gradient.clone().greater_elem(clip);
                let below = gradient.clone().lower_elem(-clip);
                gradient.mask_fill(above, clip).mask_fill(below, -clip)
            }
            None => gradient,
        };
        let Some(clip) = self.config.inner_clip_norm else {
            return gradient;
        };
        let dtype = gradient.dtype();
        // In f16 the squares of a norm above 255 would be infinite, and the step zero.
        let squares = sample_squares(wide(gradient.clone()));
        let within = squares.clone().lower_equal_elem(clip * clip);
        // Where nothing is clipped the root is taken of one, not of a zero whose slope is infinite.
        let norm = squares.mask_fill(within.clone(), 1.0).sqrt();
        let scale = norm.add_scalar(1e-6).recip().mul_scalar(clip);
        let scale = scale.mask_fill(within, 1.0);
        gradient
            * if is_narrow(dtype) {
                scale.cast(dtype)
            } else {
                scale
            }
    }
}

/// The same on one more tape, where they require gradients.
pub(super) fn on_tape<B: Backend>(tensors: Vec<Tensor<B, 3>>) -> Vec<Tensor<Tape<B>, 3>> {
    let lifted = tensors.into_iter().map(Tensor::from_inner);
    lifted.map(Tensor::require_grad).collect()
}

/// The gradient to each of these tensors; zeros where nothing depends on it.
pub(super) fn gradients_to<B: AutodiffBackend>(
    tensors: &[Tensor<B, 3>],
    gradients: &B::Gradients,
) -> Vec<Tensor<B::InnerBackend, 3>> {
    let found = tensors.iter().map(|x| {
        x.grad(gradients)
            .unwrap_or_else(|| x.clone().inner().zeros_like())
    });
    found.collect()
}

pub(super) fn detached<B: Backend>(tensors: &[Tensor<B, 3>]) -> Vec<Tensor<B, 3>> {
    tensors.iter().map(|x| x.clone().detach()).collect()
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::DType;
    use burn_flex::Flex;

    use super::*;
    use crate::memory::GradMemConfig;
    use crate::model::LlamaConfig;

    fn clipped(config: GradMemConfig, gradient: [f32; 3], dtype: DType) -> Vec<f32> {
        let device = Default::default();
        let model = LlamaConfig::new(10, 8, 1, 1)
            .init::<Flex>(1, &device)
            .unwrap();
        let gradmem: GradMem<Flex, _> = config.init(model, 1, &device).unwrap();
        let gradient = Tensor::<Flex, 3>::from_floats([[gradient]], &device);
        let clipped = gradmem.clip(gradient.cast(dtype));
        assert_eq!(clipped.dtype(), dtype);
        clipped.into_data().iter::<f32>().collect()
    }

    #[test]
    fn clipping_keeps_what_is_no_number() {
        let config = GradMemConfig::new().with_inner_clip_value(Some(0.5));
        let clipped = clipped(config, [f32::NAN, -7.0, 0.25], DType::F32);
        assert!(clipped[0].is_nan(), "{clipped:?}");
        assert_eq!(clipped[1..], [-0.5, 0.25]);
    }

    #[test]
    fn a_norm_whose_square_f16_cannot_hold_is_clipped() {
        let config = GradMemConfig::new().with_inner_clip_norm(Some(1.0));
        for dtype in [DType::F16, DType::F32] {
            let clipped = clipped(config.clone(), [300.0, 0.0, -400.0], dtype);
            for (clipped, right) in clipped.into_iter().zip([0.6, 0.0, -0.8]) {
                assert!((clipped - right).abs() < 1e-3, "{clipped} is not {right}");
            }
        }
    }
}
