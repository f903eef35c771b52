//! `Fusion<B>`: attention and the layers are registered as custom operations of the stream, which `B` computes with the
//! precision and the code of attention that were chosen when they were registered.

use std::fmt;
use std::marker::PhantomData;

use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor};
use burn::tensor::{DType, Device, Shape};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime, FusionTensor};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, TensorIr};

use crate::ops::selection::registered::Choices;
use crate::reference::accumulation_dtype;
use crate::{
    AdamWStep, AttentionBackend, HeadBackend, LayerBackend, Nonlinearity, Norm, Precision,
    ScanBackend,
};

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
        let [out, lse] = register::<B, _, 2>(
            "causal_attention",
            [q, k, v],
            [(shape, dtype), lse],
            move |[q, k, v]| {
                let (out, lse) = B::causal_attention(q, k, v, scale);
                [out, lse]
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
        onto: [Option<FloatTensor<Self>>; 3],
    ) -> [FloatTensor<Self>; 3] {
        let outputs = [&q, &k, &v].map(like);
        let inputs = [q, k, v, out, lse, grad_out].map(Some);
        let inputs = inputs.into_iter().chain(onto);
        register_some::<B, 3>(
            "causal_attention_backward",
            inputs,
            outputs,
            move |inputs| {
                let ([q, k, v, out, lse, grad_out], onto) = (inputs.floats(), inputs.given());
                B::causal_attention_backward(q, k, v, out, lse, grad_out, scale, onto)
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
        let outputs = [&grad_out, &q, &k, &v].map(like);
        let inputs = [q, k, v, out, lse, grad_out].map(Some);
        let inputs = inputs.into_iter().chain(cotangents);
        let name = "causal_attention_double_backward";
        register_some::<B, 4>(name, inputs, outputs, move |inputs| {
            let ([q, k, v, out, lse, grad_out], cotangents) = (inputs.floats(), inputs.given());
            B::causal_attention_double_backward(q, k, v, out, lse, grad_out, cotangents, scale)
        })
    }
}

impl<B: FusionBackend + LayerBackend> HeadBackend for Fusion<B> {}

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
        let [out] = register::<B, _, 1>("product", [lhs, rhs], outputs, |[lhs, rhs]| {
            [B::product(lhs, rhs)]
        });
        out
    }

    fn add_product(
        to: FloatTensor<Self>,
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let outputs = [like(&to)];
        let [out] =
            register::<B, _, 1>("add_product", [to, lhs, rhs], outputs, |[to, lhs, rhs]| {
                [B::add_product(to, lhs, rhs)]
            });
        out
    }

    fn computes_in(device: &Device<Self>, precision: Precision) -> bool {
        B::computes_in(device, precision)
    }

    fn has_own_product(device: &Device<Self>, dtype: DType) -> bool {
        B::has_own_product(device, dtype)
    }

    fn token_losses(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        let outputs = [(Shape::new([logits.shape[0]]), logits.dtype)];
        let inputs = [logits, targets].map(Some);
        let [losses] = register_some::<B, 1>("token_losses", inputs, outputs, |inputs| {
            let ([logits], targets) = (inputs.floats(), inputs.ids());
            [B::token_losses(logits, targets)]
        });
        losses
    }

    fn token_losses_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let outputs = [like(&logits)];
        let name = "token_losses_backward";
        let inputs = [logits, targets, grad].map(Some);
        let [to_logits] = register_some::<B, 1>(name, inputs, outputs, |inputs| {
            let ([logits], targets) = (inputs.floats(), inputs.ids());
            let [grad] = inputs.floats();
            [B::token_losses_backward(logits, targets, grad)]
        });
        to_logits
    }

    fn token_losses_double_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
        a: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        let outputs = [like(&grad), like(&logits)];
        let name = "token_losses_double_backward";
        let inputs = [logits, targets, grad, a].map(Some);
        register_some::<B, 2>(name, inputs, outputs, |inputs| {
            let ([logits], targets) = (inputs.floats(), inputs.ids());
            let [grad, a] = inputs.floats();
            B::token_losses_double_backward(logits, targets, grad, a)
        })
    }

    fn norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, by: Norm) -> FloatTensor<Self> {
        let outputs = [like(&x)];
        let [y] = register::<B, _, 1>("norm", [x, weight], outputs, move |[x, weight]| {
            [B::norm(x, weight, by)]
        });
        y
    }

    fn norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        by: Norm,
        wants_weight: bool,
        onto: [Option<FloatTensor<Self>>; 2],
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let name = "norm_backward";
        let (of_x, of_weight) = (like(&x), like(&weight));
        let inputs = [x, weight, grad].map(Some).into_iter().chain(onto);
        let run = move |inputs: &mut Inputs<'_, B>| {
            let ([x, weight, grad], onto) = (inputs.floats(), inputs.given());
            B::norm_backward(x, weight, grad, by, wants_weight, onto)
        };
        if !wants_weight {
            let [dx] = register_some::<B, 1>(name, inputs, [of_x], move |inputs| [run(inputs).0]);
            return (dx, None);
        }
        let outputs = [of_x, of_weight];
        let [dx, dw] = register_some::<B, 2>(name, inputs, outputs, move |inputs| {
            let (dx, dw) = run(inputs);
            [dx, dw.expect("the gradient to the weight is wanted")]
        });
        (dx, Some(dw))
    }

    fn norm_double_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        [a, c]: [Option<FloatTensor<Self>>; 2],
        by: Norm,
        onto_weight: Option<FloatTensor<Self>>,
    ) -> [FloatTensor<Self>; 3] {
        let outputs = [like(&grad), like(&x), like(&weight)];
        let inputs = [Some(x), Some(weight), Some(grad), a, c, onto_weight];
        let name = "norm_double_backward";
        register_some::<B, 3>(name, inputs, outputs, move |inputs| {
            let ([x, weight, grad], cotangents) = (inputs.floats(), inputs.given());
            let [onto_weight] = inputs.given();
            B::norm_double_backward(x, weight, grad, cotangents, by, onto_weight)
        })
    }

    fn swiglu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let mut shape = x.shape.clone();
        shape[2] /= 2;
        let outputs = [(shape, x.dtype)];
        let [y] = register::<B, _, 1>("swiglu", [x], outputs, |[x]| [B::swiglu(x)]);
        y
    }

    fn swiglu_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let outputs = [like(&x)];
        let inputs = [Some(x), Some(grad), onto];
        let [dx] = register_some::<B, 1>("swiglu_backward", inputs, outputs, move |inputs| {
            let ([x, grad], [onto]) = (inputs.floats(), inputs.given());
            [B::swiglu_backward(x, grad, onto)]
        });
        dx
    }

    fn swiglu_double_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        a: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        let outputs = [like(&grad), like(&x)];
        let name = "swiglu_double_backward";
        register::<B, _, 2>(name, [x, grad, a], outputs, |[x, grad, a]| {
            B::swiglu_double_backward(x, grad, a)
        })
    }

    fn activate(x: FloatTensor<Self>, by: Nonlinearity) -> FloatTensor<Self> {
        let outputs = [like(&x)];
        let [y] = register::<B, _, 1>("activate", [x], outputs, move |[x]| [B::activate(x, by)]);
        y
    }

    fn activate_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        by: Nonlinearity,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let outputs = [like(&x)];
        let inputs = [Some(x), Some(grad), onto];
        let [dx] = register_some::<B, 1>("activate_backward", inputs, outputs, move |inputs| {
            let ([x, grad], [onto]) = (inputs.floats(), inputs.given());
            [B::activate_backward(x, grad, by, onto)]
        });
        dx
    }

    fn activate_double_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        a: FloatTensor<Self>,
        by: Nonlinearity,
    ) -> [FloatTensor<Self>; 2] {
        let outputs = [like(&grad), like(&x)];
        let name = "activate_double_backward";
        register::<B, _, 2>(name, [x, grad, a], outputs, move |[x, grad, a]| {
            B::activate_double_backward(x, grad, a, by)
        })
    }

    fn last_rows(x: FloatTensor<Self>, count: usize) -> FloatTensor<Self> {
        let outputs = [with_rows(&x, count)];
        let [y] = register::<B, _, 1>("last_rows", [x], outputs, move |[x]| {
            [B::last_rows(x, count)]
        });
        y
    }

    fn behind_zeros(x: FloatTensor<Self>, rows: usize) -> FloatTensor<Self> {
        let outputs = [with_rows(&x, rows)];
        let [y] = register::<B, _, 1>("behind_zeros", [x], outputs, move |[x]| {
            [B::behind_zeros(x, rows)]
        });
        y
    }

    fn ordered(
        x: FloatTensor<Self>,
        rotation: Option<[FloatTensor<Self>; 3]>,
    ) -> FloatTensor<Self> {
        let outputs = [like(&x)];
        let inputs = [Some(x)].into_iter().chain(each(rotation));
        let [y] = register_some::<B, 1>("ordered", inputs, outputs, move |inputs| {
            let ([x], rotation) = (inputs.floats(), inputs.rotation());
            [B::ordered(x, rotation)]
        });
        y
    }

    fn split_heads(
        x: FloatTensor<Self>,
        rotation: Option<[FloatTensor<Self>; 3]>,
        heads: [usize; 2],
    ) -> [FloatTensor<Self>; 3] {
        let [batch, seq, width] = x.shape.dims();
        let ([n_heads, n_kv_heads], dtype) = (heads, x.dtype);
        let head_dim = width / (n_heads + 2 * n_kv_heads);
        let outputs = [n_heads, n_kv_heads, n_kv_heads]
            .map(|heads| (Shape::new([batch, seq, heads, head_dim]), dtype));
        let inputs = [Some(x)].into_iter().chain(each(rotation));
        register_some::<B, 3>("split_heads", inputs, outputs, move |inputs| {
            let ([x], rotation) = (inputs.floats(), inputs.rotation());
            B::split_heads(x, rotation, heads)
        })
    }

    fn join_heads(
        qkv: [FloatTensor<Self>; 3],
        rotation: Option<[FloatTensor<Self>; 3]>,
    ) -> FloatTensor<Self> {
        let ([batch, seq, ..], dtype) = (qkv[0].shape.dims::<4>(), qkv[0].dtype);
        let width = qkv.iter().map(|x| x.shape[2] * x.shape[3]).sum();
        let outputs = [(Shape::new([batch, seq, width]), dtype)];
        let inputs = qkv.map(Some).into_iter().chain(each(rotation));
        let [x] = register_some::<B, 1>("join_heads", inputs, outputs, move |inputs| {
            let (qkv, rotation) = (inputs.floats(), inputs.rotation());
            [B::join_heads(qkv, rotation)]
        });
        x
    }

    fn adamw(
        step: &AdamWStep,
        [x, m, v]: [FloatTensor<Self>; 3],
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3] {
        let outputs = [like(&x), like(&m), like(&v)];
        let step = *step;
        register::<B, _, 3>("adamw", [x, m, v, grad], outputs, move |[x, m, v, grad]| {
            B::adamw(&step, [x, m, v], grad)
        })
    }
}

