//! The layout of a tile in a cube's shared memory: pitches and sizes for [`SharedTiles`](super::shared::SharedTiles).

use super::tiles::{MATRIX, Tiles};

/// Padding of a row, in 16-bit and in 32-bit values, that puts neighbouring rows on different banks.
const PAD_16: usize = 8;
pub const PAD_32: usize = 4;

impl Tiles {
    /// Vectors from one staged column to the next; the extra one puts the units on different banks.
    pub const fn quad_pitch(&self) -> usize {
        self.lanes() + 1
    }

    /// Vectors of one staged operand.
    pub const fn operand_quads(&self) -> usize {
        self.depth * self.quad_pitch()
    }

    /// Vectors of an output row that one unit holds.
    pub const fn spread(&self) -> usize {
        self.dim.div_ceil(4).div_ceil(self.lanes())
    }

    /// Vectors of a whole output row.
    pub const fn width(&self) -> usize {
        self.spread() * self.lanes()
    }

    /// Values from one row of a staged operand of a score product to the next.
    pub const fn operand_pitch(&self) -> usize {
        self.depth + PAD_16
    }

    /// Values from one row of the staged operand of an output product to the next.
    pub const fn row_pitch(&self) -> usize {
        self.bands() * MATRIX + PAD_16
    }

    /// Values from one row of the weights to the next.
    pub const fn weight_pitch(&self) -> usize {
        self.side + PAD_16
    }

    /// Values from one row of the scores to the next.
    pub const fn score_pitch(&self) -> usize {
        self.side + PAD_32
    }

    /// Values of one staged operand.
    pub const fn operand_numbers(&self) -> usize {
        self.side * self.operand_pitch()
    }

    /// Matrices along the head dim.
    pub const fn bands(&self) -> usize {
        self.dim.div_ceil(MATRIX)
    }

    /// Matrices along a side of the tile.
    pub const fn blocks(&self) -> usize {
        self.side / MATRIX
    }

    /// Matrices of the scores that one plane computes.
    pub const fn score_share(&self) -> usize {
        self.blocks() * self.blocks() / self.planes()
    }

    /// Matrices of the output that one plane computes.
    pub const fn output_share(&self) -> usize {
        (self.blocks() * self.bands()).div_ceil(self.planes())
    }

    /// Steps of a score product along the staged operands: columns, or matrices.
    pub const fn steps(&self) -> usize {
        match self.matrix {
            true => self.depth / MATRIX,
            false => self.depth,
        }
    }

    /// Rows of the other side that are staged at once for an output product: as many as fit into the memory
    /// of the score products' operands.
    pub const fn reach(&self) -> usize {
        let mut reach = self.side;
        let (row, operands) = match self.matrix {
            true => (self.row_pitch(), self.operand_numbers()),
            false => (self.width(), self.operand_quads()),
        };
        while reach > MATRIX && reach * row > self.operands * operands {
            reach /= 2;
        }
        reach
    }

    /// Vectors of the stage.
    pub const fn stage_quads(&self) -> usize {
        match self.matrix {
            true => 1,
            false => larger(
                self.reach() * self.width(),
                self.operands * self.operand_quads(),
            ),
        }
    }

    /// Vectors of the weights, which are also the memory of [`SharedTiles::across`](super::shared::SharedTiles::across).
    pub const fn weight_quads(&self) -> usize {
        match self.matrix {
            true => self.lanes() * self.quad_pitch(),
            false => self.side * self.quad_pitch(),
        }
    }

    /// Values of the stage.
    pub const fn stage_numbers(&self) -> usize {
        match self.matrix {
            true => larger(
                self.reach() * self.row_pitch(),
                self.operands * self.operand_numbers(),
            ),
            false => 1,
        }
    }

    /// Values of the weights.
    pub const fn weight_numbers(&self) -> usize {
        match self.matrix {
            true => self.side * self.weight_pitch(),
            false => 1,
        }
    }

    /// Values of the scores.
    pub const fn score_numbers(&self) -> usize {
        match self.matrix {
            true => self.side * self.score_pitch(),
            false => 1,
        }
    }
}

const fn larger(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}
