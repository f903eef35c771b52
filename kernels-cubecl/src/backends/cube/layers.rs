//! The layers around attention on GPUs: each operation and each derivative is one launch. A sum over all rows is one more.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Device, Shape};
use burn_cubecl::element::BoolElement;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement};

use super::multiply::{self, own_product, product_and};
use super::operands::{
    by_rows, empty, empty_like, is_for_kernels, launch, onto_or, spread, sum_of_rows, sums,
    tables_or,
};
use super::pointwise::{self, MovingLaunch, SharedLaunch};
use super::{activation, losses, matrix_units, norm};
use crate::ops::layers::{behind_zeros, join_by_heads, last_rows, split_by_heads};
use crate::reference::adamw::adamw;
use crate::reference::primitives;
use crate::{AdamWStep, HeadBackend, LayerBackend, Nonlinearity, Norm, Precision};

impl<R, F, I, BT> HeadBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    Self: Backend<
            FloatTensorPrimitive = CubeTensor<R>,
            IntTensorPrimitive = CubeTensor<R>,
            Device = R::Device,
        >,
{
}

impl<R, F, I, BT> LayerBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    Self: Backend<
            FloatTensorPrimitive = CubeTensor<R>,
            IntTensorPrimitive = CubeTensor<R>,
            Device = R::Device,
        >,
{
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        multiply::plain_product::<Self, R>(lhs, rhs)
    }

    fn add_product(
        to: FloatTensor<Self>,
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        product_and::<Self, R>(Some(to), lhs, rhs)
    }

    fn computes_in(device: &Device<Self>, precision: Precision) -> bool {
        let client = R::client(device);
        match precision {
            Precision::F32 => true,
            Precision::Tf32 => matrix_units::multiplies_tf32(client.properties()),
            Precision::Bf16 => {
                matrix_units::computes_bf16(R::name(&client), client.properties())
                    && Self::supports_dtype(device, DType::BF16)
            }
        }
    }

    fn has_own_product(device: &Device<Self>, dtype: DType) -> bool {
        own_product(&R::client(device), dtype).is_some()
    }

    fn token_losses(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        if !is_for_kernels([&logits]) {
            return primitives::token_losses::<Self>(logits, targets);
        }
        let (logits, targets) = (into_contiguous(logits), into_contiguous(targets));
        let at = by_rows(&logits, false);
        let losses = empty(&logits, Shape::new([logits.meta.shape()[0]]), logits.dtype);
        launch!(losses::token_losses, at.grid(); [logits, targets] => [losses];
            at.rows(), at.units, logits.dtype.into(), targets.dtype.into());
        losses
    }

    fn token_losses_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if !is_for_kernels([&logits, &grad]) {
            return primitives::token_losses_backward::<Self>(logits, targets, grad);
        }
        let [logits, grad] = [logits, grad].map(into_contiguous);
        let targets = into_contiguous(targets);
        let at = by_rows(&logits, false);
        let to_logits = empty_like(&logits);
        launch!(losses::token_losses_backward, at.grid(); [logits, targets, grad] => [to_logits];
            at.rows(), at.units, logits.dtype.into(), targets.dtype.into());
        to_logits
    }

    fn token_losses_double_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
        a: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        if !is_for_kernels([&logits, &grad, &a]) {
            return primitives::token_losses_double_backward::<Self>(logits, targets, grad, a);
        }
        let [logits, grad, a] = [logits, grad, a].map(into_contiguous);
        let targets = into_contiguous(targets);
        let at = by_rows(&logits, false);
        let (to_grad, to_logits) = (empty_like(&grad), empty_like(&logits));
        launch!(losses::token_losses_double_backward, at.grid(); [logits, targets, grad, a] => [to_grad, to_logits];
            at.rows(), at.units, logits.dtype.into(), targets.dtype.into());
        [to_grad, to_logits]
    }

    fn norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, by: Norm) -> FloatTensor<Self> {
        if !is_for_kernels([&x, &weight]) {
            return primitives::norm::<Self>(x, weight, by);
        }
        let [x, weight] = [x, weight].map(into_contiguous);
        let at = by_rows(&x, false);
        let out = empty_like(&x);
        launch!(norm::norm, at.grid(); [x, weight] => [out];
            at.rows(), by.epsilon as f32, by.centered, at.units, x.dtype.into());
        out
    }

    fn norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        by: Norm,
        wants_weight: bool,
        onto: [Option<FloatTensor<Self>>; 2],
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        if !is_for_kernels([&x, &weight, &grad]) {
            return primitives::norm_backward::<Self>(x, weight, grad, by, wants_weight, onto);
        }
        let [onto_x, onto_weight] = onto;
        let [x, weight, grad] = [x, weight, grad].map(into_contiguous);
        let (onto_x, adds) = onto_or(onto_x, &x);
        let at = by_rows(&x, wants_weight);
        let dx = empty_like(&x);
        let sums = match wants_weight {
            true => sums(&x, &at),
            // Any tensor of this type; it is not written.
            false => empty(&x, Shape::new([1]), DType::F32),
        };
        launch!(norm::norm_backward, at.grid(); [x, weight, grad, onto_x] => [dx, sums];
            at.rows(), by.epsilon as f32, by.centered, adds, wants_weight, at.units, x.dtype.into());
        let dw = wants_weight.then(|| sum_of_rows(sums, &weight, onto_weight));
        (dx, dw)
    }

    fn norm_double_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        [a, c]: [Option<FloatTensor<Self>>; 2],
        by: Norm,
        onto_weight: Option<FloatTensor<Self>>,
    ) -> [FloatTensor<Self>; 3] {
        if !is_for_kernels([&x, &weight, &grad]) {
            let cotangents = [a, c];
            return primitives::norm_double_backward::<Self>(
                x,
                weight,
                grad,
                cotangents,
                by,
                onto_weight,
            );
        }
        let present = (a.is_some(), c.is_some());
        let [x, weight, grad] = [x, weight, grad].map(into_contiguous);
        let [a, c] = [a, c].map(|y| y.map_or_else(|| x.clone(), into_contiguous));
        let at = by_rows(&x, true);
        let (to_grad, to_x, sums) = (empty_like(&x), empty_like(&x), sums(&x, &at));
        launch!(norm::norm_double_backward, at.grid(); [x, weight, grad, a, c] => [to_grad, to_x, sums];
            at.rows(), by.epsilon as f32, by.centered, present, at.units, x.dtype.into());
        [to_grad, to_x, sum_of_rows(sums, &weight, onto_weight)]
    }

    fn activate(x: FloatTensor<Self>, by: Nonlinearity) -> FloatTensor<Self> {
        if !is_for_kernels([&x]) {
            return primitives::activate::<Self>(x, by);
        }
        let x = into_contiguous(x);
        let out = empty_like(&x);
        launch!(activation::activate, spread(&x); [x] => [out]; x.meta.num_elements(), by, x.dtype.into());
        out
    }

    fn activate_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        by: Nonlinearity,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        if !is_for_kernels([&x, &grad]) {
            return primitives::activate_backward::<Self>(x, grad, by, onto);
        }
        let [x, grad] = [x, grad].map(into_contiguous);
        let (onto, adds) = onto_or(onto, &x);
        let dx = empty_like(&x);
        launch!(activation::activate_backward, spread(&x); [x, grad, onto] => [dx];
            x.meta.num_elements(), by, adds, x.dtype.into());
        dx
    }

    fn activate_double_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        a: FloatTensor<Self>,
        by: Nonlinearity,
    ) -> [FloatTensor<Self>; 2] {
        if !is_for_kernels([&x, &grad, &a]) {
            return primitives::activate_double_backward::<Self>(x, grad, a, by);
        }
        let [x, grad, a] = [x, grad, a].map(into_contiguous);
        let (to_grad, to_x) = (empty_like(&grad), empty_like(&x));
        launch!(activation::activate_double_backward, spread(&x); [x, grad, a] => [to_grad, to_x];
            x.meta.num_elements(), by, x.dtype.into());
        [to_grad, to_x]
    }

    fn swiglu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        if !is_for_kernels([&x]) {
            return primitives::swiglu::<Self>(x);
        }
        let x = into_contiguous(x);
        let [batch, seq, width] = x.meta.shape().dims();
        let out = empty(&x, Shape::new([batch, seq, width / 2]), x.dtype);
        launch!(pointwise::swiglu, spread(&out); [x] => [out];
            out.meta.num_elements(), width / 2, x.dtype.into());
        out
    }

    fn swiglu_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        if !is_for_kernels([&x, &grad]) {
            return primitives::swiglu_backward::<Self>(x, grad, onto);
        }
        let [x, grad] = [x, grad].map(into_contiguous);
        let (onto, adds) = onto_or(onto, &x);
        let to_x = empty_like(&x);
        launch!(pointwise::swiglu_backward, spread(&grad); [x, grad, onto] => [to_x];
            grad.meta.num_elements(), grad.meta.shape()[2], adds, x.dtype.into());
        to_x
    }

    fn swiglu_double_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        a: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        if !is_for_kernels([&x, &grad, &a]) {
            return primitives::swiglu_double_backward::<Self>(x, grad, a);
        }
        let [x, grad, a] = [x, grad, a].map(into_contiguous);
        let (to_grad, to_x) = (empty_like(&grad), empty_like(&x));
        launch!(pointwise::swiglu_double_backward, spread(&grad); [x, grad, a] => [to_grad, to_x];
            grad.meta.num_elements(), grad.meta.shape()[2], x.dtype.into());
        [to_grad, to_x]
    }

    fn last_rows(x: FloatTensor<Self>, count: usize) -> FloatTensor<Self> {
        if !is_for_kernels([&x]) {
            return last_rows::<Self>(x, count);
        }
        let x = into_contiguous(x);
        let mut shape = x.meta.shape().clone();
        let skipped = x.meta.num_elements() / (shape[0] * shape[1]) * (shape[1] - count);
        shape[1] = count;
        let out = empty(&x, shape, x.dtype);
        let size = out.meta.num_elements() / out.meta.shape()[0];
        launch!(pointwise::last_rows, spread(&out); [x] => [out];
            out.meta.num_elements(), size, skipped, x.dtype.into());
        out
    }

    fn behind_zeros(x: FloatTensor<Self>, rows: usize) -> FloatTensor<Self> {
        let mut shape = x.meta.shape().clone();
        let before = rows - shape[1];
        shape[1] = rows;
        if !is_for_kernels([&x]) || u32::try_from(shape.num_elements()).is_err() {
            return behind_zeros::<Self>(x, rows);
        }
        let x = into_contiguous(x);
        let zeros = shape.num_elements() / (shape[0] * rows) * before;
        let out = empty(&x, shape, x.dtype);
        let size = out.meta.num_elements() / out.meta.shape()[0];
        launch!(pointwise::behind_zeros, spread(&out); [x] => [out];
            out.meta.num_elements(), size, zeros, x.dtype.into());
        out
    }

    fn ordered(
        x: FloatTensor<Self>,
        rotation: Option<[FloatTensor<Self>; 3]>,
    ) -> FloatTensor<Self> {
        let mut tables = rotation.iter().flatten();
        if !is_for_kernels([&x]) || !tables.all(|t| t.dtype == x.dtype) {
            return match rotation {
                Some(tables) => primitives::rotary::<Self>(x, tables, Self::product),
                None => x,
            };
        }
        let x = into_contiguous(x);
        let Some(tables) = rotation else {
            return x;
        };
        let [cos, sin, turn] = tables.map(into_contiguous);
        let out = empty_like(&x);
        let [_, seq, heads, dim] = x.meta.shape().dims();
        launch!(pointwise::rotary, spread(&x); [x, cos, sin, turn] => [out];
            x.meta.num_elements(), seq, heads, dim, x.dtype.into());
        out
    }

    fn split_heads(
        x: FloatTensor<Self>,
        rotation: Option<[FloatTensor<Self>; 3]>,
        [n_heads, n_kv_heads]: [usize; 2],
    ) -> [FloatTensor<Self>; 3] {
        let tables = rotation.iter().flatten();
        if !is_for_kernels([&x]) || !tables.into_iter().all(|t| t.dtype == x.dtype) {
            return split_by_heads::<Self>(x, rotation, [n_heads, n_kv_heads]);
        }
        let x = into_contiguous(x);
        let [batch, seq, width] = x.meta.shape().dims();
        let dim = width / (n_heads + 2 * n_kv_heads);
        let [q, k, v] = [n_heads, n_kv_heads, n_kv_heads]
            .map(|heads| empty(&x, Shape::new([batch, seq, heads, dim]), x.dtype));
        let rotates = rotation.is_some();
        let [cos, sin, turn] = tables_or(rotation, &x);
        let count = x.meta.num_elements();
        launch!(pointwise::split_heads, spread(&x); [x, cos, sin, turn] => [q, k, v];
            SharedLaunch::new(count, seq, n_heads, n_kv_heads, dim), rotates, x.dtype.into());
        [q, k, v]
    }

    fn join_heads(
        [q, k, v]: [FloatTensor<Self>; 3],
        rotation: Option<[FloatTensor<Self>; 3]>,
    ) -> FloatTensor<Self> {
        let [batch, seq, n_heads, dim] = q.meta.shape().dims();
        let n_kv_heads = k.meta.shape()[2];
        let width = (n_heads + 2 * n_kv_heads) * dim;
        let tables = rotation.iter().flatten();
        let fits = is_for_kernels([&q, &k, &v])
            && u32::try_from(batch * seq * width).is_ok()
            && tables.into_iter().all(|t| t.dtype == q.dtype);
        if !fits {
            return join_by_heads::<Self>([q, k, v], rotation);
        }
        let [q, k, v] = [q, k, v].map(into_contiguous);
        let out = empty(&q, Shape::new([batch, seq, width]), q.dtype);
        let rotates = rotation.is_some();
        let [cos, sin, turn] = tables_or(rotation, &q);
        let count = out.meta.num_elements();
        launch!(pointwise::join_heads, spread(&out); [q, k, v, cos, sin, turn] => [out];
            SharedLaunch::new(count, seq, n_heads, n_kv_heads, dim), rotates, out.dtype.into());
        out
    }

    fn adamw(
        step: &AdamWStep,
        [x, m, v]: [FloatTensor<Self>; 3],
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3] {
        if x.dtype != DType::F32 || !is_for_kernels([&x, &m, &v, &grad]) {
            return adamw::<Self>(step, [x, m, v], grad);
        }
        let [x, m, v, grad] = [x, m, v, grad].map(into_contiguous);
        let [to_x, to_m, to_v] = [(); 3].map(|()| empty_like(&x));
        let [first, second] = step.corrections();
        let (beta1, beta2, epsilon) = (step.beta1, step.beta2, step.epsilon);
        let (kept, lr) = (step.kept() as f32, step.lr as f32);
        launch!(pointwise::adamw, spread(&x); [x, m, v, grad] => [to_x, to_m, to_v];
            MovingLaunch::new(beta1, beta2, epsilon, first, second, kept, lr), x.meta.num_elements(), x.dtype.into());
        [to_x, to_m, to_v]
    }
}
