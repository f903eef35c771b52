//! The library on the CPU, in one binary.

mod burn_nn;
mod dependencies;
mod differences;
mod folders;
mod generation;
mod imports;
mod in_context;
mod joined;
mod kinds;
mod known_answers;
mod large_vocabulary;
mod memory_files;
mod outer_gradient;
mod own_training;
mod precision;
mod pretrained;
mod reference;
mod second_order;
mod settings;
mod shared;
mod threads;
mod transfers;
