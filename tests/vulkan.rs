//! Everything once more on Vulkan, with Burn's fusion and without it, wherever there is a driver:
//! Mesa's software one will do. One binary, because every process compiles its own pipelines.
//!
//! `cargo test --no-default-features --features flex,vulkan,fusion --test vulkan`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use burn::backend::Autodiff;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use burn_cubecl::cubecl::Runtime;
use burn_wgpu::graphics::{AutoGraphicsApi, GraphicsApi, WebGpu};
use burn_wgpu::{CubeBackend, WgpuDevice, WgpuRuntime, WgpuSetup, init_device, init_setup};
use gradmem::episode::{Episode, Tokens};
use gradmem::interop::checkpoint::{self, SpecialTokens};
use gradmem::interop::parity;
use gradmem::kernels::{self, Attention, KernelBackend};
use gradmem::memory::{GradMem, GradMemConfig, MetaGradient};
use gradmem::method::AnyMethod;
use gradmem::model::{AnyLm, LlamaConfig};
use safetensors::tensor::{Dtype, TensorView};

/// A model of `burn::nn` modules alone.
#[path = "../examples/burn_nn/model.rs"]
mod burn_nn;

type Flex = burn_flex::Flex;
/// As the feature `fusion` makes it.
type Vulkan = burn_wgpu::Vulkan;
/// Without fusion in any case.
type Plain = CubeBackend<WgpuRuntime, f32, i32, u8>;
/// As the feature `wgpu` alone makes it: WGSL has no 8-bit integers.
type Wgsl = CubeBackend<WgpuRuntime, f32, i32, u32>;

/// The default device. A panic on its thread would leave garbage behind and a test that passes.
fn device() -> &'static WgpuSetup {
    static SETUP: OnceLock<WgpuSetup> = OnceLock::new();
    SETUP.get_or_init(|| {
        let (hook, tests) = (std::panic::take_hook(), std::thread::current().id());
        std::panic::set_hook(Box::new(move |info| {
            hook(info);
            let of_device = info
                .location()
                .is_some_and(|at| at.file().contains("cubecl") || at.file().contains("wgpu"));
            if of_device && std::thread::current().id() != tests {
                std::process::abort();
            }
        }));
        init_setup::<AutoGraphicsApi>(&WgpuDevice::default(), Default::default())
    })
}

fn check_reference<B: KernelBackend>(backend: &str, device: &B::Device) {
    let mut worst = (0.0, String::new());
    let mut cases = 0;
    for folder in ["golden", "oracle"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests")
            .join(folder);
        for entry in std::fs::read_dir(folder).unwrap() {
            let case = entry.unwrap().path();
            if !case.is_dir() {
                continue;
            }
            let report = parity::compare::<B>(&case, MetaGradient::Unrolled, device)
                .unwrap_or_else(|e| panic!("{} on {backend}: {e}", case.display()));
            for row in report.rows {
                let what = format!("{}: {}", case.display(), row.tensor);
                assert!(row.error <= 1e-4, "{what} is off by {:.1e}", row.error);
                if row.error > worst.0 {
                    worst = (row.error, what);
                }
            }
            cases += 1;
        }
    }
    assert!(cases > 40);
    println!(
        "{backend}: {cases} cases, worst {:.1e} in {}",
        worst.0, worst.1
    );
}

#[test]
fn the_references_numbers_without_fusion() {
    device();
    check_reference::<Plain>("vulkan without fusion", &Default::default());
}

#[cfg(feature = "fusion")]
#[test]
fn the_references_numbers_with_fusion() {
    device();
    check_reference::<Vulkan>("vulkan with fusion", &Default::default());
}

/// The kernels in WGSL, as the feature `wgpu` compiles them without `vulkan`.
#[test]
fn the_references_numbers_in_wgsl() {
    // CubeCL writes WGSL for what it does not take for Vulkan.
    let setup = WgpuSetup {
        backend: WebGpu::backend(),
        ..device().clone()
    };
    let device = init_device(setup, Default::default());
    let client = WgpuRuntime::client(&device);
    assert_eq!(WgpuRuntime::name(&client), "wgpu<wgsl>");
    check_reference::<Wgsl>("wgsl", &device);
}

/// A model with grouped-query heads and contexts of several tiles; the second half of each query is
/// to be answered.
fn case(folder: &Path, write_steps: usize, freeze_backbone: bool) {
    const VOCAB: usize = 40;
    let device = Default::default();
    let llama = LlamaConfig::new(VOCAB, 64, 2, 4).with_kv_heads(2);
    let model = AnyLm::<Flex>::Llama(llama.init(7, &device).unwrap());
    let gradmem = GradMemConfig::new()
        .with_memory_tokens(8)
        .with_write_steps(write_steps)
        .with_write_lr(0.1)
        .with_freeze_backbone(freeze_backbone)
        .init(model, 8, &device)
        .unwrap();
    checkpoint::save(
        folder,
        &AnyMethod::GradMem(gradmem),
        None,
        &SpecialTokens::default(),
    )
    .unwrap();
    let ids = |rows: usize, columns: usize, seed: usize| -> Vec<i64> {
        (0..rows * columns)
            .map(|i| ((i * 7919 + seed * 31 + i * i % 101) % (VOCAB - 1) + 1) as i64)
            .collect()
    };
    let labels: Vec<i64> = ids(3, 12, 2)
        .iter()
        .enumerate()
        .map(|(i, id)| if i % 12 < 6 { -100 } else { *id })
        .collect();
    let tensors = [
        ("context_input_ids", ids(3, 75, 1), [3, 75]),
        ("query_input_ids", ids(3, 12, 2), [3, 12]),
        ("labels", labels, [3, 12]),
    ]
    .map(|(name, ids, shape)| {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        (name, bytes, shape)
    });
    let views = tensors.iter().map(|(name, bytes, shape)| {
        let view = TensorView::new(Dtype::I64, shape.to_vec(), bytes).unwrap();
        (*name, view)
    });
    safetensors::serialize_to_file(views, None, &folder.join("batch.safetensors")).unwrap();
}

