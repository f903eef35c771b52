//! Another implementation's numbers, every gradient included, by both strategies: f32 on flex, f64 on ndarray (f32 on
//! Vulkan in tests/vulkan.rs).
//!
//! `tests/golden` holds the reference implementation's, which computes some things in f32 and so
//! agrees to about 1e-6; `tests/oracle` holds more, computed in f64 throughout.

use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use burn_ndarray::NdArray;
use gradmem::interop::parity;
use gradmem::kernels::KernelBackend;
use gradmem::memory::MetaGradient;

use crate::shared::assert_close;

fn case_folder(folder: &str, case: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    tests.join(folder).join(case)
}

fn check(folder: &str, case: &str, f64_tolerance: f64) {
    let folder = case_folder(folder, case);
    let [unrolled, replay] = [MetaGradient::Unrolled, MetaGradient::Replay].map(|how| {
        computed::<burn_flex::Flex>(&format!("{case} on flex f32, {how:?}"), &folder, how, 1e-4);
        let what = format!("{case} on ndarray f64, {how:?}");
        computed::<NdArray<f64>>(&what, &folder, how, f64_tolerance)
    });
    // The two agree with each other to rounding, gradients included.
    assert_eq!(unrolled.len(), replay.len());
    for ((name, expected), (same, found)) in unrolled.iter().zip(&replay) {
        assert_eq!(name, same, "{case}");
        assert_eq!(found.shape, expected.shape, "{case}: {name}");
        let [found, expected] = [found, expected].map(|x| x.iter::<f64>().collect::<Vec<_>>());
        assert_close(&format!("{case}: {name}"), &found, &expected, 1e-11);
    }
}

/// The numbers of a case, after a comparison with those that are expected.
fn computed<B: KernelBackend>(
    what: &str,
    folder: &Path,
    how: MetaGradient,
    tolerance: f64,
) -> Vec<(String, TensorData)> {
    let report = parity::compare::<B>(folder, how, &Default::default());
    let report = report.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(report.rows.len() > 3, "{what}: nothing was compared");
    for row in &report.rows {
        println!("{what}: {} {:.1e}", row.tensor, row.error);
    }
    for row in report.rows {
        let (name, error) = (row.tensor, row.error);
        assert!(error <= tolerance, "{what}: {name} is off by {error:.1e}");
    }
    report.computed
}

macro_rules! cases {
    ($folder:ident, $tolerance:expr, $($name:ident),* $(,)?) => {
        mod $folder {
            $(#[test] fn $name() { super::check(stringify!($folder), stringify!($name), $tolerance); })*
        }
    };
}

cases!(
    golden,
    1e-5,
    gpt2_ctrl,
    gpt2_proj_write_head,
    gpt_neox_second,
    llama_clip_norm,
    llama_clip_value,
    llama_first,
    llama_inner_loss,
    llama_last1,
    llama_mem_proj,
    llama_none,
    llama_per_sample_proj,
    llama_second,
    llama_write_head,
    llama_write_lora,
    llama_write_lora_frozen,
    lm_gpt2,
    lm_gpt_neox,
    lm_llama,
    lm_mamba,
    rmt_gpt2_full,
    rmt_llama,
    rmt_llama_k2_proj,
);

cases!(
    oracle,
    1e-6,
    gpt2_inverse_layer_second,
    gpt2_lora_proj_clip_value,
    gpt2_ninner_gelu_second,
    gpt2_noscale_untied_second,
    gpt2_proj_ctrl_head_inner,
    gpt_neox_lora_frozen_head_ctrl,
    gpt_neox_nobias_tied_second,
    gpt_neox_seq_rot50_second,
    llama_bias_second,
    llama_frozen_proj,
    llama_gqa_untied_k3,
    llama_head_dim_second,
    llama_last2_of4_inner_loss,
    llama_lora_str_targets_ps,
    llama_proj_none_inner_loss,
    llama_ps_ctrl2_clip_norm,
    llama_ps_none,
    llama_rope_linear_second,
    llama_rope_llama3_o32_second,
    lm_mamba_bias_noconvbias,
    mamba_bias_proj_head,
    rmt_gpt_neox_k3_rec,
    rmt_llama_k3_rw_res_ctrl2,
    rmt_mamba_k2_full,
);

// Later branches of the reference, computed in f64 throughout.
mod later {
    macro_rules! cases {
        ($($name:ident),* $(,)?) => {
            $(#[test] fn $name() { super::check("golden", stringify!($name), 1e-8); })*
        };
    }

    cases!(
        armt_gpt2,
        armt_llama,
        armt_llama_three_segments,
        armt_thinking_llama,
        aux_step_align_iread_llama,
        aux_step_align_last_gpt2,
        chunks_concat_llama,
        chunks_parallel_llama,
        chunks_sequential_llama,
        chunks_sequential_lora_llama,
        kv_mem_gpt2,
        kv_mem_llama,
        kv_mem_proj_inner_loss_llama,
        lora_mem_gpt2,
        lora_mem_llama,
        lora_mem_write_lora_llama,
    );
}

/// A folder that no test names would be no test.
#[test]
fn every_case_is_checked() {
    let source = include_str!("reference.rs");
    for folder in ["golden", "oracle"] {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests")
            .join(folder);
        for entry in std::fs::read_dir(tests).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let checked = source.contains(&format!("    {name},"));
            assert!(
                checked || !entry.path().is_dir(),
                "{folder}/{name} is not checked"
            );
        }
    }
}

/// Ids that no device's integers hold, or that are negative, are errors before any tensor is made of them.
#[test]
fn ids_of_a_batch_are_checked_on_the_host() {
    use safetensors::tensor::{Dtype, SafeTensors, TensorView};
    let case = case_folder("golden", "llama_second");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&case).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let batch = std::fs::read(case.join("batch.safetensors")).unwrap();
    let batch = SafeTensors::deserialize(&batch).unwrap();
    for name in ["context_input_ids", "query_input_ids", "labels"] {
        for id in [1i64 << 40, i64::MAX, -7] {
            let views = batch.tensors().into_iter().map(|(key, view)| {
                let mut bytes = view.data().to_vec();
                if key == name {
                    bytes[..8].copy_from_slice(&id.to_le_bytes());
                }
                (key, bytes, view.shape().to_vec())
            });
            let views: Vec<_> = views.collect();
            let views = views.iter().map(|(key, bytes, shape)| {
                (
                    key,
                    TensorView::new(Dtype::I64, shape.clone(), bytes).unwrap(),
                )
            });
            let path = folder.path().join("batch.safetensors");
            safetensors::serialize_to_file(views, None, &path).unwrap();
            let computed = parity::compute::<burn_flex::Flex>(
                folder.path(),
                MetaGradient::Unrolled,
                &Default::default(),
            );
            match computed {
                // A negative label is none.
                Ok(_) => assert!(name == "labels" && id < 0, "{name}: {id}"),
                Err(error) => assert!(error.to_string().contains(&id.to_string()), "{error}"),
            }
        }
    }
}
