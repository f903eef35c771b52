//! Products of f32 matrices on GPUs against f64: exact also where the device would round the factors.

use burn::tensor::{DType, Tensor, TensorData};
use gradmem_kernels::{LayerBackend, Precision, precision, product, set_precision};

use crate::numbers::{F64, error, lower};
use crate::{Gpu, TOLERANCE_OF_PRODUCTS};

/// How a factor lies in memory. In f64 it has the values that are to be multiplied.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Rows,
    Transposed,
    /// The same matrix for the whole batch.
    Shared,
}

const LAYOUTS: [Layout; 3] = [Layout::Rows, Layout::Transposed, Layout::Shared];

fn factor(
    seed: usize,
    [batch, rows, columns]: [usize; 3],
    layout: Layout,
) -> (Tensor<Gpu, 3>, Tensor<F64, 3>) {
    let stored = match layout {
        Layout::Rows => [batch, rows, columns],
        Layout::Transposed => [batch, columns, rows],
        Layout::Shared => [1, rows, columns],
    };
    let count: usize = stored.iter().product();
    let values = (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0);
    let data = TensorData::new(values.collect::<Vec<f32>>(), stored);
    let device = Default::default();
    let gpu = Tensor::<Gpu, 3>::from_data(data.clone(), (&device, DType::F32));
    let multiplied = match precision() {
        Precision::Bf16 => data.convert_dtype(DType::BF16),
        _ => data,
    };
    let multiplied = multiplied.convert_dtype(DType::F64);
    let cpu = Tensor::<F64, 3>::from_data(multiplied, &Default::default());
    match layout {
        Layout::Rows => (gpu, cpu),
        Layout::Transposed => (gpu.swap_dims(1, 2), cpu.swap_dims(1, 2)),
        Layout::Shared => (
            gpu.expand([batch, rows, columns]),
            cpu.expand([batch, rows, columns]),
        ),
    }
}

/// The error of a product that is added to what lies by rows, or by columns.
fn error_of_sums(a: Tensor<Gpu, 2>, b: Tensor<Gpu, 2>, expected: Tensor<F64, 2>) -> f64 {
    let by_rows = product(a.clone(), b.clone());
    let by_columns = product(b.clone().transpose(), a.clone().transpose()).transpose();
    let errors = [by_rows, by_columns].map(|to| {
        let [to, a, b] = [to, a.clone(), b.clone()].map(lower);
        error::<2>(Gpu::add_product(to, a, b), lower(expected.clone() * 2.0))
    });
    let [x, y] = errors;
    if x <= y { y } else { x }
}

/// The largest error over sizes that fill no tile, fill some, are divided among cubes, and have more tiles than a card has
/// multiprocessors.
fn worst() -> (f64, String) {
    let sizes = [
        [1, 1, 1],
        [3, 24, 24],
        [24, 3, 24],
        [5, 7, 29],
        [37, 16, 24],
        [64, 64, 64],
        [33, 1000, 65],
        [2, 2048, 3],
        [130, 70, 257],
        [68, 192, 132],
    ];
    let mut cases = Vec::new();
    for size in sizes {
        for batch in [1, 3] {
            for left in LAYOUTS {
                cases.extend(LAYOUTS.map(|right| (batch, size, left, right)));
            }
        }
    }
    let many_tiles = [1500, 21, 1538];
    cases.push((1, many_tiles, Layout::Rows, Layout::Transposed));
    cases.push((1, many_tiles, Layout::Transposed, Layout::Rows));
    let mut worst: (f64, String) = (0.0, String::new());
    for (seed, (batch, [m, k, n], left, right)) in cases.into_iter().enumerate() {
        let (a, a64) = factor(seed, [batch, m, k], left);
        let (b, b64) = factor(seed + 1000, [batch, k, n], right);
        let what = format!("{batch} × [{m}, {k}] · [{k}, {n}], {left:?}, {right:?}");
        let found = match batch {
            1 => {
                let [a, b] = [a, b].map(|x| x.squeeze_dim::<2>(0));
                let expected = a64.matmul(b64).squeeze_dim::<2>(0);
                let found = error::<2>(
                    lower(product(a.clone(), b.clone())),
                    lower(expected.clone()),
                );
                let sums = error_of_sums(a, b, expected);
                if found <= sums { sums } else { found }
            }
            _ => error::<3>(lower(product(a, b)), lower(a64.matmul(b64))),
        };
        if !(found <= worst.0) {
            worst = (found, what);
        }
    }
    worst
}

/// One test: the precision is a setting of the process.
#[test]
fn products_are_right_whatever_the_sizes_and_the_layouts() {
    let exact = worst();
    println!("largest relative error in f32: {:.1e}", exact.0);
    assert!(exact.0 < 5e-6, "{exact:?}");
    set_precision(Precision::Tf32);
    let rounded = worst();
    set_precision(Precision::F32);
    println!(
        "largest relative error in TF32, where the device has it: {:.1e}",
        rounded.0
    );
    assert!(rounded.0 < TOLERANCE_OF_PRODUCTS, "{rounded:?}");
    if !Gpu::computes_in(&Default::default(), Precision::Bf16) {
        println!("this device has no bf16");
        return;
    }
    set_precision(Precision::Bf16);
    let summed = worst();
    set_precision(Precision::F32);
    println!(
        "largest relative error of products of bf16: {:.1e}",
        summed.0
    );
    assert!(summed.0 < 5e-6, "{summed:?}");
}
