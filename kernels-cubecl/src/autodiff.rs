//! `Autodiff<B>`: the backward is registered on the forward, the double backward on the backward.
//!
//! A backward has as many outputs as its operation has inputs, where Burn's graph knows one output a
//! node. It becomes one *hub* node (parents: the inputs and the output's gradient) and one *port* node
//! (parent: the hub) for each gradient that is wanted. When the graph is walked backwards a port only
//! stores the gradient that reached it; the hub, which every walk visits after its ports, then calls
//! the double backward once with whatever arrived.
//!
//! The third derivative needs nothing here: the provided double backwards, in tensor operations of
//! `Autodiff<B>`, are tracked like any other computation.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_autodiff::Autodiff;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use crate::AttentionBackend;
use crate::layer::LayerBackend;

/// A function of `N` tensors whose derivatives are known in closed form: what `B` computes for them.
pub(crate) trait Operation<B: Backend, const N: usize>:
    Clone + Debug + Send + 'static
{
    /// The gradients of `⟨grad, output⟩`, at least those that are `wanted`.
    fn backward(
        self,
        at: Point<B, N>,
        grad: FloatTensor<B>,
        wanted: [bool; N],
    ) -> [Option<FloatTensor<B>>; N];

    /// The gradients to `grad` and to the inputs of `Σ ⟨cotangent, gradient⟩`, where an absent
    /// cotangent counts as zero.
    fn double_backward(
        self,
        at: Point<B, N>,
        grad: FloatTensor<B>,
        cotangents: [Option<FloatTensor<B>>; N],
    ) -> (FloatTensor<B>, [FloatTensor<B>; N]);

    /// The sum of two gradients to one tensor.
    fn add(x: FloatTensor<B>, y: FloatTensor<B>) -> FloatTensor<B> {
        B::float_add(x, y)
    }
}

/// Where a derivative is taken.
#[derive(Clone, Debug)]
pub(crate) struct Point<B: Backend, const N: usize> {
    pub inputs: [FloatTensor<B>; N],
    /// What the forward left for its derivatives: functions of the inputs.
    pub saved: Vec<FloatTensor<B>>,
}

/// Puts `output`, which `B` computed from `inputs`, on the tape.
pub(crate) fn forward<B, C, const N: usize>(
    operation: impl Operation<B, N>,
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    output: FloatTensor<B>,
    saved: Vec<FloatTensor<B>>,
) -> FloatTensor<Autodiff<B, C>>
where
    B: Backend,
    C: CheckpointStrategy,
{
    let nodes = inputs.each_ref().map(|x| x.node.clone());
    let prep = Forward(operation).prepare::<C>(nodes).compute_bound();
    match prep.stateful() {
        OpsKind::Tracked(mut prep) => {
            let inputs = inputs.each_ref().map(|x| prep.checkpoint(x));
            prep.finish((inputs, saved), output)
        }
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

/// Computes the backward on `B` and puts it on the tape. `M` is `N + 1`.
pub(crate) fn backward<B, C, const N: usize, const M: usize>(
    operation: impl Operation<B, N>,
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    saved: Vec<FloatTensor<B>>,
    grad: FloatTensor<Autodiff<B, C>>,
    wanted: [bool; N],
) -> [Option<FloatTensor<Autodiff<B, C>>>; N]
where
    B: Backend,
    C: CheckpointStrategy,
{
    let at = Point {
        inputs: inputs.each_ref().map(|x| x.primitive.clone()),
        saved: saved.clone(),
    };
    let gradients = operation
        .clone()
        .backward(at, grad.primitive.clone(), wanted);
    let parents: [_; M] = std::array::from_fn(|i| inputs.get(i).unwrap_or(&grad).node.clone());
    let received: Received<B, N> = Arc::new(Mutex::new([const { None }; N]));
    let prep = Hub(operation).prepare::<C>(parents).compute_bound();
    let OpsKind::Tracked(mut prep) = prep.stateful() else {
        return gradients.map(|x| x.map(Autodiff::<B, C>::from_inner));
    };
    let state = HubState {
        inputs: inputs.each_ref().map(|x| prep.checkpoint(x)),
        grad: prep.checkpoint(&grad),
        saved,
        received: received.clone(),
    };
    // The hub's own value is never read.
    let hub = prep.finish(state, grad.primitive);
    let mut index = 0..;
    gradients.map(|gradient| {
        let port = Port(index.next().unwrap_or_default());
        let gradient = gradient?;
        let prep = port.prepare::<C>([hub.node.clone()]).compute_bound();
        Some(match prep.stateful() {
            OpsKind::Tracked(prep) => prep.finish(received.clone(), gradient),
            OpsKind::UnTracked(prep) => prep.finish(gradient),
        })
    })
}

#[derive(Debug)]
struct Forward<T>(T);

impl<B: Backend, T: Operation<B, N>, const N: usize> Backward<B, N> for Forward<T> {
    type State = ([NodeId; N], Vec<FloatTensor<B>>);

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let (inputs, saved) = ops.state.clone();
        let inputs = inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let gradients = self.0.backward(Point { inputs, saved }, grad, wanted);
        for (parent, gradient) in gradients.into_iter().enumerate() {
            if let Some(gradient) = gradient {
                add_gradient::<B, T, N, _, N>(&ops, parent, gradient, grads);
            }
        }
    }
}

/// Adds a gradient to what has already reached a parent.
fn add_gradient<B: Backend, T: Operation<B, N>, const N: usize, S, const M: usize>(
    ops: &Ops<S, M>,
    parent: usize,
    gradient: FloatTensor<B>,
    grads: &mut Gradients,
) {
    let Some(node) = &ops.parents[parent] else {
        return;
    };
    let gradient = match earlier::<B, _, M>(ops, parent, &gradient, grads) {
        Some(earlier) => T::add(earlier, gradient),
        None => gradient,
    };
    grads.register::<B>(node.id, gradient);
}

/// The cotangents that reached a backward's outputs, shared by the ports and their hub.
type Received<B, const N: usize> = Arc<Mutex<[Option<FloatTensor<B>>; N]>>;

#[derive(Debug)]
struct Port<const N: usize>(usize);

impl<B: Backend, const N: usize> Backward<B, 1> for Port<N> {
    type State = Received<B, N>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let mut received = ops.state.lock().unwrap_or_else(PoisonError::into_inner);
        received[self.0] = Some(gradient);
    }
}

