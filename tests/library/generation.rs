//! What is kept of a sequence changes nothing: decoding from a cache equals decoding without one, and a
//! batch of n equals n batches of one.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use burn_ndarray::NdArray;
use gradmem::baselines::{Armt, ArmtConfig, ArmtImplementation, InContext, RmtConfig, RmtProj};
use gradmem::episode::Tokens;
use gradmem::kernels::KernelBackend;
use gradmem::memory::{GradMemConfig, MemProj};
use gradmem::model::generate::{GenerateConfig, Reader, continue_prompts};
use gradmem::model::{AnyLm, Cache, CausalLm, Llama, LlamaConfig, Slots};

use crate::shared::{self, VOCAB, named_models, values, writing};

type B = NdArray<f64>;

fn tokens(rows: &[&[i64]]) -> Tensor<B, 2, Int> {
    let shape = [rows.len(), rows[0].len()];
    let data = TensorData::new(rows.concat(), shape);
    Tensor::from_data(data, &Default::default())
}

/// Rows with padding 0.
fn padded(rows: &[&[i64]]) -> Tokens<B> {
    Tokens::from_padded(tokens(rows), 0).unwrap()
}

fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    shared::assert_close(what, found, expected, 1e-10);
}

#[test]
fn a_sequence_read_in_pieces_is_the_sequence() {
    for (name, model) in named_models::<B>() {
        let ids = tokens(&[
            &[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            &[4, 4, 16, 3, 2, 18, 1, 1, 9, 5, 6],
        ]);
        let embeds = model.embed(ids);
        let whole = values(model.hidden(embeds.clone()));
        for pieces in [&[11][..], &[1; 11], &[3, 5, 2, 1], &[10, 1]] {
            let mut cache = Cache::new();
            let mut start = 0;
            let mut rows = Vec::new();
            for piece in pieces {
                let part = embeds.clone().narrow(1, start, *piece);
                rows.push(model.hidden_after(part, &mut cache));
                start += piece;
                assert_eq!(cache.len(), start);
            }
            let found = values(Tensor::cat(rows, 1));
            assert_close(&format!("{name} in {pieces:?}"), &found, &whole);
        }
    }
}

#[test]
fn the_last_rows_are_those_of_the_whole() {
    for (name, model) in named_models::<B>() {
        let embeds = model.embed(tokens(&[
            &[5, 6, 7, 8, 9, 10, 11],
            &[4, 4, 16, 3, 2, 18, 1],
        ]));
        let whole = model.hidden(embeds.clone());
        for rows in [1, 3, 7, usize::MAX] {
            let count = rows.min(7);
            let expected = values(whole.clone().narrow(1, 7 - count, count));
            let found = model.last_hidden(embeds.clone(), rows, None);
            assert_eq!(found.dims(), [2, count, model.d_model()]);
            assert_close(&format!("{name}, {rows} rows"), &values(found), &expected);

            let mut cache = Cache::new();
            model.hidden_after(embeds.clone().narrow(1, 0, 3), &mut cache);
            let count = rows.min(4);
            let expected = values(whole.clone().narrow(1, 7 - count, count));
            let rest = embeds.clone().narrow(1, 3, 4);
            let found = model.last_hidden(rest, rows, Some(&mut cache));
            assert_close(
                &format!("{name}, {rows} rows behind three"),
                &values(found),
                &expected,
            );
            // What is left out is in the cache all the same.
            assert_eq!(cache.len(), 7);
            let next = model.embed(tokens(&[&[2], &[9]]));
            let continued = model.hidden_after(next.clone(), &mut cache);
            let all = model.hidden(Tensor::cat(vec![embeds.clone(), next], 1));
            let expected = values(all.narrow(1, 7, 1));
            assert_close(
                &format!("{name} behind {rows} rows"),
                &values(continued),
                &expected,
            );
        }
    }
}

/// A user's model, which knows nothing of caches.
#[derive(Module, Debug)]
struct Plain<B: Backend> {
    inner: Llama<B>,
}

impl<B: KernelBackend> CausalLm<B> for Plain<B> {
    fn d_model(&self) -> usize {
        self.inner.d_model()
    }
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }
    fn max_positions(&self) -> Option<usize> {
        self.inner.max_positions()
    }
    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.inner.embed(tokens)
    }
    fn hidden(&self, embeds: Tensor<B, 3>) -> Tensor<B, 3> {
        self.inner.hidden(embeds)
    }
    fn head(&self) -> Tensor<B, 2> {
        self.inner.head()
    }
}

