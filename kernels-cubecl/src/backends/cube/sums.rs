//! The accumulators of the products of tiles.

use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

use super::tiles::*;

/// The sums of a pair of tiles' scores, or of a tile of an output.
#[derive(CubeType)]
pub struct Sums {
    /// Without matrix units: four by four scores, or four rows of the output.
    pub quads: Array<Quad>,
    /// With matrix units: the matrices of this plane.
    pub matrices: Sequence<cmma::Matrix<f32>>,
}

/// `count` vectors of zeros.
#[cube]
pub fn zeros(#[comptime] count: usize) -> Array<Quad> {
    let mut quads = Array::<Quad>::new(count);
    #[unroll]
    for i in 0..count {
        quads[i] = Quad::new(0.0);
    }
    quads
}

#[cube]
impl Sums {
    pub fn scores(#[comptime] tiles: Tiles) -> Sums {
        Sums::zeros(4usize, comptime!(tiles.score_share()), tiles)
    }

    pub fn output(#[comptime] tiles: Tiles) -> Sums {
        let quads = comptime!(4 * tiles.spread());
        Sums::zeros(quads, comptime!(tiles.output_share()), tiles)
    }

    fn zeros(
        #[comptime] quads: usize,
        #[comptime] matrices: usize,
        #[comptime] tiles: Tiles,
    ) -> Sums {
        let mut sequence = Sequence::<cmma::Matrix<f32>>::new();
        if comptime!(tiles.matrix) {
            #[unroll]
            for _ in 0..matrices {
                sequence.push(cmma::Matrix::<f32>::from_value(
                    MatrixIdent::Accumulator,
                    MATRIX,
                    MATRIX,
                    MATRIX,
                    MatrixLayout::Undefined,
                    0.0,
                ));
            }
        }
        Sums {
            quads: zeros(comptime!(if tiles.matrix { 1 } else { quads })),
            matrices: sequence,
        }
    }
}
