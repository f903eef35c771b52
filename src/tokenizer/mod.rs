//! Hugging Face's `tokenizer.json`: opened with checks, encoding and decoding without panics.

pub(crate) mod json;