#[test]
fn a_model_without_a_cache_of_its_own_says_the_same() {
    let config = LlamaConfig {
        initializer_range: 0.3,
        ..LlamaConfig::new(VOCAB, 16, 2, 2)
    };
    let inner: Llama<B> = config.init(3, &Default::default()).unwrap();
    let plain = Plain {
        inner: inner.clone(),
    };
    let beginnings = inner.embed(tokens(&[&[5, 9, 2], &[7, 7, 11]]));
    let prompts = [vec![3, 4], vec![], vec![12], vec![8, 1, 6, 2]];
    let config = GenerateConfig::greedy(7);
    let ours = Reader::new(&inner, beginnings.clone()).unwrap();
    let theirs = Reader::new(&plain, beginnings).unwrap();
    assert_eq!(
        ours.generate(&prompts, &config).unwrap(),
        theirs.generate(&prompts, &config).unwrap()
    );
    let more = padded(&[&[1, 2], &[3, 4], &[5, 6], &[7, 8]]);
    let [a, b] = [ours.logits(&more), theirs.logits(&more)];
    assert_close("plain", &values(a.unwrap()), &values(b.unwrap()));
}

/// The likeliest token again and again, the whole sequence read each time.
fn greedy(model: &AnyLm<B>, prefix: Tensor<B, 3>, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut ids: Vec<i64> = prompt.iter().map(|id| i64::from(*id)).collect();
    for _ in 0..count {
        let embeds = match ids.as_slice() {
            [] => prefix.clone(),
            ids => Tensor::cat(vec![prefix.clone(), model.embed(tokens(&[ids]))], 1),
        };
        let seq = embeds.dims()[1];
        let hidden = model.hidden(embeds).narrow(1, seq - 1, 1);
        let next = model.logits(hidden).argmax(2).to_data();
        ids.push(next.iter::<i64>().next().unwrap());
    }
    ids[prompt.len()..].iter().map(|id| *id as u32).collect()
}

#[test]
fn cached_decoding_equals_uncached_token_by_token() {
    for (name, model) in named_models::<B>() {
        let beginnings = tokens(&[&[5, 9, 2], &[7, 7, 11]]);
        let embeds = model.embed(beginnings);
        let prefix = Reader::new(&model, embeds.clone()).unwrap();
        // Two prompts to each beginning, of different lengths, one of them empty.
        let prompts = [vec![3, 4], vec![], vec![12], vec![8, 1, 6, 2]];
        let found = prefix
            .generate(&prompts, &GenerateConfig::greedy(9))
            .unwrap();
        for (row, prompt) in prompts.iter().enumerate() {
            let own = embeds.clone().narrow(0, row / 2, 1);
            let expected = greedy(&model, own, prompt, 9);
            assert_eq!(found[row], expected, "{name}, prompt {row}");
        }
        assert!(found.iter().any(|answer| answer != &found[0]), "{name}");

        // Without a beginning, and until a token that stops.
        let prompts = [vec![3, 4, 5], vec![9]];
        let config = GenerateConfig::greedy(6);
        let free = continue_prompts(&model, &prompts, &config).unwrap();
        let stopping = config.clone().with_stop([free[0][2]]);
        let stopped = continue_prompts(&model, &prompts, &stopping).unwrap();
        let end = free[0].iter().position(|id| *id == free[0][2]).unwrap();
        assert_eq!(stopped[0], free[0][..end], "{name}");

        // Sampled: the same seed says the same, whatever else is in the batch; another says otherwise.
        let sampled = |prompts: &[Vec<u32>], seed| {
            let config = GenerateConfig::greedy(12).with_sampling(1.0, seed);
            continue_prompts(&model, prompts, &config).unwrap()
        };
        let both = sampled(&prompts, 1);
        assert_eq!(both[0], sampled(&prompts[..1], 1)[0], "{name}");
        assert_ne!(both, sampled(&prompts, 2), "{name}");
    }
}

