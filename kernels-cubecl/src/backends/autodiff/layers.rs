//! The autodiff implementation of the layers around attention.

use std::fmt;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Device, TensorMetadata};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_autodiff::{Autodiff, NodeId};

use super::{Linear, Operation, Point, Several, all, backward, earlier, forward, linear, several};
use crate::ops::layers::rotated_back;
use crate::reference::primitives::added;
use crate::{LayerBackend, Nonlinearity, Norm, Precision};

impl<B: LayerBackend> Operation<B, 2> for Norm {
    fn backward(
        self,
        at: Point<B, 2>,
        grad: FloatTensor<B>,
        [_, wants_weight]: [bool; 2],
        onto: [Option<FloatTensor<B>>; 2],
    ) -> [Option<FloatTensor<B>>; 2] {
        let [x, weight] = at.inputs;
        let (dx, dw) = B::norm_backward(x, weight, grad, self, wants_weight, onto);
        [Some(dx), dw]
    }

    fn double_backward(
        self,
        at: Point<B, 2>,
        grad: FloatTensor<B>,
        cotangents: [Option<FloatTensor<B>>; 2],
        _: [bool; 2],
        [onto_x, onto_weight]: [Option<FloatTensor<B>>; 2],
    ) -> (FloatTensor<B>, [Option<FloatTensor<B>>; 2]) {
        let [x, weight] = at.inputs;
        let [to_grad, to_x, to_weight] =
            B::norm_double_backward(x, weight, grad, cotangents, self, onto_weight);
        (
            to_grad,
            [Some(added(onto_x, to_x, B::add)), Some(to_weight)],
        )
    }
}

/// An operation of one input, by its first two derivatives.
trait Derivatives<B: LayerBackend>: Clone + fmt::Debug + Send + Sync + 'static {
    /// The gradient to `x` of `⟨grad, f(x)⟩`, added to what is given as `onto`.
    fn first(
        self,
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
    ) -> FloatTensor<B>;

    /// The gradients to `[grad, x]` of `⟨a, dx⟩`.
    fn second(
        self,
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        a: FloatTensor<B>,
    ) -> [FloatTensor<B>; 2];
}

#[derive(Clone, Debug)]
struct OfOne<D>(D);

impl<B: LayerBackend, D: Derivatives<B>> Operation<B, 1> for OfOne<D> {
    fn backward(
        self,
        at: Point<B, 1>,
        grad: FloatTensor<B>,
        _: [bool; 1],
        [onto]: [Option<FloatTensor<B>>; 1],
    ) -> [Option<FloatTensor<B>>; 1] {
        let [x] = at.inputs;
        [Some(self.0.first(x, grad, onto))]
    }

    fn double_backward(
        self,
        at: Point<B, 1>,
        grad: FloatTensor<B>,
        [cotangent]: [Option<FloatTensor<B>>; 1],
        _: [bool; 1],
        [onto]: [Option<FloatTensor<B>>; 1],
    ) -> (FloatTensor<B>, [Option<FloatTensor<B>>; 1]) {
        let [x] = at.inputs;
        let a = cotangent.expect("the only port of the hub received a cotangent");
        let [to_grad, to_x] = self.0.second(x, grad, a);
        (to_grad, [Some(added(onto, to_x, B::add))])
    }
}

#[derive(Clone, Debug)]
struct SwiGlu;

impl<B: LayerBackend> Derivatives<B> for SwiGlu {
    fn first(
        self,
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
    ) -> FloatTensor<B> {
        B::swiglu_backward(x, grad, onto)
    }

    fn second(
        self,
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        a: FloatTensor<B>,
    ) -> [FloatTensor<B>; 2] {
        B::swiglu_double_backward(x, grad, a)
    }
}

impl<B: LayerBackend> Derivatives<B> for Nonlinearity {
    fn first(
        self,
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
    ) -> FloatTensor<B> {
        B::activate_backward(x, grad, self, onto)
    }