#[derive(Debug)]
struct Hub<T, const N: usize>(T);

#[derive(Clone, Debug)]
struct HubState<B: Backend, const N: usize> {
    inputs: [NodeId; N],
    grad: NodeId,
    saved: Vec<FloatTensor<B>>,
    received: Received<B, N>,
}

impl<B: Backend, T: Operation<B, N>, const N: usize, const M: usize> Backward<B, M> for Hub<T, N> {
    type State = HubState<B, N>;

    fn backward(
        self,
        ops: Ops<Self::State, M>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let HubState {
            inputs,
            grad,
            saved,
            received,
        } = ops.state.clone();
        let mut value = |id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let (inputs, grad) = (inputs.map(&mut value), value(grad));
        let cotangents = {
            let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *received, [const { None }; N])
        };
        let at = Point { inputs, saved };
        let (to_grad, to_inputs) = self.0.double_backward(at, grad, cotangents);
        let gradients = to_inputs.into_iter().chain([to_grad]);
        for (parent, gradient) in gradients.enumerate() {
            add_gradient::<B, T, N, _, M>(&ops, parent, gradient, grads);
        }
    }
}

#[derive(Clone, Debug)]
struct CausalAttention {
    scale: f64,
}

impl<B: AttentionBackend> Operation<B, 3> for CausalAttention {
    fn backward(
        self,
        at: Point<B, 3>,
        grad: FloatTensor<B>,
        _: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        let ([q, k, v], [out, lse]) = (at.inputs, pair(at.saved));
        B::causal_attention_backward(q, k, v, out, lse, grad, self.scale).map(Some)
    }

    fn double_backward(
        self,
        at: Point<B, 3>,
        grad: FloatTensor<B>,
        cotangents: [Option<FloatTensor<B>>; 3],
    ) -> (FloatTensor<B>, [FloatTensor<B>; 3]) {
        let ([q, k, v], [out, lse]) = (at.inputs, pair(at.saved));
        let [to_grad, to_q, to_k, to_v] =
            B::causal_attention_double_backward(q, k, v, out, lse, grad, cotangents, self.scale);
        (to_grad, [to_q, to_k, to_v])
    }
}

fn pair<T>(saved: Vec<T>) -> [T; 2] {
    let Ok(pair) = saved.try_into() else {
        unreachable!("the forward saved two tensors")
    };
    pair
}

