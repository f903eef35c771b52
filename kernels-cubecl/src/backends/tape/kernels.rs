//! The operations of this crate: as `Autodiff` has them.

use super::*;
use crate::{
    AttentionBackend, Direction, HeadBackend, LayerBackend, Nonlinearity, Norm, Precision,
    ScanBackend,
};

impl<B: AttentionBackend> AttentionBackend for Tape<B> {
    forward! { Autodiff<B> =>
        fn causal_attention(q: Float<B>, k: Float<B>, v: Float<B>, scale: f64) -> (Float<B>, Float<B>);
        fn causal_attention_backward(q: Float<B>, k: Float<B>, v: Float<B>, out: Float<B>, lse: Float<B>, grad_out: Float<B>, scale: f64, onto: [Option<Float<B>>; 3]) -> [Float<B>; 3];
        fn causal_attention_double_backward(q: Float<B>, k: Float<B>, v: Float<B>, out: Float<B>, lse: Float<B>, grad_out: Float<B>, cotangents: [Option<Float<B>>; 3], scale: f64) -> [Float<B>; 4];
    }
}

impl<B: LayerBackend> LayerBackend for Tape<B> {
    forward! { Autodiff<B> =>
        fn product(lhs: Float<B>, rhs: Float<B>) -> Float<B>;
        fn product_transposed(x: Float<B>, weight: Float<B>) -> Float<B>;
        fn add_product(to: Float<B>, lhs: Float<B>, rhs: Float<B>) -> Float<B>;
        fn add_product_transposed(to: Float<B>, x: Float<B>, weight: Float<B>) -> Float<B>;
        fn computes_in(device: &Device<Self>, precision: Precision) -> bool;
        fn has_own_product(device: &Device<Self>, dtype: DType) -> bool;
        fn token_losses(logits: Float<B>, targets: Int<B>) -> Float<B>;
        fn token_losses_backward(logits: Float<B>, targets: Int<B>, grad: Float<B>) -> Float<B>;
        fn norm(x: Float<B>, weight: Float<B>, by: Norm) -> Float<B>;
        fn norm_backward(x: Float<B>, weight: Float<B>, grad: Float<B>, by: Norm, wants_weight: bool, onto: [Option<Float<B>>; 2]) -> (Float<B>, Option<Float<B>>);
        fn activate(x: Float<B>, by: Nonlinearity) -> Float<B>;
        fn activate_backward(x: Float<B>, grad: Float<B>, by: Nonlinearity, onto: Option<Float<B>>) -> Float<B>;
        fn swiglu(x: Float<B>) -> Float<B>;
        fn swiglu_backward(x: Float<B>, grad: Float<B>, onto: Option<Float<B>>) -> Float<B>;
        fn side_by_side(parts: [Float<B>; 2]) -> Float<B>;
        fn halves(x: Float<B>) -> [Float<B>; 2];
        fn last_rows(x: Float<B>, count: usize) -> Float<B>;
        fn behind_zeros(x: Float<B>, rows: usize) -> Float<B>;
        fn ordered(x: Float<B>, rotation: Option<[Float<B>; 3]>) -> Float<B>;
        fn split_heads(x: Float<B>, rotation: Option<[Float<B>; 3]>, heads: [usize; 2]) -> [Float<B>; 3];
        fn join_heads(qkv: [Float<B>; 3], rotation: Option<[Float<B>; 3]>) -> Float<B>;
    }
}

impl<B: HeadBackend> HeadBackend for Tape<B> {
    forward! { Autodiff<B> =>
        fn head_losses(hidden: Float<B>, weight: Float<B>, targets: Int<B>, at_once: usize) -> Float<B>;
        fn head_losses_backward(hidden: Float<B>, weight: Float<B>, targets: Int<B>, grad: Float<B>, at_once: usize, wanted: [bool; 2]) -> [Option<Float<B>>; 2];
    }
}

impl<B: ScanBackend> ScanBackend for Tape<B> {
    forward! { Autodiff<B> =>
        fn linear_scan(a: Float<B>, b: Float<B>, direction: Direction) -> Float<B>;
    }
}