    fn second(
        self,
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        a: FloatTensor<B>,
    ) -> [FloatTensor<B>; 2] {
        B::activate_double_backward(x, grad, a, self)
    }
}

#[derive(Clone, Debug)]
struct TokenLosses<B: Backend>(IntTensor<B>);

impl<B: LayerBackend> Derivatives<B> for TokenLosses<B> {
    fn first(
        self,
        logits: FloatTensor<B>,
        grad: FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
    ) -> FloatTensor<B> {
        let dx = B::token_losses_backward(logits, self.0, grad);
        added(onto, dx, B::add)
    }

    fn second(
        self,
        logits: FloatTensor<B>,
        grad: FloatTensor<B>,
        a: FloatTensor<B>,
    ) -> [FloatTensor<B>; 2] {
        B::token_losses_double_backward(logits, self.0, grad, a)
    }
}

impl<B: LayerBackend, C: CheckpointStrategy> LayerBackend for Autodiff<B, C> {
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        let output = B::product(lhs.primitive.clone(), rhs.primitive.clone());
        recorded::<B, C>(Product { transposed: false }, None, [lhs, rhs], output)
    }

    fn product_transposed(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let output = B::product_transposed(x.primitive.clone(), weight.primitive.clone());
        recorded::<B, C>(Product { transposed: true }, None, [x, weight], output)
    }

    fn add_product(
        to: FloatTensor<Self>,
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let product = Product { transposed: false };
        recorded_onto::<B, C>(product, to, [lhs, rhs], B::add_product)
    }

    fn add_product_transposed(
        to: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let product = Product { transposed: true };
        recorded_onto::<B, C>(product, to, [x, weight], B::add_product_transposed)
    }

    fn computes_in(device: &Device<Self>, precision: Precision) -> bool {
        B::computes_in(device, precision)
    }

    fn has_own_product(device: &Device<Self>, dtype: DType) -> bool {
        B::has_own_product(device, dtype)
    }

    fn token_losses(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        let losses = B::token_losses(logits.primitive.clone(), targets.clone());
        forward::<B, C, 1>(
            OfOne(TokenLosses::<B>(targets)),
            [logits],
            losses,
            Vec::new(),
        )
    }

    fn token_losses_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let operation = OfOne(TokenLosses::<B>(targets));
        recorded_backward::<B, C>(operation, logits, grad, None)
    }

    fn norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, by: Norm) -> FloatTensor<Self> {
        let y = B::norm(x.primitive.clone(), weight.primitive.clone(), by);
        forward::<B, C, 2>(by, [x, weight], y, Vec::new())
    }

    fn norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        by: Norm,
        wants_weight: bool,
        onto: [Option<FloatTensor<Self>>; 2],
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let (inputs, wanted) = ([x, weight], [true, wants_weight]);
        let [dx, dw] = backward::<B, C, 2, 5>(by, inputs, Vec::new(), grad, wanted, onto);
        (dx.expect("norm_backward always returns dx"), dw)
    }

    fn swiglu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let y = B::swiglu(x.primitive.clone());
        forward::<B, C, 1>(OfOne(SwiGlu), [x], y, Vec::new())
    }

    fn swiglu_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        recorded_backward::<B, C>(OfOne(SwiGlu), x, grad, onto)
    }

    fn activate(x: FloatTensor<Self>, by: Nonlinearity) -> FloatTensor<Self> {
        let y = B::activate(x.primitive.clone(), by);
        forward::<B, C, 1>(OfOne(by), [x], y, Vec::new())
    }

    fn activate_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        by: Nonlinearity,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        recorded_backward::<B, C>(OfOne(by), x, grad, onto)
    }

    fn side_by_side(parts: [FloatTensor<Self>; 2]) -> FloatTensor<Self> {
        linear::<B, C, 2>(SideBySide, parts, B::side_by_side)
    }

    fn last_rows(x: FloatTensor<Self>, count: usize) -> FloatTensor<Self> {
        let of = LastRows(x.shape()[1]);
        linear::<B, C, 1>(of, [x], |[x]| B::last_rows(x, count))
    }

    fn behind_zeros(x: FloatTensor<Self>, rows: usize) -> FloatTensor<Self> {
        let of = BehindZeros(x.shape()[1]);
        linear::<B, C, 1>(of, [x], |[x]| B::behind_zeros(x, rows))
    }

    fn halves(x: FloatTensor<Self>) -> [FloatTensor<Self>; 2] {
        let parts = B::halves(x.primitive.clone());
        several::<B, C, 2>(Halves, x, parts)
    }

    fn ordered(
        x: FloatTensor<Self>,
        rotation: Option<[FloatTensor<Self>; 3]>,
    ) -> FloatTensor<Self> {
        let rotation = rotation.map(|tables| tables.map(|x| x.primitive));
        let by = Ordered(rotation.clone());
        linear::<B, C, 1>(by, [x], |[x]| B::ordered(x, rotation))
    }

    fn split_heads(
        x: FloatTensor<Self>,
        rotation: Option<[FloatTensor<Self>; 3]>,
        heads: [usize; 2],
    ) -> [FloatTensor<Self>; 3] {
        let rotation = rotation.map(|tables| tables.map(|x| x.primitive));
        let parts = B::split_heads(x.primitive.clone(), rotation.clone(), heads);
        several::<B, C, 3>(Split { rotation }, x, parts)
    }

    fn join_heads(
        qkv: [FloatTensor<Self>; 3],
        rotation: Option<[FloatTensor<Self>; 3]>,
    ) -> FloatTensor<Self> {
        let rotation = rotation.map(|tables| tables.map(|x| x.primitive));
        let heads = [&qkv[0], &qkv[1]].map(|x| x.primitive.shape()[2]);
        let join = Join {
            rotation: rotation.clone(),
            heads,
        };
        linear::<B, C, 3>(join, qkv, |qkv| B::join_heads(qkv, rotation))
    }
}

