//! `Autodiff<B>`: the backward is registered on the forward, the double backward on the backward.
//!
//! The backward is an operation with three outputs, where Burn's graph knows one output a node. It
//! becomes one *hub* node (parents q, k, v, grad_out) and three *port* nodes (parent: the hub), one
//! for each of dq, dk and dv. When the graph is walked backwards a port only stores the gradient
//! that reached it; the hub, which every walk visits after its ports, then calls the double
//! backward once with whatever arrived.
//!
//! The third derivative needs nothing here: the provided double backward, in tensor operations of
//! `Autodiff<B>`, is tracked like any other computation.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn_autodiff::Autodiff;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use crate::AttentionBackend;

impl<B: AttentionBackend, C: CheckpointStrategy> AttentionBackend for Autodiff<B, C> {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (out, lse) = B::causal_attention(
            q.primitive.clone(),
            k.primitive.clone(),
            v.primitive.clone(),
            scale,
        );
        let nodes = [q.node.clone(), k.node.clone(), v.node.clone()];
        let prep = Backward::<B, 3>::prepare::<C>(Forward, nodes).compute_bound();
        let tracked = match prep.stateful() {
            OpsKind::Tracked(mut prep) => {
                let inputs = [&q, &k, &v].map(|x| prep.checkpoint(x));
                let state = ForwardState {
                    inputs,
                    out: out.clone(),
                    lse: lse.clone(),
                    scale,
                };
                prep.finish(state, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        };
        (tracked, Self::from_inner(lse))
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
        let gradients = B::causal_attention_backward(
            q.primitive.clone(),
            k.primitive.clone(),
            v.primitive.clone(),
            out.primitive.clone(),
            lse.primitive.clone(),
            grad_out.primitive.clone(),
            scale,
        );
        let nodes = [&q, &k, &v, &grad_out].map(|x| x.node.clone());
        let hub = Backward::<B, 4>::prepare::<C>(Hub, nodes).compute_bound();
        let OpsKind::Tracked(mut prep) = hub.stateful() else {
            return gradients.map(Self::from_inner);
        };
        let received: Received<B> = Arc::default();
        let state = HubState {
            inputs: [&q, &k, &v, &grad_out].map(|x| prep.checkpoint(x)),
            out: out.primitive,
            lse: lse.primitive,
            scale,
            received: received.clone(),
        };
        // The hub's own value is never read.
        let hub = prep.finish(state, gradients[0].clone());
        let mut index = 0..3;
        gradients.map(|gradient| {
            let port = Port(index.next().unwrap_or_default());
            let prep = Backward::<B, 1>::prepare::<C>(port, [hub.node.clone()]).compute_bound();
            match prep.stateful() {
                OpsKind::Tracked(prep) => prep.finish(received.clone(), gradient),
                OpsKind::UnTracked(prep) => prep.finish(gradient),
            }
        })
    }
}

#[derive(Debug)]
struct Forward;

#[derive(Clone, Debug)]
struct ForwardState<B: Backend> {
    /// q, k, v
    inputs: [NodeId; 3],
    out: FloatTensor<B>,
    lse: FloatTensor<B>,
    scale: f64,
}

impl<B: AttentionBackend> Backward<B, 3> for Forward {
    type State = ForwardState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let grad_out = grads.consume::<B>(&ops.node);
        let state = ops.state;
        let [q, k, v] = state
            .inputs
            .map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let gradients =
            B::causal_attention_backward(q, k, v, state.out, state.lse, grad_out, state.scale);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// The gradients that reached dq, dk and dv, shared by the ports and their hub.
type Received<B> = Arc<Mutex<[Option<FloatTensor<B>>; 3]>>;

#[derive(Debug)]
struct Port(usize);

impl<B: AttentionBackend> Backward<B, 1> for Port {
    type State = Received<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let mut received = ops.state.lock().unwrap_or_else(PoisonError::into_inner);
        received[self.0] = Some(gradient);
    }
}

#[derive(Debug)]
struct Hub;

#[derive(Clone, Debug)]
struct HubState<B: Backend> {
    /// q, k, v, grad_out
    inputs: [NodeId; 4],
    out: FloatTensor<B>,
    lse: FloatTensor<B>,
    scale: f64,
    received: Received<B>,
}

impl<B: AttentionBackend> Backward<B, 4> for Hub {
    type State = HubState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let state = ops.state;
        let [q, k, v, grad_out] = state
            .inputs
            .map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let received = {
            let mut received = state
                .received
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *received)
        };
        let [to_grad_out, to_q, to_k, to_v] = B::causal_attention_double_backward(
            q,
            k,
            v,
            state.out,
            state.lse,
            grad_out,
            received,
            state.scale,
        );
        for (parent, gradient) in ops.parents.into_iter().zip([to_q, to_k, to_v, to_grad_out]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}
