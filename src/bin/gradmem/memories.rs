//! The memories of a file: their names and their description.

use std::path::Path;

use gradmem::memory::{MemoryFile, Written};
use gradmem::report::with_separators;
use gradmem::support::counted;

use crate::output::{shown, shown_path};

/// The name as it is printed: a file's may be anything.
pub fn shown_name(sample: &Written, index: usize) -> String {
    shown(&sample.name_at(index))
}

/// A line about the file, and one about each of its first `most` memories.
pub fn describe(path: &Path, file: &MemoryFile, most: usize) -> String {
    let [n, m, d] = file.shape();
    let memories = if n == 1 { "memory" } else { "memories" };
    let what = match file.kind() {
        "prefix" => {
            let each = counted(m / file.chunks().max(1), "vector");
            format!("{each} of width {d}")
        }
        kind => format!(
            "kind {kind}, {} numbers",
            with_separators(file.numbers_each())
        ),
    };
    let chunks = match file.chunks() {
        1 => String::new(),
        chunks => format!(" for each of up to {chunks} chunks"),
    };
    let mut lines = vec![format!(
        "{}: {n} {memories} of {what}{chunks} in {}, {} bytes each",
        shown_path(path),
        dtype(file),
        with_separators(file.bytes_each())
    )];
    for (at, sample) in file.samples.iter().enumerate().take(most) {
        let about = describe_one(file, sample);
        if !about.is_empty() {
            lines.push(format!("{}: {about}", shown_name(sample, at)));
        }
    }
    if n > most {
        lines.push(format!("… and {} more", n - most));
    }
    lines.join("\n")
}

/// What the file knows of one memory.
fn describe_one(file: &MemoryFile, sample: &Written) -> String {
    let mut parts = Vec::new();
    if let Some(tokens) = sample.tokens {
        let noun = if tokens == 1 { "token" } else { "tokens" };
        parts.push(format!("{} {noun}", with_separators(tokens)));
    }
    if let Some(texts) = sample.appended {
        parts.push(format!("{} written on", counted(texts, "text")));
    }
    if let Some(chunks) = sample.chunks {
        parts.push(counted(chunks, "chunk"));
    }
    if let (Some(before), Some(after)) = (sample.loss_before, sample.loss_after) {
        let steps = match sample.adam_steps {
            Some(steps) => format!("{} of Adam", counted(steps, "step")),
            None => counted(file.origin.write_steps, "step"),
        };
        let of = match sample.appended {
            Some(_) => "the last text's ",
            None => "",
        };
        parts.push(format!(
            "{of}WRITE loss {before:.3} → {after:.3} nats per token in {steps}"
        ));
    }
    if let Some(accuracy) = sample.accuracy {
        parts.push(format!(
            "{:.1} % of the tokens are reconstructed",
            100.0 * accuracy
        ));
    }
    if let Some(change) = sample.rounding {
        let stored = sample
            .loss_stored
            .map(|loss| format!(", loss {loss:.3} as stored"));
        parts.push(format!(
            "rounded by {:.2} %{}",
            100.0 * change,
            stored.unwrap_or_default()
        ));
    }
    if let Some(cache) = sample.cache_bytes {
        // As numbers: the cache could be rounded like the memory.
        let times = cache as f64 / 4.0 / file.numbers_each().max(1) as f64;
        parts.push(format!(
            "replaces a key-value cache of {} bytes in f32 ({times:.1} times the memory's numbers)",
            with_separators(cache)
        ));
    }
    if sample.context.is_some() {
        parts.push("with its text".into());
    }
    parts.join("; ")
}

/// The element type of a file's vectors, such as `f32`.
pub fn dtype(file: &MemoryFile) -> String {
    format!("{:?}", file.dtype()).to_lowercase()
}