/// The shape and type of an output that are those of an input.
fn like<R: FusionRuntime>(x: &FusionTensor<R>) -> (Shape, DType) {
    (x.shape.clone(), x.dtype)
}

/// The same with so many rows for each sample.
fn with_rows<R: FusionRuntime>(x: &FusionTensor<R>, rows: usize) -> (Shape, DType) {
    let mut shape = x.shape.clone();
    shape[1] = rows;
    (shape, x.dtype)
}

/// The tables of a rotation, or as many that are not there.
fn each<T>(rotation: Option<[T; 3]>) -> [Option<T>; 3] {
    rotation.map_or([const { None }; 3], |tables| tables.map(Some))
}

/// Computed by the reference, whose tensor operations Burn fuses.
impl<B: FusionBackend> ScanBackend for Fusion<B> {}

/// Registers `run` in the stream: an operation from `inputs` to outputs of the given shapes and types.
fn register<B: FusionBackend, const I: usize, const O: usize>(
    name: &'static str,
    inputs: [FloatTensor<Fusion<B>>; I],
    outputs: [(Shape, DType); O],
    run: impl Fn([FloatTensor<B>; I]) -> [FloatTensor<B>; O] + Send + Sync + 'static,
) -> [FloatTensor<Fusion<B>>; O] {
    let inputs = inputs.map(Some);
    register_some::<B, O>(name, inputs, outputs, move |inputs| run(inputs.floats()))
}

