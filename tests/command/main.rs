//! The program `gradmem`, in one binary: nearly every test starts it as a child process.

mod cli;
mod crash;
mod experiments;
mod memories;
mod outputs;
mod program;
mod readme;
mod resume;
mod terminal;