fn recorded_backward<B: Backend, C: CheckpointStrategy>(
    operation: impl Operation<B, 1>,
    x: FloatTensor<Autodiff<B, C>>,
    grad: FloatTensor<Autodiff<B, C>>,
    onto: Option<FloatTensor<Autodiff<B, C>>>,
) -> FloatTensor<Autodiff<B, C>> {
    let (inputs, saved) = ([x], Vec::new());
    let [dx] = all(backward::<B, C, 1, 3>(
        operation,
        inputs,
        saved,
        grad,
        [true],
        [onto],
    ));
    dx
}

/// Computes and records a product that is added to `to`.
fn recorded_onto<B: LayerBackend, C: CheckpointStrategy>(
    product: Product,
    mut to: FloatTensor<Autodiff<B, C>>,
    factors: [FloatTensor<Autodiff<B, C>>; 2],
    compute: impl Fn(FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let [left, right] = factors.each_ref().map(|x| x.primitive.clone());
    // Of `to` only the place in the graph is kept, so that its memory may be written.
    let value = std::mem::replace(&mut to.primitive, left.clone());
    let output = compute(value, left, right);
    recorded::<B, C>(product, Some(to), factors, output)
}

/// Records a product; of `to`, what it was added to, the place in the graph counts.
fn recorded<B: LayerBackend, C: CheckpointStrategy>(
    product: Product,
    to: Option<FloatTensor<Autodiff<B, C>>>,
    [lhs, rhs]: [FloatTensor<Autodiff<B, C>>; 2],
    output: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    // Where there is nothing to add to, the parent is a constant.
    let to = to.unwrap_or_else(|| Autodiff::<B, C>::from_inner(output.clone()));
    let nodes = [lhs.node.clone(), rhs.node.clone(), to.node];
    let prep = Backward::<B, 3>::prepare::<C>(product, nodes).compute_bound();
    match prep.stateful() {
        OpsKind::Tracked(mut prep) => {
            // The gradient of each factor needs the other factor.
            let for_lhs = lhs.is_tracked().then(|| prep.checkpoint(&rhs));
            let for_rhs = rhs.is_tracked().then(|| prep.checkpoint(&lhs));
            prep.finish([for_lhs, for_rhs], output)
        }
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

/// `lhs · rhs`, or `lhs · rhsᵀ`, and what it is added to.
#[derive(Debug)]
struct Product {
    transposed: bool,
}

impl<B: LayerBackend> Backward<B, 3> for Product {
    /// `rhs`, for the gradient to `lhs`, and `lhs`, for the gradient to `rhs`.
    type State = [Option<NodeId>; 2];

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        if let Some(parent) = &ops.parents[2] {
            grads.register::<B>(parent.id, grad.clone());
        }
        let mut factor =
            |id: Option<NodeId>| Some(checkpointer.retrieve_node_output::<FloatTensor<B>>(id?));
        let [rhs, lhs] = ops.state.map(&mut factor);
        let mut add = |side: usize, lhs, rhs| {
            let Some(parent) = &ops.parents[side] else {
                return;
            };
            let gradient = match earlier::<B, _, 3>(&ops, side, &grad, grads) {
                Some(earlier) => B::add_product(earlier, lhs, rhs),
                None => B::product(lhs, rhs),
            };
            grads.register::<B>(parent.id, gradient);
        };
        if let Some(rhs) = rhs {
            let rhs = match self.transposed {
                true => rhs,
                false => B::float_transpose(rhs),
            };
            add(0, grad.clone(), rhs);
        }
        if let Some(lhs) = lhs {
            match self.transposed {
                true => add(1, B::float_transpose(grad.clone()), lhs),
                false => add(1, B::float_transpose(lhs), grad.clone()),
            }
        }
    }
}

/// By cos, sin and `turn`, if it rotates.
#[derive(Debug)]
struct Ordered<B: Backend>(Option<[FloatTensor<B>; 3]>);

impl<B: LayerBackend> Linear<B, 1> for Ordered<B> {
    fn gradients(self, grad: FloatTensor<B>) -> [FloatTensor<B>; 1] {
        [B::ordered(grad, self.0.map(rotated_back::<B>))]
    }
}

/// Of so many rows.
#[derive(Debug)]
struct LastRows(usize);

impl<B: LayerBackend> Linear<B, 1> for LastRows {
    fn gradients(self, grad: FloatTensor<B>) -> [FloatTensor<B>; 1] {
        [B::behind_zeros(grad, self.0)]
    }
}

/// So many rows.
#[derive(Debug)]
struct BehindZeros(usize);

impl<B: LayerBackend> Linear<B, 1> for BehindZeros {
    fn gradients(self, grad: FloatTensor<B>) -> [FloatTensor<B>; 1] {
        [B::last_rows(grad, self.0)]
    }
}

#[derive(Debug)]
struct SideBySide;

impl<B: LayerBackend> Linear<B, 2> for SideBySide {
    fn gradients(self, grad: FloatTensor<B>) -> [FloatTensor<B>; 2] {
        B::halves(grad)
    }
}

#[derive(Clone, Debug)]
struct Halves;

impl<B: LayerBackend> Several<B, 2> for Halves {
    fn gradient(self, parts: [FloatTensor<B>; 2]) -> FloatTensor<B> {
        B::side_by_side(parts)
    }
}

#[derive(Clone, Debug)]
struct Split<B: Backend> {
    rotation: Option<[FloatTensor<B>; 3]>,
}

impl<B: LayerBackend> Several<B, 3> for Split<B> {
    fn gradient(self, parts: [FloatTensor<B>; 3]) -> FloatTensor<B> {
        B::join_heads(parts, self.rotation)
    }
}

#[derive(Debug)]
struct Join<B: Backend> {
    rotation: Option<[FloatTensor<B>; 3]>,
    /// The numbers of heads.
    heads: [usize; 2],
}

impl<B: LayerBackend> Linear<B, 3> for Join<B> {
    fn gradients(self, grad: FloatTensor<B>) -> [FloatTensor<B>; 3] {
        B::split_heads(grad, self.rotation, self.heads)
    }
}
