//! Products of matrices on a CUDA card: how fast in each precision, and how far the rounded ones are from the exact one, over all
//! values of the result.
//!
//! `cargo run --release -p gradmem-kernels --features cuda --example products`

use std::time::Instant;

use burn::tensor::backend::Backend as _;
use burn::tensor::{Distribution, Tensor};
use gradmem_kernels::{Precision, product, set_precision};

type Gpu = burn_cubecl::CubeBackend<burn_cubecl::cubecl::cuda::CudaRuntime, f32, i32, u8>;

/// Rows, length of the sum and columns, and which factor is transposed in memory.
const PRODUCTS: [(&str, [usize; 3], [bool; 2]); 14] = [
    ("forward, width 128", [4608, 128, 384], [false, true]),
    ("weight, width 128", [128, 4608, 384], [true, false]),
    ("forward, width 576", [1664, 576, 4608], [false, true]),
    ("input, width 576", [1664, 4608, 576], [false, false]),
    ("weight, width 576", [4608, 1664, 576], [true, false]),
    ("head", [170, 576, 49152], [false, true]),
    ("input of the head", [170, 49152, 576], [false, false]),
    ("square", [4096, 4096, 4096], [false, false]),
    ("odd rows", [1063, 576, 1728], [false, true]),
    ("odd rows", [97, 576, 576], [false, false]),
    ("odd sum", [1728, 1063, 576], [true, false]),
    ("odd sum", [576, 97, 2304], [true, false]),
    ("odd columns", [1000, 132, 204], [false, false]),
    ("odd all", [77, 67, 71], [false, true]),
];

fn matrix([m, n]: [usize; 2], transposed: bool) -> Tensor<Gpu, 2> {
    let stored = if transposed { [n, m] } else { [m, n] };
    let x = Tensor::random(
        stored,
        Distribution::Uniform(-1.0, 1.0),
        &Default::default(),
    );
    if transposed { x.transpose() } else { x }
}

/// The product and the microseconds it takes.
fn timed(a: &Tensor<Gpu, 2>, b: &Tensor<Gpu, 2>) -> (Tensor<Gpu, 2>, f64) {
    const TIMES: usize = 20;
    let wait = || Gpu::sync(&Default::default()).expect("the device computes");
    let once = || product(a.clone(), b.clone());
    let found = once();
    wait();
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        (0..TIMES).for_each(|_| drop(once()));
        wait();
        best = best.min(start.elapsed().as_secs_f64() / TIMES as f64);
    }
    (found, best * 1e6)
}

fn main() {
    let mut wrong = false;
    println!(
        "| product | f32, µs | TFLOP/s | tf32, µs | TFLOP/s | error | bf16, µs | TFLOP/s | error |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (what, [m, k, n], [left, right]) in PRODUCTS {
        let (a, b) = (matrix([m, k], left), matrix([k, n], right));
        set_precision(Precision::F32);
        let (exact, micros) = timed(&a, &b);
        let rate = |micros: f64| 2.0 * (m * k * n) as f64 / micros / 1e6;
        let mut row = format!(
            "| {what}: {m} × {k} × {n} | {micros:.1} | {:.1} |",
            rate(micros)
        );
        for (precision, tolerance) in [(Precision::Tf32, 2e-3), (Precision::Bf16, 1e-2)] {
            set_precision(precision);
            let (found, micros) = timed(&a, &b);
            // Of sums of k products of numbers between -1 and 1.
            let apart = (found - exact.clone()).abs().into_data();
            let largest = |x: f32, y: f32| if y <= x { x } else { y };
            let error = apart.iter::<f32>().fold(0.0, largest) / (k as f32).sqrt();
            wrong |= error.is_nan() || error >= tolerance;
            row += &format!(" {micros:.1} | {:.1} | {error:.1e} |", rate(micros));
        }
        println!("{row}");
    }
    assert!(!wrong, "a product is wrong");
}