fn step<B: KernelBackend>(folder: &Path) -> BTreeMap<String, TensorData> {
    let computed =
        parity::compute::<B>(folder, MetaGradient::Unrolled, &Default::default()).unwrap();
    computed.into_iter().collect()
}

/// `max |a − b| / max |b|` of the worst tensor.
fn worst(found: &BTreeMap<String, TensorData>, expected: &BTreeMap<String, TensorData>) -> f64 {
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    let mut worst = 0.0;
    for (name, expected) in expected {
        let pairs = found[name].iter::<f64>().zip(expected.iter::<f64>());
        let (mut difference, mut largest) = (0f64, 1e-9f64);
        for (a, b) in pairs {
            assert!(a.is_finite(), "{name} is not finite");
            difference = difference.max((a - b).abs());
            largest = largest.max(b.abs());
        }
        assert!(
            difference / largest <= 1e-3,
            "{name} is off by {:.1e}",
            difference / largest
        );
        worst = f64::max(worst, difference / largest);
    }
    worst
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

/// Loss, logits, memory and every gradient of a whole training step are those of the CPU, through the
/// kernels and through the reference attention. With a frozen backbone few parameters are tracked:
/// Burn's issue 5162 has seen NaN there.
#[test]
fn a_training_step_is_the_cpus() {
    device();
    for (write_steps, frozen) in [(1, false), (3, false), (3, true)] {
        let folder = folder(&format!("vulkan-step-{write_steps}-{frozen}"));
        case(&folder, write_steps, frozen);
        let expected = step::<Flex>(&folder);
        let gradients = expected.keys().filter(|name| name.starts_with("grad."));
        assert_eq!(gradients.count(), if frozen { 1 } else { 21 });
        for attention in [Attention::Fused, Attention::Reference] {
            kernels::set_attention(attention);
            let plain = worst(&step::<Plain>(&folder), &expected);
            println!("K {write_steps}, frozen {frozen}, {attention:?}, no fusion: {plain:.1e}");
            if cfg!(feature = "fusion") {
                let fusion = worst(&step::<Vulkan>(&folder), &expected);
                println!("K {write_steps}, frozen {frozen}, {attention:?}, fusion: {fusion:.1e}");
            }
        }
        kernels::set_attention(Attention::Fused);
    }
}

/// The outer gradient of a GPT of `burn::nn` modules with the weights in a record, in the order of its parameters, and the
/// losses.
fn nn_step<B: Backend>(record: Vec<u8>) -> BTreeMap<String, TensorData> {
    struct Found<'a> {
        gradients: &'a GradientsParams,
        found: BTreeMap<String, TensorData>,
    }
    impl<B: Backend> ModuleVisitor<Autodiff<B>> for Found<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
            if let Some(gradient) = self.gradients.get::<B, D>(param.id) {
                let name = format!("parameter {}", self.found.len());
                self.found.insert(name, gradient.to_data());
            }
        }
    }
    let device = Default::default();
    let model = nn_model::<Autodiff<B>>();
    let record = Recorder::<Autodiff<B>>::load(&Bytes::new(), record, &device).unwrap();
    let model = model.load_record(record);
    let contexts = Tokens::new(&[[4_u32, 7, 2, 9, 11], [5, 10, 3, 1, 6]], &device).unwrap();
    let episode = Episode::from_answers(contexts, &[([4, 7], [2]), ([9, 5], [10])]).unwrap();
    let (gradients, outer) = model
        .outer_gradient(&episode, MetaGradient::Unrolled)
        .unwrap();
    let mut found = Found {
        gradients: &gradients,
        found: BTreeMap::new(),
    };
    model.visit(&mut found);
    // A bias of keys has no gradient but rounding: softmax takes no notice of it.
    let mut found = found.found;
    let all = found.values().map(size);
    let most = all.fold(0.0, f64::max);
    found.retain(|_, gradient| size(gradient) > 1e-5 * most);
    assert!(found.len() > 30, "{}", found.len());
    found.insert("READ loss".into(), outer.read_loss.to_data());
    for (step, loss) in outer.memory.losses.iter().enumerate() {
        found.insert(format!("WRITE loss {step}"), loss.to_data());
    }
    found
}

fn size(x: &TensorData) -> f64 {
    x.iter::<f64>().map(f64::abs).fold(0.0, f64::max)
}

type Bytes = BinBytesRecorder<FullPrecisionSettings>;

fn nn_model<B: Backend>() -> GradMem<B, burn_nn::Gpt<B>> {
    let device = Default::default();
    let lm = burn_nn::Gpt::new(20, &device);
    burn_nn::memory().init(lm, 1, &device).unwrap()
}

/// Modules of `burn::nn` inside WRITE, with and without fusion.
#[test]
fn a_training_step_of_burn_nn_is_the_cpus() {
    device();
    let record = nn_model::<Flex>().into_record();
    let record: Vec<u8> = Recorder::<Flex>::record(&Bytes::new(), record, ()).unwrap();
    let expected = nn_step::<Flex>(record.clone());
    println!(
        "burn::nn: {:.1e}",
        worst(&nn_step::<Vulkan>(record.clone()), &expected)
    );
    println!(
        "burn::nn, no fusion: {:.1e}",
        worst(&nn_step::<Plain>(record), &expected)
    );
}
