//! `Autodiff<B>`: records the backward of each forward and the double backward of each backward.
//!
//! A backward has as many outputs as its operation has inputs, but a node of Burn's graph has one output.
//! So a backward is recorded as one *hub* node (parents: the inputs and the gradient of the output) and
//! one *port* node (parent: the hub) for each requested gradient. In a backward pass over the graph a port
//! only stores the cotangent that it receives; the hub, which every pass visits after its ports, then
//! calls the double backward once with the stored cotangents.
//!
//! Third and higher derivatives need no code here: `Autodiff<B>` does not override the double backwards,
//! and their provided methods are tensor operations of `Autodiff<B>`, which are tracked.

mod attention;
mod head;
mod layers;
mod scan;

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Device, FloatDType, Shape, TensorMetadata};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_autodiff::{Autodiff, NodeId};

/// A function of `N` tensors whose first two derivatives `B` computes in closed form.
trait Operation<B: Backend, const N: usize>: Clone + Debug + Send + 'static {
    /// The gradients of `⟨grad, output⟩`, at least those that are `wanted`, each added to what is given as `onto`.
    fn backward(
        self,
        at: Point<B, N>,
        grad: FloatTensor<B>,
        wanted: [bool; N],
        onto: [Option<FloatTensor<B>>; N],
    ) -> [Option<FloatTensor<B>>; N];

    /// The gradients to `grad` and to the inputs, at least those that are `wanted`, of `Σ ⟨cotangent, gradient⟩`, where an
    /// absent cotangent counts as zero. Those to the inputs are added to what is given as `onto`.
    fn double_backward(
        self,
        at: Point<B, N>,
        grad: FloatTensor<B>,
        cotangents: [Option<FloatTensor<B>>; N],
        wanted: [bool; N],
        onto: [Option<FloatTensor<B>>; N],
    ) -> (FloatTensor<B>, [Option<FloatTensor<B>>; N]);
}

/// The point at which a derivative is taken.
#[derive(Clone, Debug)]
struct Point<B: Backend, const N: usize> {
    inputs: [FloatTensor<B>; N],
    /// Results of the forward that its derivatives use: functions of the inputs.
    saved: Vec<FloatTensor<B>>,
}

/// Records `output`, which `B` computed from `inputs`, in the graph.
fn forward<B, C, const N: usize>(
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

/// Computes the backward on `B` and records it in the graph. `M` is `2 N + 1`.
fn backward<B, C, const N: usize, const M: usize>(
    operation: impl Operation<B, N>,
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    saved: Vec<FloatTensor<B>>,
    grad: FloatTensor<Autodiff<B, C>>,
    wanted: [bool; N],
    onto: [Option<FloatTensor<Autodiff<B, C>>>; N],
) -> [Option<FloatTensor<Autodiff<B, C>>>; N]
where
    B: Backend,
    C: CheckpointStrategy,
{
    let at = Point {
        inputs: inputs.each_ref().map(|x| x.primitive.clone()),
        saved: saved.clone(),
    };
    // Where there is nothing to add to, the parent is a constant.
    let constant = Autodiff::<B, C>::from_inner(grad.primitive.clone()).node;
    let nodes = onto.each_ref().map(|x| match x {
        Some(x) => x.node.clone(),
        None => constant.clone(),
    });
    let parents = inputs.each_ref().map(|x| x.node.clone()).into_iter();
    let mut parents = parents.chain([grad.node.clone()]).chain(nodes);
    let parents: [_; M] = std::array::from_fn(|_| parents.next().expect("2 N + 1 of them"));
    let onto = onto.map(|x| x.map(|x| x.primitive));
    let value = grad.primitive.clone();
    let gradients = operation.clone().backward(at, value, wanted, onto);
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
    // The value of the hub is never read.
    let hub = prep.finish(state, grad.primitive);
    let mut index = 0..;
    gradients.map(|gradient| {
        let port = Port(index.next().unwrap_or_default());
        Some(at_port::<B, C, N>(port, &hub, &received, gradient?))
    })
}

/// A linear function of several tensors with one output.
trait Linear<B: Backend, const N: usize>: Debug + Send + 'static {
    /// The gradients to the inputs.
    fn gradients(self, grad: FloatTensor<B>) -> [FloatTensor<B>; N];
}

/// Records what is computed from the inputs.
fn linear<B: Backend, C: CheckpointStrategy, const N: usize>(
    function: impl Linear<B, N>,
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    compute: impl FnOnce([FloatTensor<B>; N]) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = inputs.each_ref().map(|x| x.node.clone());
    let output = compute(inputs.map(|x| x.primitive));
    let prep = Joined(function).prepare::<C>(nodes).compute_bound();
    prep.stateless(output)
}

#[derive(Debug)]
struct Joined<T>(T);

impl<B: Backend, T: Linear<B, N>, const N: usize> Backward<B, N> for Joined<T> {
    type State = ();

    fn backward(self, ops: Ops<(), N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        register::<B, _, N>(&ops, self.0.gradients(grad).map(Some), grads);
    }
}

/// A linear function of one tensor with several outputs.
trait Several<B: Backend, const N: usize>: Clone + Debug + Send + 'static {
    /// The gradient to the input, from those to all outputs.
    fn gradient(self, parts: [FloatTensor<B>; N]) -> FloatTensor<B>;
}