/// The same for an operation with token ids among its inputs, or with inputs that need not be there. It takes them in the order in
/// which they are registered.
fn register_some<B: FusionBackend, const O: usize>(
    name: &'static str,
    inputs: impl IntoIterator<Item = Option<FusionTensor<B::FusionRuntime>>>,
    outputs: [(Shape, DType); O],
    run: impl Fn(&mut Inputs<'_, B>) -> [FloatTensor<B>; O] + Send + Sync + 'static,
) -> [FloatTensor<Fusion<B>>; O] {
    let inputs: Vec<_> = inputs.into_iter().collect();
    let given = inputs.iter().map(Option::is_some).collect();
    let inputs: Vec<_> = inputs.into_iter().flatten().collect();
    let client = inputs[0].client.clone();
    let streams = OperationStreams::with_inputs(&inputs);
    let outputs =
        outputs.map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype));
    let inputs: Vec<TensorIr> = inputs.into_iter().map(|x| x.into_ir()).collect();
    let desc = CustomOpIr::new(name, &inputs, &outputs);
    let op = Custom::<B, _> {
        desc: desc.clone(),
        given,
        choices: Choices::now(),
        run: move |inputs: &mut Inputs<'_, B>| Vec::from(run(inputs)),
        backend: PhantomData,
    };
    let outputs = client.register(streams, OperationIr::Custom(desc), op);
    outputs
        .try_into()
        .unwrap_or_else(|_| unreachable!("the client returns one tensor for each output"))
}

