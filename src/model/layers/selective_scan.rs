use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use gradmem_kernels::{KernelBackend, linear_scan};

/// The selective scan: `C_t h_t`, and the last state `[batch, 1, d_inner, N]`.
///
/// # Shapes
///
/// - `x`, `step` (Δ) and output: `[batch, seq, d_inner]`
/// - `b`, `c`: `[batch, seq, N]`
/// - `log_a`: `ln(−A)`, `[d_inner, N]`
/// - `past`: the state before the first token, `[batch, 1, d_inner, N]`
pub(crate) fn selective_scan<B: KernelBackend>(
    x: Tensor<B, 3>,
    step: Tensor<B, 3>,
    b: Tensor<B, 3>,
    c: Tensor<B, 3>,
    log_a: Tensor<B, 2>,
    past: Option<Tensor<B, 4>>,
) -> (Tensor<B, 3>, Tensor<B, 4>) {
    let [batch, seq, inner] = x.dims();
    let n = b.dims()[2];
    let dtype = x.dtype();
    // Half precision is too coarse for products of many factors.
    let wide = match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    };
    let [x, step, b, c] = [x, step, b, c].map(|t| t.cast(wide));
    let a = log_a.cast(wide).exp().neg();
    let decay = (step.clone().unsqueeze_dim::<4>(3) * a.unsqueeze()).exp();
    let feed = (step * x).unsqueeze_dim::<4>(3) * b.unsqueeze_dim(2);
    let feed = match past {
        None => feed,
        Some(past) => {
            let first =
                feed.clone().narrow(1, 0, 1) + decay.clone().narrow(1, 0, 1) * past.cast(wide);
            match seq {
                1 => first,
                _ => Tensor::cat(vec![first, feed.narrow(1, 1, seq - 1)], 1),
            }
        }
    };
    let flat = [batch, seq, inner * n];
    let h = linear_scan(decay.reshape(flat), feed.reshape(flat));
    let h = h.reshape([batch, seq, inner, n]);
    let y = (h.clone() * c.unsqueeze_dim(2)).sum_dim(3);
    (
        y.reshape([batch, seq, inner]).cast(dtype),
        h.narrow(1, seq - 1, 1),
    )
}

/// `ln(1 + eˣ)`; x itself above 20.
pub(crate) fn softplus<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let large = x.clone().greater_elem(20.0);
    let small = x.clone().mask_fill(large.clone(), 0.0);
    small.exp().log1p().mask_where(large, x)
}
