//! Can newer Burn differentiate a gradient? A tensor cannot; the primitives of `Autodiff<Autodiff<B>>` can.

use burn::tensor::{Device, Tensor, TensorData};
use burn_autodiff::Autodiff;
use burn_backend::{AutodiffBackend, Backend, ops::FloatTensorOps, tensor::FloatTensor};
use burn_flex::Flex;

type Once = Autodiff<Flex>;
type Twice = Autodiff<Once>;

fn main() {
    // y = x³ at 3: the slope is 27, its slope 18.
    let device = Device::default().autodiff().autodiff();
    let x = Tensor::<1>::from_data([3.0_f32], &device).require_grad();
    let y = x.clone() * x.clone() * x.clone();
    let slope = x.grad(&y.backward()).expect("a gradient");
    println!(
        "tensors: the slope can be differentiated again: {}",
        slope.is_autodiff()
    );

    let device = Default::default();
    let outer = Once::float_from_data(TensorData::from([3.0_f32]), &device);
    let outer = Once::float_set_require_grad(outer, true);
    let inner = Twice::float_set_require_grad(Twice::from_inner(outer.clone()), true);
    let y = Twice::float_mul(
        Twice::float_mul(inner.clone(), inner.clone()),
        inner.clone(),
    );
    let slope = Twice::grad(&inner, &Twice::backward(y)).expect("a gradient");
    let second = Once::grad(&outer, &Once::backward(slope.clone())).expect("a second one");
    let [slope, second] = [Once::inner(slope), second].map(number::<Flex>);
    println!("primitives: {slope}, {second}");
    assert_eq!([slope, second], [27.0, 18.0]);
}

fn number<B: Backend>(x: FloatTensor<B>) -> f32 {
    let mut reading = std::pin::pin!(B::float_into_data(x));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(data) = reading.as_mut().poll(&mut context) {
            return data.expect("a number").try_to_vec::<f32>().expect("f32")[0];
        }
    }
}
