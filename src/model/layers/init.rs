use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Normal, Uniform};

/// A seeded source of initial weights.
///
/// Numbers are drawn on the host, in the order in which the layers are made, so that one seed gives the
/// same weights on every backend and in every thread.
#[derive(Debug)]
pub struct Init {
    /// `None` if the weights are to be loaded: nothing is drawn or allocated.
    rng: Option<ChaCha8Rng>,
}

impl Init {
    /// A source of random weights; the same `seed` gives the same weights.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Some(ChaCha8Rng::seed_from_u64(seed)),
        }
    }

    /// Weights that are not allocated until they are loaded or used; zeros if they are never loaded.
    pub fn blank() -> Self {
        Self { rng: None }
    }

    /// Draws from N(0, `std`²); a `std` that is not a positive number gives zeros.
    pub fn normal<B: Backend, const D: usize>(
        &mut self,
        shape: [usize; D],
        std: f64,
        device: &B::Device,
    ) -> Param<Tensor<B, D>> {
        match Normal::new(0.0, std) {
            Ok(normal) if std > 0.0 => self.draw(shape, normal, device),
            _ => self.constant(shape, 0.0, device),
        }
    }

    /// Draws uniformly from −`bound` to `bound`; a `bound` that is not a positive number gives zeros.
    pub fn uniform<B: Backend, const D: usize>(
        &mut self,
        shape: [usize; D],
        bound: f64,
        device: &B::Device,
    ) -> Param<Tensor<B, D>> {
        match Uniform::new(-bound, bound) {
            Ok(uniform) => self.draw(shape, uniform, device),
            Err(_) => self.constant(shape, 0.0, device),
        }
    }

    /// Draws each element from `distribution`.
    pub fn draw<B: Backend, const D: usize>(
        &mut self,
        shape: [usize; D],
        distribution: impl Distribution<f64>,
        device: &B::Device,
    ) -> Param<Tensor<B, D>> {
        let Some(rng) = &mut self.rng else {
            return lazily(shape, device);
        };
        let count = Shape::from(shape).num_elements();
        let values: Vec<f64> = (0..count).map(|_| distribution.sample(rng)).collect();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// So many indices, drawn uniformly from `0 … size − 1`; none if weights are to be loaded.
    pub fn indices(&mut self, count: usize, size: usize) -> Vec<i64> {
        match (&mut self.rng, Uniform::new(0, size as i64)) {
            (Some(rng), Ok(uniform)) => (0..count).map(|_| uniform.sample(rng)).collect(),
            _ => Vec::new(),
        }
    }

    /// Sets each element to `value`.
    pub fn constant<B: Backend, const D: usize>(
        &self,
        shape: [usize; D],
        value: f64,
        device: &B::Device,
    ) -> Param<Tensor<B, D>> {
        self.given(shape, device, || Tensor::full(shape, value, device))
    }

    /// What `make` gives, which is called only if weights are not to be loaded.
    pub(crate) fn given<B: Backend, const D: usize>(
        &self,
        shape: [usize; D],
        device: &B::Device,
        make: impl FnOnce() -> Tensor<B, D>,
    ) -> Param<Tensor<B, D>> {
        match self.is_blank() {
            true => lazily(shape, device),
            false => Param::from_tensor(make()),
        }
    }

    /// Draws the weights that a model is yet to draw, as those of `burn::nn` are until they are first used: a clone of such a
    /// model would draw its own. Does nothing if weights are to be loaded.
    pub(crate) fn draw_pending<B: Backend>(&self, model: &impl Module<B>) {
        if !self.is_blank() {
            model.visit(&mut DrawAll);
        }
    }

    /// Whether weights are to be loaded.
    pub fn is_blank(&self) -> bool {
        self.rng.is_none()
    }
}

/// Uses every weight.
struct DrawAll;

impl<B: Backend> ModuleVisitor<B> for DrawAll {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        drop(param.val());
    }
}

fn lazily<B: Backend, const D: usize>(
    shape: [usize; D],
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, require_grad| Tensor::zeros(shape, device).set_require_grad(require_grad),
        device.clone(),
        true,
        shape.into(),
    )
}

/// A bias whose softplus is a step size that is uniform in logarithm between two bounds.
pub(crate) struct StepBias {
    /// Logarithms of the bounds.
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Distribution<f64> for StepBias {
    fn sample<R: rand::Rng + ?Sized>(&self, rng: &mut R) -> f64 {
        let unit = Uniform::new(0.0, 1.0).map_or(0.5, |unit| unit.sample(rng));
        let step = (self.low + unit * (self.high - self.low)).exp();
        // The inverse of softplus.
        step + (-(-step).exp_m1()).ln()
    }
}

/// ln 1, ln 2, … ln N in each row.
pub(crate) fn ramp<B: Backend>([rows, n]: [usize; 2], device: &B::Device) -> Tensor<B, 2> {
    let values = (0..rows * n).map(|at| ((at % n + 1) as f64).ln());
    let data = TensorData::new(values.collect::<Vec<f64>>(), [rows, n]);
    Tensor::from_data(data, device)
}
