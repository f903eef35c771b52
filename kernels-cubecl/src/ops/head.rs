//! A head and its cross-entropy as one operation, and its first two derivatives, some rows at a time: the logits of all
//! rows never exist at once.
//!
//! With `z = h Wᵀ`, `p` its softmax, `e` the one-hot vector of the target and a gradient `g` of the losses:
//!
//! ```text
//! loss = −log p_t        dz = g (p − e)        dh = dz W        dW = dzᵀ h
//! ```
//!
//! and, for cotangents `a` of `dh` and `c` of `dW`, with `u = a Wᵀ + h cᵀ`:
//!
//! ```text
//! to g = ⟨u, p − e⟩      s = g p ∘ (u − ⟨u, p⟩)      to h = s W + dz c      to W = sᵀ h + dzᵀ a
//! ```
//!
//! Logits are computed again in each of the three, by products of the backend's.

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor};

use super::layers::LayerBackend;
use crate::{lift, lower};

/// A backend that computes a head's cross-entropies and their first two derivatives without the logits of all rows.
///
/// The provided methods use the products and cross-entropies of [`LayerBackend`]. The methods do not check their
/// arguments; [`head_losses`] does.
pub trait HeadBackend: LayerBackend {
    /// `−log p` of each row's target by a head: hidden `[rows, d]`, weight `[vocab_size, d]`, targets `[rows]` → `[rows]`.
    /// The logits of `at_once` rows exist at a time, here and in the derivatives.
    fn head_losses(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        at_once: usize,
    ) -> FloatTensor<Self> {
        lower(head_at::<Self>(hidden, weight, targets, at_once).losses())
    }

    /// The gradients to `[hidden, weight]` of `⟨grad, head_losses(hidden, weight)⟩`, those that are `wanted`.
    fn head_losses_backward(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
        at_once: usize,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2] {
        let at = head_at::<Self>(hidden, weight, targets, at_once);
        at.backward(lift(grad), wanted).map(|x| x.map(lower))
    }

    /// The gradients to `grad` and to `[hidden, weight]`, those that are `wanted`, of `⟨a, dhidden⟩ + ⟨c, dweight⟩`, where
    /// `cotangents = [a, c]` and an absent cotangent counts as zero.
    fn head_losses_double_backward(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
        cotangents: [Option<FloatTensor<Self>>; 2],
        at_once: usize,
        wanted: [bool; 2],
    ) -> (FloatTensor<Self>, [Option<FloatTensor<Self>>; 2]) {
        let at = head_at::<Self>(hidden, weight, targets, at_once);
        let cotangents = cotangents.map(|x| x.map(lift));
        let (to_grad, to_inputs) = at.double_backward(lift(grad), cotangents, wanted);
        (lower(to_grad), to_inputs.map(|x| x.map(lower)))
    }
}

/// [`token_losses`](crate::token_losses) of the logits `hidden · weightᵀ`, of which `at_once` rows exist at a time, in the derivatives too:
/// memory grows with `at_once · vocab_size`, not with `batch · seq · vocab_size`. Each derivative computes the logits
/// again.
///
/// # Shapes
///
/// - `hidden`: `[batch, seq, d]`, `weight`: `[vocab_size, d]`
/// - `targets` and output: `[batch, seq]`; targets are below `vocab_size`, which is not checked
///
/// # Panics
///
/// If the shapes do not fit.
pub fn head_losses<B: HeadBackend>(
    hidden: Tensor<B, 3>,
    weight: Tensor<B, 2>,
    targets: Tensor<B, 2, Int>,
    at_once: usize,
) -> Tensor<B, 2> {
    let ([batch, seq, d], [_, width]) = (hidden.dims(), weight.dims());
    assert!(
        targets.dims() == [batch, seq] && d == width,
        "head_losses: the shapes do not fit: hidden {:?}, weight {:?}, targets {:?}",
        hidden.dims(),
        weight.dims(),
        targets.dims()
    );
    let rows = batch * seq;
    if rows == 0 {
        return Tensor::zeros([batch, seq], (&hidden.device(), hidden.dtype()));
    }
    let losses: Tensor<B, 1> = lift(B::head_losses(
        lower(hidden.reshape([rows, d])),
        lower(weight),
        targets.reshape([rows]).into_primitive(),
        at_once,
    ));
    losses.reshape([batch, seq])
}

fn head_at<B: LayerBackend>(
    hidden: FloatTensor<B>,
    weight: FloatTensor<B>,
    targets: IntTensor<B>,
    at_once: usize,
) -> Point<B> {
    Point {
        hidden: lift(hidden),
        weight: lift(weight),
        targets: Tensor::from_primitive(targets),
        at_once,
    }
}

/// Where the derivatives are taken.
#[derive(Debug)]
struct Point<B: Backend> {
    /// `[rows, d]`
    hidden: Tensor<B, 2>,
    /// `[vocab_size, d]`
    weight: Tensor<B, 2>,
    /// `[rows]`
    targets: Tensor<B, 1, Int>,
    /// Rows whose logits exist at once.
    at_once: usize,
}

/// Some rows of a [`Point`].
struct Rows<B: Backend> {
    hidden: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    range: Range<usize>,
}

