//! The extension traits of backends and the functions on tensors that call them.

pub mod associative;
pub mod attention;
pub mod layers;
pub mod scan;
pub mod selection;

use attention::AttentionBackend;
use layers::LayerBackend;
use scan::ScanBackend;

/// A backend that implements all traits of this crate: what the models of GradMem need.
pub trait KernelBackend: AttentionBackend + LayerBackend + ScanBackend {}

impl<B: AttentionBackend + LayerBackend + ScanBackend> KernelBackend for B {}
