//! `Tape<B>`: `Autodiff<B>`, made for WRITE.
//!
//! Burn's [`Autodiff`] records a linear layer, an embedding, a pooling and so on as one operation whose gradient is another
//! operation of the backend below. `Autodiff<Autodiff<B>>` cannot differentiate these gradients again, and panics or, for
//! max pooling, is wrong. On a `Tape` they are compositions of tensor operations, which can be differentiated any number of
//! times ([`modules`]); what cannot be composed says so before it computes anything.
//!
//! It is also in training only if `B` is, so that dropout and batch normalisation of a model do at test time what
//! they are to do then, although WRITE takes gradients. (What batch normalisation sees in WRITE's training is not in its running
//! statistics: the model on the tape is a copy.)
//!
//! Tensors, gradients and graphs are those of `Autodiff<B>`.

mod kernels;
mod modules;
mod tensors;

use std::marker::PhantomData;

use burn::tensor::backend::{AutodiffBackend, Backend, BackendTypes, ExecutionError};
use burn::tensor::ops::{BoolTensor, FloatTensor, IntTensor, QuantizedTensor};
use burn::tensor::{
    BoolDType, DType, Device, Distribution, FloatDType, IndexingUpdateOp, IntDType, Shape, Slice,
    TensorData, TensorMetadata,
};
use burn_autodiff::Autodiff;
use burn_autodiff::grads::Gradients;
use burn_backend::quantization::{QuantScheme, QuantizationParametersPrimitive};
use burn_backend::{DTypeUsageSet, Scalar};

/// A method for each line, which calls the backend's in front of the arrow.
macro_rules! forward {
    ($to:ty => $(fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $out:ty;)*) => {
        $(fn $name($($argument: $type),*) -> $out {
            <$to>::$name($($argument),*)
        })*
    };
}
use forward;

/// The tape that WRITE records its gradients on: [`Autodiff<B>`](burn::backend::Autodiff) on which the modules of `burn::nn`
/// differentiate as often as their tensor operations, and which is in training only if `B` is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tape<B>(PhantomData<B>);

type Float<B> = FloatTensor<Autodiff<B>>;
type Int<B> = IntTensor<B>;
type Bool<B> = BoolTensor<B>;
type Quantized<B> = QuantizedTensor<B>;

impl<B: Backend> BackendTypes for Tape<B> {
    type Device = B::Device;
    type FloatTensorPrimitive = Float<B>;
    type FloatElem = B::FloatElem;
    type IntTensorPrimitive = Int<B>;
    type IntElem = B::IntElem;
    type BoolTensorPrimitive = Bool<B>;
    type BoolElem = B::BoolElem;
    type QuantizedTensorPrimitive = Quantized<B>;
}

impl<B: Backend> Backend for Tape<B> {
    fn ad_enabled(device: &Device<B>) -> bool {
        B::ad_enabled(device)
    }

    fn name(device: &Device<B>) -> String {
        format!("tape<{}>", B::name(device))
    }

    fn memory_persistent_allocations<
        Output: Send,
        Input: Send,
        Func: Fn(Input) -> Output + Send,
    >(
        device: &Device<B>,
        input: Input,
        func: Func,
    ) -> Output {
        B::memory_persistent_allocations(device, input, func)
    }

    fn staging<'a, Iter: Iterator<Item = &'a mut TensorData>>(data: Iter, device: &Device<B>) {
        B::staging(data, device);
    }

    forward! { B =>
        fn seed(device: &Device<B>, seed: u64) -> ();
        fn sync(device: &Device<B>) -> Result<(), ExecutionError>;
        fn memory_cleanup(device: &Device<B>) -> ();
        fn supports_dtype(device: &Device<B>, dtype: DType) -> bool;
        fn dtype_usage(device: &Device<B>, dtype: DType) -> DTypeUsageSet;
        fn device_count(type_id: u16) -> usize;
    }
}

impl<B: Backend> AutodiffBackend for Tape<B> {
    type InnerBackend = B;
    type Gradients = Gradients;

    forward! { Autodiff<B> =>
        fn backward(tensor: Float<B>) -> Gradients;
        fn grad(tensor: &Float<B>, grads: &Gradients) -> Option<FloatTensor<B>>;
        fn grad_remove(tensor: &Float<B>, grads: &mut Gradients) -> Option<FloatTensor<B>>;
        fn grad_replace(tensor: &Float<B>, grads: &mut Gradients, grad: FloatTensor<B>) -> ();
        fn inner(tensor: Float<B>) -> FloatTensor<B>;
        fn int_inner(tensor: Int<B>) -> Int<B>;
        fn bool_inner(tensor: Bool<B>) -> Bool<B>;
        fn q_inner(tensor: Quantized<B>) -> Quantized<B>;
        fn from_inner(tensor: FloatTensor<B>) -> Float<B>;
        fn int_from_inner(tensor: Int<B>) -> Int<B>;
        fn bool_from_inner(tensor: Bool<B>) -> Bool<B>;
        fn q_from_inner(tensor: Quantized<B>) -> Quantized<B>;
    }
}
