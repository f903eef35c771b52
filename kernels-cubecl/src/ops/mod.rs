//! The extension traits of backends and the functions on tensors that call them.

pub mod associative;
pub mod attention;
pub mod calls;
pub mod head;
pub mod layers;
pub mod scan;
pub mod selection;

use attention::AttentionBackend;
use head::HeadBackend;
use scan::ScanBackend;

/// A backend that implements all traits of this crate: what the models of GradMem need.
pub trait KernelBackend: AttentionBackend + HeadBackend + ScanBackend {}

impl<B: AttentionBackend + HeadBackend + ScanBackend> KernelBackend for B {}