impl<B: LayerBackend> Point<B> {
    fn parts(&self) -> impl Iterator<Item = Rows<B>> {
        let rows = self.hidden.dims()[0];
        let at_once = self.at_once.max(1);
        (0..rows).step_by(at_once).map(move |start| {
            let range = start..rows.min(start + at_once);
            Rows {
                hidden: some(&self.hidden, &range),
                targets: self.targets.clone().slice([range.clone()]),
                range,
            }
        })
    }

    /// `x Wᵀ`
    fn by_weight(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        product(x, self.weight.clone().transpose())
    }

    /// `[rows]`
    fn losses(self) -> Tensor<B, 1> {
        let losses = self.parts().map(|part| {
            let logits = lower(self.by_weight(part.hidden));
            lift(B::token_losses(logits, part.targets.into_primitive()))
        });
        join(losses.collect())
    }

    /// The gradients to `[hidden, weight]`, those that are wanted.
    fn backward(self, grad: Tensor<B, 1>, wanted: [bool; 2]) -> [Option<Tensor<B, 2>>; 2] {
        let (mut to_hidden, mut to_weight) = (Vec::new(), None);
        for part in self.parts() {
            let logits = lower(self.by_weight(part.hidden.clone()));
            let grad = lower(grad.clone().slice([part.range]));
            let targets = part.targets.into_primitive();
            let to_logits: Tensor<B, 2> = lift(B::token_losses_backward(logits, targets, grad));
            if wanted[0] {
                to_hidden.push(product(to_logits.clone(), self.weight.clone()));
            }
            if wanted[1] {
                add_product(&mut to_weight, to_logits.transpose(), part.hidden);
            }
        }
        [wanted[0].then(|| join(to_hidden)), to_weight]
    }

    /// The gradients to `grad` and to `[hidden, weight]`, those that are wanted, of `⟨a, dh⟩ + ⟨c, dW⟩`, where an absent
    /// cotangent counts as zero.
    fn double_backward(
        self,
        grad: Tensor<B, 1>,
        [a, c]: [Option<Tensor<B, 2>>; 2],
        wanted: [bool; 2],
    ) -> (Tensor<B, 1>, [Option<Tensor<B, 2>>; 2]) {
        let (mut to_grad, mut to_hidden, mut to_weight) = (Vec::new(), Vec::new(), None);
        for part in self.parts() {
            let a = a.as_ref().map(|a| some(a, &part.range));
            let mut moved = a.clone().map(|a| self.by_weight(a));
            if let Some(c) = &c {
                add_product(&mut moved, part.hidden.clone(), c.clone().transpose());
            }
            let logits: Tensor<B, 2> = self.by_weight(part.hidden.clone());
            let Some(moved) = moved else {
                // No cotangent at all.
                to_grad.push(grad.clone().slice([part.range]).zeros_like());
                to_hidden.push(part.hidden.zeros_like());
                continue;
            };
            let (targets, grad) = (part.targets, grad.clone().slice([part.range]));
            let [part_to_grad, to_logits] = B::token_losses_double_backward(
                lower(logits.clone()),
                targets.clone().into_primitive(),
                lower(grad.clone()),
                lower(moved),
            );
            to_grad.push(lift(part_to_grad));
            let to_logits: Tensor<B, 2> = lift(to_logits);
            // dz, where a cotangent is multiplied by it.
            let first = (wanted[0] && c.is_some()) || (wanted[1] && a.is_some());
            let first = first.then(|| -> Tensor<B, 2> {
                let targets = targets.into_primitive();
                lift(B::token_losses_backward(
                    lower(logits),
                    targets,
                    lower(grad),
                ))
            });
            if wanted[0] {
                let mut sum = Some(product(to_logits.clone(), self.weight.clone()));
                if let (Some(first), Some(c)) = (&first, &c) {
                    add_product(&mut sum, first.clone(), c.clone());
                }
                to_hidden.extend(sum);
            }
            if wanted[1] {
                add_product(&mut to_weight, to_logits.transpose(), part.hidden);
                if let (Some(first), Some(a)) = (first, a) {
                    add_product(&mut to_weight, first.transpose(), a);
                }
            }
        }
        let to_weight = wanted[1].then(|| to_weight.unwrap_or_else(|| self.weight.zeros_like()));
        let to_hidden = wanted[0].then(|| join(to_hidden));
        (join(to_grad), [to_hidden, to_weight])
    }
}

fn some<B: Backend>(x: &Tensor<B, 2>, rows: &Range<usize>) -> Tensor<B, 2> {
    x.clone().slice([rows.clone()])
}

fn join<B: Backend, const D: usize>(mut parts: Vec<Tensor<B, D>>) -> Tensor<B, D> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 0),
    }
}

fn product<B: LayerBackend>(lhs: Tensor<B, 2>, rhs: Tensor<B, 2>) -> Tensor<B, 2> {
    lift(B::product(lower(lhs), lower(rhs)))
}

/// Adds a product to a sum that may be empty yet.
fn add_product<B: LayerBackend>(
    sum: &mut Option<Tensor<B, 2>>,
    lhs: Tensor<B, 2>,
    rhs: Tensor<B, 2>,
) {
    *sum = Some(match sum.take() {
        Some(sum) => lift(B::add_product(lower(sum), lower(lhs), lower(rhs))),
        None => product(lhs, rhs),
    });
}
