//! The reference implementation's numbers, every gradient included: f32 on flex, f64 on ndarray, and
//! f32 on Vulkan with the feature of that name.

use std::path::Path;

use gradmem::parity;

fn check(case: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(case);
    let flex = parity::compare::<burn_flex::Flex>(&folder, &Default::default());
    let ndarray = parity::compare::<burn_ndarray::NdArray<f64>>(&folder, &Default::default());
    let reports = [
        ("flex f32", flex, 1e-4),
        ("ndarray f64", ndarray, 1e-5),
        #[cfg(feature = "vulkan")]
        (
            "vulkan f32",
            parity::compare::<burn_wgpu::Vulkan>(&folder, &Default::default()),
            1e-4,
        ),
    ];
    for (backend, report, tolerance) in reports {
        let report = report.unwrap_or_else(|e| panic!("{case} on {backend}: {e}"));
        assert!(report.rows.len() > 3, "{case}: nothing was compared");
        for row in &report.rows {
            println!("{case} {backend}: {} {:.1e}", row.tensor, row.error);
        }
        for row in report.rows {
            assert!(
                row.error <= tolerance,
                "{case} on {backend}: {} is off by {:.1e}",
                row.tensor,
                row.error
            );
        }
    }
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { check(stringify!($name)); })*
    };
}

cases!(
    llama_second,
    llama_first,
    llama_none,
    llama_write_head,
    llama_last1,
    llama_clip_norm,
    llama_clip_value,
    llama_inner_loss,
    lm_llama,
);