#[test]
fn decoding_ends_where_the_positions_do() {
    for (name, model) in named_models::<B>() {
        let prompts = [vec![1; 37]];
        let config = GenerateConfig::greedy(20);
        let found = continue_prompts(&model, &prompts, &config).unwrap();
        let expected = model
            .max_positions()
            .map_or(20, |positions| positions - 37 + 1);
        assert_eq!(found[0].len(), expected, "{name}");
        let outside = continue_prompts(&model, &[vec![19]], &config);
        assert!(outside.unwrap_err().to_string().contains("token 19"));
        let wild = GenerateConfig::default().with_sampling(-1.0, 0);
        let wild = continue_prompts(&model, &[vec![1]], &wild);
        assert!(wild.unwrap_err().to_string().contains("temperature"));
        if expected != 20 {
            let long = continue_prompts(&model, &[vec![1; 41]], &config);
            assert!(long.unwrap_err().to_string().contains("40"));
        }
    }
}

const CONTEXTS: [&[i64]; 3] = [
    &[5, 6, 7, 8, 9, 10, 0, 0, 0],
    &[4, 4, 16, 3, 2, 18, 1, 1, 9],
    &[12, 0, 0, 0, 0, 0, 0, 0, 0],
];
const QUERIES: [&[i64]; 3] = [&[5, 6, 7, 2], &[4, 2, 0, 0], &[12, 3, 1, 0]];

fn unpadded(row: &[i64]) -> Vec<i64> {
    row.iter().copied().filter(|id| *id != 0).collect()
}

#[test]
fn a_batch_of_n_is_n_batches_of_one() {
    let device = Default::default();
    for (name, model) in named_models::<B>() {
        let gradmem = GradMemConfig::new()
            .with_memory_tokens(3)
            .with_write_lr(0.3)
            .with_ctrl_tokens(1)
            .with_mem_proj(MemProj::PerSample)
            .with_write_head(true)
            .with_inner_clip_norm(Some(0.5))
            .init(model.clone(), 5, &device)
            .unwrap();
        let rmt = RmtConfig {
            memory_tokens: 3,
            write_steps: 2,
            mem_proj: RmtProj::ProjRw,
            ctrl_tokens: 1,
            mem_residual: true,
            memory_std: 0.3,
            ..RmtConfig::default()
        };
        let rmt = rmt.init(model.clone(), 6, &device).unwrap();
        let prompt = InContext::new(model);

        let written = gradmem.write(&padded(&CONTEXTS)).unwrap();
        let passed = rmt.write(&padded(&CONTEXTS)).unwrap();
        let answers = [
            gradmem.read(&written, &padded(&QUERIES)).unwrap(),
            rmt.read(&passed, &padded(&QUERIES)).unwrap(),
            prompt
                .logits(&padded(&CONTEXTS), &padded(&QUERIES))
                .unwrap(),
        ];
        for row in 0..3 {
            let context = padded(&[&unpadded(CONTEXTS[row])]);
            let query = unpadded(QUERIES[row]);
            let alone = gradmem.write(&context).unwrap();
            let same = |what: &str, all: &Tensor<B, 3>, one: Tensor<B, 3>| {
                let rows = one.dims()[1];
                let own = all.clone().narrow(0, row, 1).narrow(1, 0, rows);
                assert_close(&format!("{name} {what} {row}"), &values(own), &values(one));
            };
            same("WRITE", &written.vectors(), alone.vectors());
            let passed_alone = rmt.write(&context).unwrap();
            same("RMT", &passed.vectors(), passed_alone.vectors());
            let queries = padded(&[&query]);
            let [read, rmt_read, prompted] = &answers;
            same("READ", read, gradmem.read(&alone, &queries).unwrap());
            same(
                "RMT READ",
                rmt_read,
                rmt.read(&passed_alone, &queries).unwrap(),
            );
            same(
                "prompt",
                prompted,
                prompt.logits(&context, &queries).unwrap(),
            );
            // The prefix that is read once gives what reading all at once gives.
            let once = gradmem.reader(&alone).unwrap();
            same("reader", read, once.logits(&queries).unwrap());
            let once = rmt.reader(&passed_alone).unwrap();
            same("RMT reader", rmt_read, once.logits(&queries).unwrap());
            let once = prompt.reader(&context).unwrap();
            same("prompt reader", prompted, once.logits(&queries).unwrap());
        }
    }
}