impl<B: AttentionBackend, C: CheckpointStrategy> AttentionBackend for Autodiff<B, C> {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, y, z] = [&q, &k, &v].map(|x| x.primitive.clone());
        let (out, lse) = B::causal_attention(x, y, z, scale);
        let saved = vec![out.clone(), lse.clone()];
        let out = forward::<B, C, 3>(CausalAttention { scale }, [q, k, v], out, saved);
        (out, Self::from_inner(lse))
    }

    fn causal_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad_out: FloatTensor<Self>,
        scale: f64,
    ) -> [FloatTensor<Self>; 3] {
        let saved = vec![out.primitive, lse.primitive];
        let operation = CausalAttention { scale };
        all(backward::<B, C, 3, 4>(
            operation,
            [q, k, v],
            saved,
            grad_out,
            [true; 3],
        ))
    }
}

/// The gradients of an operation that gives all of them.
fn all<T, const N: usize>(gradients: [Option<T>; N]) -> [T; N] {
    gradients.map(|x| x.expect("every gradient was wanted"))
}

#[derive(Clone, Debug)]
struct RmsNorm {
    epsilon: f64,
}

impl<B: LayerBackend> Operation<B, 2> for RmsNorm {
    fn add(x: FloatTensor<B>, y: FloatTensor<B>) -> FloatTensor<B> {
        B::add(x, y)
    }

    fn backward(
        self,
        at: Point<B, 2>,
        grad: FloatTensor<B>,
        [_, wants_weight]: [bool; 2],
    ) -> [Option<FloatTensor<B>>; 2] {
        let [x, weight] = at.inputs;
        let (dx, dw) = B::rms_norm_backward(x, weight, grad, self.epsilon, wants_weight);
        [Some(dx), dw]
    }

    fn double_backward(
        self,
        at: Point<B, 2>,
        grad: FloatTensor<B>,
        cotangents: [Option<FloatTensor<B>>; 2],
    ) -> (FloatTensor<B>, [FloatTensor<B>; 2]) {
        let [x, weight] = at.inputs;
        let [to_grad, to_x, to_weight] =
            B::rms_norm_double_backward(x, weight, grad, cotangents, self.epsilon);
        (to_grad, [to_x, to_weight])
    }
}

#[derive(Clone, Debug)]
struct SwiGlu;

impl<B: LayerBackend> Operation<B, 2> for SwiGlu {
    fn add(x: FloatTensor<B>, y: FloatTensor<B>) -> FloatTensor<B> {
        B::add(x, y)
    }

    fn backward(
        self,
        at: Point<B, 2>,
        grad: FloatTensor<B>,
        _: [bool; 2],
    ) -> [Option<FloatTensor<B>>; 2] {
        let [gate, up] = at.inputs;
        B::swiglu_backward(gate, up, grad).map(Some)
    }

    fn double_backward(
        self,
        at: Point<B, 2>,
        grad: FloatTensor<B>,
        cotangents: [Option<FloatTensor<B>>; 2],
    ) -> (FloatTensor<B>, [FloatTensor<B>; 2]) {
        let [gate, up] = at.inputs;
        let [to_grad, to_gate, to_up] = B::swiglu_double_backward(gate, up, grad, cotangents);
        (to_grad, [to_gate, to_up])
    }
}

#[derive(Clone, Debug)]
struct TokenLosses<B: Backend>(IntTensor<B>);

impl<B: LayerBackend> Operation<B, 1> for TokenLosses<B> {
    fn backward(
        self,
        at: Point<B, 1>,
        grad: FloatTensor<B>,
        _: [bool; 1],
    ) -> [Option<FloatTensor<B>>; 1] {
        at.inputs.map(|logits| {
            Some(B::token_losses_backward(
                logits,
                self.0.clone(),
                grad.clone(),
            ))
        })
    }

    fn double_backward(
        self,
        at: Point<B, 1>,
        grad: FloatTensor<B>,
        [cotangent]: [Option<FloatTensor<B>>; 1],
    ) -> (FloatTensor<B>, [FloatTensor<B>; 1]) {
        let [logits] = at.inputs;
        let a = cotangent.expect("the hub has one port, through which it was reached");
        let [to_grad, to_logits] = B::token_losses_double_backward(logits, self.0, grad, a);
        (to_grad, [to_logits])
    }
}

