//! The reference implementation (the authors' PyTorch code): its checkpoints, and its numbers reproduced.

mod armt;
pub mod checkpoint;
mod gradmem;
pub mod parity;