#[test]
fn many_queries_share_one_prefix() {
    for (name, model) in named_models::<B>() {
        let gradmem = GradMemConfig::new()
            .with_memory_tokens(3)
            .with_write_lr(0.3)
            .init(model, 5, &Default::default())
            .unwrap();
        let memory = gradmem.write(&padded(&CONTEXTS[..2])).unwrap();
        let queries = padded(&[&[5, 6], &[7, 8], &[4, 16], &[3, 2]]);
        let reader = gradmem.reader(&memory).unwrap();
        let shared = values(reader.logits(&queries).unwrap());
        let whole = values(gradmem.read(&memory, &queries).unwrap());
        assert_close(name, &shared, &whole);
        assert!(reader.cache_bytes() > 0);
        // What follows each row, whatever its length.
        let rows: [&[i64]; 4] = [&[5, 6], &[7], &[], &[3, 2, 9]];
        let ids = rows.map(|row| row.iter().map(|id| *id as u32).collect::<Vec<_>>());
        let ids = Tokens::new(&ids, &Default::default()).unwrap();
        let next = values(reader.next_logits(&ids).unwrap());
        for (at, (row, next)) in rows.iter().zip(next.chunks(VOCAB)).enumerate() {
            let row: Vec<u32> = row.iter().map(|id| *id as u32).collect();
            let alone = Tokens::new(&[row], &Default::default()).unwrap();
            let memory = memory.select(&[at / 2]).unwrap();
            let logits = values(gradmem.read(&memory, &alone).unwrap());
            assert_close(name, next, &logits[logits.len() - VOCAB..]);
        }
        let uneven = reader.logits(&padded(&[&[1], &[2], &[3]]));
        assert!(uneven.unwrap_err().to_string().contains("evenly"));
        let uneven = reader.generate(&[vec![1]], &GenerateConfig::default());
        assert!(uneven.unwrap_err().to_string().contains("evenly"));
    }
}

/// ARMT on each model with the implementations it can have, cut into segments and not, that has something to write.
fn armts() -> Vec<(String, Armt<B, AnyLm<B>>)> {
    let mut found = Vec::new();
    for (name, model) in named_models::<B>() {
        for implementation in [ArmtImplementation::Thinking, ArmtImplementation::Old] {
            for segment_size in [None, Some(4)] {
                let config = ArmtConfig::new()
                    .with_implementation(implementation)
                    .with_memory_tokens(3)
                    .with_keys(6, 2)
                    .with_segment_size(segment_size)
                    .with_denom(segment_size.is_none() || name != "gpt2")
                    .with_gating(name == "gpt_neox")
                    .with_memory_std(Some(0.5));
                let what = format!("{name}, {implementation:?}, segments of {segment_size:?}");
                let armt = match config.init(model.clone(), 7, &Default::default()) {
                    Ok(armt) => armt,
                    Err(error) => {
                        assert_eq!(
                            (name, implementation),
                            ("mamba", ArmtImplementation::Thinking)
                        );
                        assert!(error.to_string().contains("without attention"), "{error}");
                        continue;
                    }
                };
                found.push((what, writing(armt)));
            }
        }
    }
    assert_eq!(found.len(), 14);
    found
}

#[test]
fn armt_reads_each_sample_as_if_alone() {
    for (what, armt) in armts() {
        let written = armt.write(&padded(&CONTEXTS)).unwrap();
        let read = armt.read(&written, &padded(&QUERIES)).unwrap();
        for row in 0..3 {
            let context = padded(&[&unpadded(CONTEXTS[row])]);
            let query = padded(&[&unpadded(QUERIES[row])]);
            let alone = armt.write(&context).unwrap();
            for (all, one) in written.fast().iter().zip(alone.fast()) {
                let own = all.clone().narrow(0, row, 1);
                assert_close(
                    &format!("{what}, WRITE {row}"),
                    &values(own),
                    &values(one.clone()),
                );
            }
            let one = armt.read(&alone, &query).unwrap();
            let own = read.clone().narrow(0, row, 1).narrow(1, 0, one.dims()[1]);
            assert_close(&format!("{what}, READ {row}"), &values(own), &values(one));
        }
        let [first, second] = [0, 1].map(|at| values(read.clone().narrow(0, at, 1)));
        assert!(first != second, "{what}");
        // What is written changes what is read, and what a query says only what follows it.
        let others = written.select(&[1, 0, 2]).unwrap();
        let others = armt.read(&others, &padded(&QUERIES)).unwrap();
        let moved = values((others - read).abs().max());
        assert!(moved[0] > 1e-3, "{what}: {moved:?}");
    }
}