/// Records the outputs, which `B` computed from `x`: a hub and a port for each of them, like a backward.
fn several<B, C, const N: usize>(
    function: impl Several<B, N>,
    x: FloatTensor<Autodiff<B, C>>,
    outputs: [FloatTensor<B>; N],
) -> [FloatTensor<Autodiff<B, C>>; N]
where
    B: Backend,
    C: CheckpointStrategy,
{
    let received: Received<B, N> = Arc::new(Mutex::new([const { None }; N]));
    let prep = Spread(function).prepare::<C>([x.node]).compute_bound();
    let OpsKind::Tracked(prep) = prep.stateful() else {
        return outputs.map(Autodiff::<B, C>::from_inner);
    };
    let state = SpreadState {
        received: received.clone(),
        outputs: outputs
            .each_ref()
            .map(|x| (x.shape(), B::float_device(x), x.dtype().into())),
    };
    // The value of the hub is never read.
    let hub = prep.finish(state, x.primitive);
    let mut index = 0..;
    outputs.map(|output| {
        let port = Port(index.next().unwrap_or_default());
        at_port::<B, C, N>(port, &hub, &received, output)
    })
}

#[derive(Debug)]
struct Spread<T, const N: usize>(T);

#[derive(Clone, Debug)]
struct SpreadState<B: Backend, const N: usize> {
    received: Received<B, N>,
    /// Of each output, for one that received no gradient.
    outputs: [(Shape, Device<B>, FloatDType); N],
}

impl<B: Backend, T: Several<B, N>, const N: usize> Backward<B, 1> for Spread<T, N> {
    type State = SpreadState<B, N>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [Some(parent)] = ops.parents else {
            return;
        };
        let SpreadState { received, outputs } = ops.state;
        let mut pairs = taken::<B, N>(&received).into_iter().zip(outputs);
        let parts = std::array::from_fn(|_| {
            let (part, (shape, device, dtype)) = pairs.next().expect("N of each");
            part.unwrap_or_else(|| B::float_zeros(shape, &device, dtype))
        });
        grads.register::<B>(parent.id, self.0.gradient(parts));
    }
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
        let onto = std::array::from_fn(|i| earlier::<B, _, N>(&ops, i, &grad, grads));
        let at = Point { inputs, saved };
        let gradients = self.0.backward(at, grad, wanted, onto);
        register::<B, _, N>(&ops, gradients, grads);
    }
}

/// The cotangents of a backward's outputs, shared by the ports and their hub.
type Received<B, const N: usize> = Arc<Mutex<[Option<FloatTensor<B>>; N]>>;

/// What the ports received, which is then theirs no more.
fn taken<B: Backend, const N: usize>(received: &Received<B, N>) -> [Option<FloatTensor<B>>; N] {
    let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::replace(&mut *received, [const { None }; N])
}

/// Records `output` as that of a hub's port.
fn at_port<B: Backend, C: CheckpointStrategy, const N: usize>(
    port: Port<N>,
    hub: &FloatTensor<Autodiff<B, C>>,
    received: &Received<B, N>,
    output: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let prep = port.prepare::<C>([hub.node.clone()]).compute_bound();
    match prep.stateful() {
        OpsKind::Tracked(prep) => prep.finish(received.clone(), output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

/// Registers the gradients of the first parents, of those that are in the graph.
fn register<B: Backend, S, const N: usize>(
    ops: &Ops<S, N>,
    gradients: impl IntoIterator<Item = Option<FloatTensor<B>>>,
    grads: &mut Gradients,
) {
    for (parent, gradient) in ops.parents.iter().zip(gradients) {
        if let (Some(parent), Some(gradient)) = (parent, gradient) {
            grads.register::<B>(parent.id, gradient);
        }
    }
}

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
        let cotangents = taken::<B, N>(&received);
        // What a gradient was added to has the gradient of the sum; Burn wants one for each parent, also if no gradient came.
        let to_onto: [_; N] = std::array::from_fn(|i| {
            let received = &cotangents[i];
            let gradient = || {
                received
                    .clone()
                    .unwrap_or_else(|| zeros_like::<B>(&inputs[i]))
            };
            ops.parents[N + 1 + i].is_some().then(gradient)
        });
        let at = Point { inputs, saved };
        let wanted = std::array::from_fn(|i| ops.parents[i].is_some());
        let onto = std::array::from_fn(|i| earlier::<B, _, M>(&ops, i, &grad, grads));
        let (to_grad, to_inputs) = self.0.double_backward(at, grad, cotangents, wanted, onto);
        let gradients = to_inputs.into_iter().chain([Some(to_grad)]).chain(to_onto);
        register::<B, _, M>(&ops, gradients, grads);
    }
}

fn zeros_like<B: Backend>(x: &FloatTensor<B>) -> FloatTensor<B> {
    B::float_zeros(x.shape(), &B::float_device(x), x.dtype().into())
}

/// The gradients of an operation that returns all of them.
fn all<T, const N: usize>(gradients: [Option<T>; N]) -> [T; N] {
    gradients.map(|x| x.expect("all gradients were requested"))
}

/// Removes and returns the gradient that a parent has already received, so that the caller can add to it
/// in place. `like` may be any tensor of `B`; its value is not used.
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
