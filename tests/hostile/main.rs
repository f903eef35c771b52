//! Files that are damaged or made to do harm: whatever they hold, reading them ends in a value or in an
//! error of one line, within a second and a gibibyte.
//!
//! Every input is a valid file that a seeded mutator has changed, so that an input is named by its format
//! and its number. The ordinary suite reads a few of each format;
//!
//! ```sh
//! GRADMEM_MUTATIONS=100000 cargo test --release --test hostile -- --ignored --nocapture
//! ```
//!
//! reads so many of each. With `GRADMEM_MUTATION=17` the input of that number is read alone, and stays in
//! `target/tmp/hostile`, as do all that fail. What failed once is in `tests/hostile/corpus`, and is read
//! by `corpus.rs` ever after.

mod cases;
mod configs;
mod corpus;
mod datasets;
mod heap;
mod memories;
mod mutate;
mod read;
mod runs;
mod tensors;
mod tokenizers;
mod weights;

/// What everything is computed on.
type B = burn_flex::Flex;

/// The two tests of a format: a few inputs, and as many as `GRADMEM_MUTATIONS` says.
macro_rules! formats {
    ($($name:ident: $run:path, $few:literal;)*) => {
        $(
            mod $name {
                #[test]
                fn a_few_changed_files_do_no_harm() {
                    $run(super::read::Count::few($few));
                }

                #[test]
                #[ignore = "takes minutes: see the beginning of this file"]
                fn many_changed_files_do_no_harm() {
                    $run(super::read::Count::many());
                }
            }
        )*
    };
}

formats! {
    memory_files: super::memories::run, 2000;
    weight_files: super::weights::run, 2000;
    config_files: super::configs::run, 2000;
    tokenizer_files: super::tokenizers::run, 2000;
    parity_folders: super::cases::run, 1000;
    run_folders: super::runs::run, 1500;
    resumed_runs: super::runs::resume, 300;
    dataset_files: super::datasets::run, 3000;
    preset_files: super::datasets::presets, 1500;
}