#[test]
fn armt_decodes_from_its_memory_token_by_token() {
    for (what, armt) in armts() {
        let memory = armt.write(&padded(&CONTEXTS)).unwrap();
        let prompts = [
            vec![5, 6],
            vec![3],
            vec![4, 2, 9],
            vec![1],
            vec![12, 3],
            vec![8, 8],
        ];
        let reader = armt.reader(&memory).unwrap();
        assert!(reader.cache_bytes() > 0);
        let found = reader
            .generate(&prompts, &GenerateConfig::greedy(6))
            .unwrap();
        for (row, prompt) in prompts.iter().enumerate() {
            let own = memory.select(&[row / 2]).unwrap();
            let mut ids = prompt.clone();
            for _ in 0..6 {
                let query = Tokens::new(&[ids.as_slice()], &Default::default()).unwrap();
                let logits = armt.read(&own, &query).unwrap();
                let last = logits.narrow(1, ids.len() - 1, 1).argmax(2).to_data();
                ids.push(last.iter::<i64>().next().unwrap() as u32);
            }
            assert_eq!(found[row], ids[prompt.len()..], "{what}, prompt {row}");
        }
        let empty = reader.generate(&[vec![], vec![1], vec![1]], &GenerateConfig::greedy(6));
        assert!(
            empty.unwrap_err().to_string().contains("at least one"),
            "{what}"
        );
    }
}

/// A user's model that has layers of Llama's, or says so.
#[derive(Module, Debug)]
struct Layered<B: Backend> {
    inner: Llama<B>,
    #[module(skip)]
    runs_them: bool,
}

impl<B: KernelBackend> CausalLm<B> for Layered<B> {
    fn d_model(&self) -> usize {
        self.inner.d_model()
    }
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }
    fn max_positions(&self) -> Option<usize> {
        self.inner.max_positions()
    }
    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.inner.embed(tokens)
    }
    fn hidden(&self, embeds: Tensor<B, 3>) -> Tensor<B, 3> {
        self.inner.hidden(embeds)
    }
    fn hidden_after(&self, embeds: Tensor<B, 3>, past: &mut Cache<B>) -> Tensor<B, 3> {
        match self.runs_them {
            true => self.inner.hidden_after(embeds, past),
            false => self.hidden(embeds),
        }
    }
    fn slots(&self) -> Slots {
        CausalLm::slots(&self.inner)
    }
    fn head(&self) -> Tensor<B, 2> {
        self.inner.head()
    }
}

#[test]
fn armt_takes_models_that_have_layers() {
    let device = Default::default();
    let config = LlamaConfig::new(VOCAB, 16, 2, 2);
    let inner: Llama<B> = config.init(3, &device).unwrap();
    let armt = ArmtConfig::new().with_memory_tokens(2).with_keys(4, 1);
    let without = armt.init(
        Plain {
            inner: inner.clone(),
        },
        1,
        &device,
    );
    assert!(without.unwrap_err().to_string().contains("CausalLm::slots"));
    let contexts = padded(&CONTEXTS);
    let layered = |runs_them| Layered {
        inner: inner.clone(),
        runs_them,
    };
    let idle = armt.init(layered(false), 1, &device).unwrap();
    assert!(
        idle.write(&contexts)
            .unwrap_err()
            .to_string()
            .contains("forward_layers")
    );
    let [own, ours] = [
        armt.init(layered(true), 1, &device)
            .unwrap()
            .write(&contexts),
        armt.init(inner.clone(), 1, &device)
            .unwrap()
            .write(&contexts),
    ];
    for (a, b) in own.unwrap().fast().iter().zip(ours.unwrap().fast()) {
        assert_close(
            "a model of one's own",
            &values(a.clone()),
            &values(b.clone()),
        );
    }
    for (key, armt) in [
        ("n_heads", armt.clone().with_keys(6, 3)),
        ("d_mem", armt.clone().with_keys(5, 2)),
        ("dpfp_nu", armt.clone().with_keys(4, 4)),
        ("memory_tokens", armt.clone().with_memory_tokens(1024)),
        ("memory_std", armt.clone().with_memory_std(Some(-1.0))),
    ] {
        let error = armt
            .init(inner.clone(), 1, &device)
            .unwrap_err()
            .to_string();
        assert!(error.contains(key), "{error}");
    }
    let wide = armt.init(inner.clone(), 1, &device).unwrap();
    let memory = wide.write(&contexts).unwrap();
    let narrow = ArmtConfig::new().with_memory_tokens(2).with_keys(6, 1);
    let narrow = narrow.init(layered(true), 1, &device).unwrap();
    let error = narrow.read(&memory, &contexts).unwrap_err().to_string();
    assert!(
        error.contains("24 × 16") && error.contains("36 × 16"),
        "{error}"
    );
}