impl<B: LayerBackend, C: CheckpointStrategy> LayerBackend for Autodiff<B, C> {
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        let output = B::product(lhs.primitive.clone(), rhs.primitive.clone());
        let nodes = [lhs.node.clone(), rhs.node.clone()];
        let prep = Backward::<B, 2>::prepare::<C>(Product, nodes).compute_bound();
        match prep.stateful() {
            OpsKind::Tracked(mut prep) => {
                // Each side's gradient needs the other.
                let for_lhs = lhs.is_tracked().then(|| prep.checkpoint(&rhs));
                let for_rhs = rhs.is_tracked().then(|| prep.checkpoint(&lhs));
                prep.finish([for_lhs, for_rhs], output)
            }
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn token_losses(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        let losses = B::token_losses(logits.primitive.clone(), targets.clone());
        forward::<B, C, 1>(TokenLosses::<B>(targets), [logits], losses, Vec::new())
    }

    fn token_losses_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let operation = TokenLosses::<B>(targets);
        let [gradient] = all(backward::<B, C, 1, 2>(
            operation,
            [logits],
            Vec::new(),
            grad,
            [true],
        ));
        gradient
    }

    fn in_order(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let y = B::in_order(x.primitive);
        let prep = Backward::<B, 1>::prepare::<C>(InOrder, [x.node]).compute_bound();
        prep.stateless(y)
    }

    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let y = B::rms_norm(x.primitive.clone(), weight.primitive.clone(), epsilon);
        forward::<B, C, 2>(RmsNorm { epsilon }, [x, weight], y, Vec::new())
    }

    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
        wants_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let (inputs, wanted) = ([x, weight], [true, wants_weight]);
        let operation = RmsNorm { epsilon };
        let [dx, dw] = backward::<B, C, 2, 3>(operation, inputs, Vec::new(), grad, wanted);
        (dx.expect("dx is always given"), dw)
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let y = B::swiglu(gate.primitive.clone(), up.primitive.clone());
        forward::<B, C, 2>(SwiGlu, [gate, up], y, Vec::new())
    }

    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        let inputs = [gate, up];
        all(backward::<B, C, 2, 3>(
            SwiGlu,
            inputs,
            Vec::new(),
            grad,
            [true; 2],
        ))
    }

    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turn: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [cos, sin, turn] = [cos, sin, turn].map(|x| x.primitive);
        let y = B::rotary(x.primitive, cos.clone(), sin.clone(), turn.clone());
        let prep = Backward::<B, 1>::prepare::<C>(Rotary, [x.node]).compute_bound();
        match prep.stateful() {
            OpsKind::Tracked(prep) => prep.finish([cos, sin, turn], y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

/// Takes the gradient that has already reached a parent: whoever adds to it may do so in place. Of `like`
/// only its being a tensor of `B` counts.
fn earlier<B: Backend, S, const N: usize>(
    ops: &Ops<S, N>,
    parent: usize,
    like: &FloatTensor<B>,
    grads: &mut Gradients,
) -> Option<FloatTensor<B>> {
    let mut place = Autodiff::<B>::from_inner(like.clone());
    place.node = ops.parents[parent].clone()?;
    grads.remove::<B>(&place)
}

#[derive(Debug)]
struct Product;

impl<B: LayerBackend> Backward<B, 2> for Product {
    /// rhs for the gradient to lhs, lhs for that to rhs.
    type State = [Option<NodeId>; 2];

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad = grads.consume::<B>(&ops.node);
        let mut transposed = |id: Option<NodeId>| {
            let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(id?);
            Some(B::float_transpose(x))
        };
        let [rhs, lhs] = ops.state.map(&mut transposed);
        let mut add = |side: usize, lhs, rhs| {
            let Some(parent) = &ops.parents[side] else {
                return;
            };
            let gradient = match earlier::<B, _, 2>(&ops, side, &grad, grads) {
                Some(earlier) => B::add_product(earlier, lhs, rhs),
                None => B::product(lhs, rhs),
            };
            grads.register::<B>(parent.id, gradient);
        };
        if let Some(rhs) = rhs {
            add(0, grad.clone(), rhs);
        }
        if let Some(lhs) = lhs {
            add(1, lhs, grad.clone());
        }
    }
}

#[derive(Debug)]
struct InOrder;

impl<B: LayerBackend> Backward<B, 1> for InOrder {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(parent)] = ops.parents {
            grads.register::<B>(parent.id, B::in_order(grad));
        }
    }
}

/// A rotation's gradient is the rotation back.
#[derive(Debug)]
struct Rotary;

impl<B: LayerBackend> Backward<B, 1> for Rotary {
    /// cos, sin, turn
    type State = [FloatTensor<B>; 3];

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let ([Some(parent)], [cos, sin, turn]) = (ops.parents, ops.state) else {
            return;
        };
        let gradient = B::rotary(grad, cos, B::float_neg(sin), turn);
        grads.register::<B>(parent.id, gradient);
    }
}
