//! The operations and their derivatives on the CPU backends.

mod associative;
mod attention;
mod flex;
mod layers;
mod scan;

/// Pseudo-random values in [-1, 1], the same for equal seeds.
fn numbers(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
