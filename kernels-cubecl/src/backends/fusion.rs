//! `Fusion<B>`: attention is registered as custom operations of the stream, which `B` computes.

use std::fmt;
use std::marker::PhantomData;

use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{DType, Device, Shape};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};

use crate::reference::accumulation_dtype;
use crate::{AttentionBackend, HeadBackend, LayerBackend, Precision, ScanBackend};

type Handles<B> =
    HandleContainer<<<B as FusionBackend>::FusionRuntime as FusionRuntime>::FusionHandle>;

impl<B: FusionBackend + AttentionBackend> AttentionBackend for Fusion<B> {
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [batch, heads, len, _] = q.shape.dims();
        let (shape, dtype) = (q.shape.clone(), q.dtype);
        let lse = (
            Shape::new([batch, heads, len, 1]),
            accumulation_dtype(dtype),
        );
        let [out, lse] = register::<B, 2>(
            "causal_attention",
            vec![q, k, v],
            [(shape, dtype), lse],
            move |inputs| {
                let [q, k, v] = inputs.try_into().expect("the operation has three inputs");
                let (out, lse) = B::causal_attention(q, k, v, scale);
                vec![out, lse]
            },
        );
        (out, lse)
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
        let outputs = [&q, &k, &v].map(|x| (x.shape.clone(), x.dtype));
        register::<B, 3>(
            "causal_attention_backward",
            vec![q, k, v, out, lse, grad_out],
            outputs,
            move |inputs| {
                let [q, k, v, out, lse, grad_out] =
                    inputs.try_into().expect("the operation has six inputs");
                B::causal_attention_backward(q, k, v, out, lse, grad_out, scale).into()
            },
        )
    }

    fn causal_attention_double_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad_out: FloatTensor<Self>,
        cotangents: [Option<FloatTensor<Self>>; 3],
        scale: f64,
    ) -> [FloatTensor<Self>; 4] {
        let outputs = [&grad_out, &q, &k, &v].map(|x| (x.shape.clone(), x.dtype));
        let present = cotangents.each_ref().map(Option::is_some);
        let mut inputs = vec![q, k, v, out, lse, grad_out];
        inputs.extend(cotangents.into_iter().flatten());
        register::<B, 4>(
            "causal_attention_double_backward",
            inputs,
            outputs,
            move |mut inputs| {
                let mut given = inputs.split_off(6).into_iter();
                let cotangents = present.map(|present| present.then(|| given.next()).flatten());
                let [q, k, v, out, lse, grad_out] =
                    inputs.try_into().expect("the operation has six inputs");
                B::causal_attention_double_backward(q, k, v, out, lse, grad_out, cotangents, scale)
                    .into()
            },
        )
    }
}

impl<B: FusionBackend + LayerBackend> HeadBackend for Fusion<B> {}

/// Computed by the reference, whose tensor operations Burn fuses; but for products that Burn would compute in another precision.
impl<B: FusionBackend + LayerBackend> LayerBackend for Fusion<B> {
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = lhs.dtype;
        if !B::has_own_product(lhs.client.device(), dtype) {
            return <Self as FloatTensorOps<Self>>::float_matmul(lhs, rhs);
        }
        let mut shape = lhs.shape.clone();
        let last = shape.num_dims() - 1;
        shape[last] = rhs.shape[last];
        let outputs = [(shape, dtype)];
        let [out] = register::<B, 1>("product", vec![lhs, rhs], outputs, |inputs| {
            let [lhs, rhs] = inputs.try_into().expect("the operation has two inputs");
            vec![B::product(lhs, rhs)]
        });
        out
    }

    fn computes_in(device: &Device<Self>, precision: Precision) -> bool {
        B::computes_in(device, precision)
    }

    fn has_own_product(device: &Device<Self>, dtype: DType) -> bool {
        B::has_own_product(device, dtype)
    }
}

/// Computed by the reference, whose tensor operations Burn fuses.
impl<B: FusionBackend> ScanBackend for Fusion<B> {}

/// Registers `run` in the stream: an operation from `inputs` to outputs of the given shapes and types.
fn register<B: FusionBackend, const N: usize>(
    name: &'static str,
    inputs: Vec<FloatTensor<Fusion<B>>>,
    outputs: [(Shape, DType); N],
    run: impl Fn(Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> + Send + Sync + 'static,
) -> [FloatTensor<Fusion<B>>; N] {
    let client = inputs[0].client.clone();
    let streams = OperationStreams::with_inputs(&inputs);
    let outputs =
        outputs.map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype));
    let inputs: Vec<TensorIr> = inputs.into_iter().map(|x| x.into_ir()).collect();
    let desc = CustomOpIr::new(name, &inputs, &outputs);
    let op = Custom::<B, _> {
        desc: desc.clone(),
        run,
        backend: PhantomData,
    };
    let outputs = client.register(streams, OperationIr::Custom(desc), op);
    outputs
        .try_into()
        .unwrap_or_else(|_| unreachable!("the client returns one tensor for each output"))
}

/// A registered operation.
struct Custom<B, Run> {
    desc: CustomOpIr,
    run: Run,
    backend: PhantomData<B>,
}

impl<B, Run> fmt::Debug for Custom<B, Run> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.desc.fmt(f)
    }
}

impl<B, Run> Operation<B::FusionRuntime> for Custom<B, Run>
where
    B: FusionBackend,
    Run: Fn(Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> + Send + Sync,
{
    fn execute(&self, handles: &mut Handles<B>) {
        let inputs = self.desc.inputs.iter();
        let inputs = inputs.map(|x| handles.get_float_tensor::<B>(x)).collect();
        let outputs = (self.run)(inputs);
        for (ir, output) in self.desc.outputs.iter().zip(outputs) {
            handles.register_float_tensor::<B>(&ir.id, output);
        }
    }
}