/// The inputs of a registered operation, one after another.
struct Inputs<'a, B: FusionBackend> {
    given: std::slice::Iter<'a, bool>,
    tensors: std::slice::Iter<'a, TensorIr>,
    handles: &'a mut Handles<B>,
}

impl<B: FusionBackend> Inputs<'_, B> {
    /// The next inputs, of which some may not be there.
    fn given<const N: usize>(&mut self) -> [Option<FloatTensor<B>>; N] {
        std::array::from_fn(|_| {
            let is_given = self.given.next() == Some(&true);
            let tensor = is_given.then(|| self.tensors.next()).flatten()?;
            Some(self.handles.get_float_tensor::<B>(tensor))
        })
    }

    fn floats<const N: usize>(&mut self) -> [FloatTensor<B>; N] {
        self.given().map(|x| x.expect("the input was registered"))
    }

    fn rotation(&mut self) -> Option<[FloatTensor<B>; 3]> {
        let [cos, sin, turn] = self.given();
        Some([cos?, sin?, turn?])
    }

    fn ids(&mut self) -> IntTensor<B> {
        self.given.next();
        let ids = self.tensors.next().expect("the ids were registered");
        self.handles.get_int_tensor::<B>(ids)
    }
}

/// A registered operation.
struct Custom<B, Run> {
    desc: CustomOpIr,
    /// Of all inputs, which there are.
    given: Vec<bool>,
    choices: Choices,
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
    Run: Fn(&mut Inputs<'_, B>) -> Vec<FloatTensor<B>> + Send + Sync,
{
    fn execute(&self, handles: &mut Handles<B>) {
        let mut inputs = Inputs {
            given: self.given.iter(),
            tensors: self.desc.inputs.iter(),
            handles,
        };
        let outputs = self.choices.during(|| (self.run)(&mut inputs));
        for (ir, output) in self.desc.outputs.iter().zip(outputs) {
            handles.register_float_tensor::<B>(&ir.id, output);
        }
    }
}
