//! The autodiff implementation of causal attention.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;

use super::{Operation, Point, all, backward, forward};
use crate::AttentionBackend;
use crate::reference::primitives::{self, each_added};

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
        onto: [Option<FloatTensor<B>>; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        let ([q, k, v], [out, lse]) = (at.inputs, pair(at.saved));
        B::causal_attention_backward(q, k, v, out, lse, grad, self.scale, onto).map(Some)
    }

    fn double_backward(
        self,
        at: Point<B, 3>,
        grad: FloatTensor<B>,
        cotangents: [Option<FloatTensor<B>>; 3],
        _: [bool; 3],
        onto: [Option<FloatTensor<B>>; 3],
    ) -> (FloatTensor<B>, [Option<FloatTensor<B>>; 3]) {
        let ([q, k, v], [out, lse]) = (at.inputs, pair(at.saved));
        let [to_grad, to_q, to_k, to_v] =
            B::causal_attention_double_backward(q, k, v, out, lse, grad, cotangents, self.scale);
        let to_inputs = each_added(onto, [to_q, to_k, to_v], B::float_add);
        (to_grad, to_inputs.map(Some))
    }
}

fn pair<T>(saved: Vec<T>) -> [T; 2] {
    let Ok(pair) = saved.try_into() else {
        unreachable!("the forward saves two tensors")
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
        onto: [Option<FloatTensor<Self>>; 3],
    ) -> [FloatTensor<Self>; 3] {
        let saved = vec![out.primitive, lse.primitive];
        let operation = CausalAttention { scale };
        all(backward::<B, C, 3, 7>(
            operation,
            [q, k, v],
            saved,
            grad_out,
            [true; 3],
            onto,
        ))
    }

    /// What the forward saved has no derivatives: a third one needs `lse` as a function of the inputs.
    fn causal_attention_double_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        grad_out: FloatTensor<Self>,
        cotangents: [Option<FloatTensor<Self>>; 3],
        scale: f64,
    ) -> [FloatTensor<Self>; 4] {
        let inputs = [q, k, v];
        let product = Self::float_matmul;
        let (_, lse) = primitives::causal_attention::<Self>(inputs.clone(), scale, product);
        primitives::causal_attention_double_backward::<Self>(
            inputs, lse, grad_out, cotangents, scale, product,
        )
    }
}
