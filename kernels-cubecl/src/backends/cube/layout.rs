//! What of a tile lies where in a cube's shared memory: [`Room`](super::room::Room)'s pitches and sizes.

use super::tiles::{MATRIX, Tiles};

/// Rows that are not on the same banks as their neighbours, in 16-bit and in 32-bit numbers.
const PAD_16: usize = 8;
pub const PAD_32: usize = 4;
impl Tiles {
    /// Vectors from one staged column to the next; the odd one keeps the units on different banks.
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

    /// Numbers from one staged row to the next, of an operand, of what an output product multiplies,
    /// of weights and of scores.
    pub const fn operand_pitch(&self) -> usize {
        self.depth + PAD_16
    }

    pub const fn row_pitch(&self) -> usize {
        self.bands() * MATRIX + PAD_16
    }

    pub const fn weight_pitch(&self) -> usize {
        self.side + PAD_16
    }

    pub const fn score_pitch(&self) -> usize {
        self.side + PAD_32
    }

    /// Numbers of one staged operand.
    pub const fn operand_numbers(&self) -> usize {
        self.side * self.operand_pitch()
    }

    /// Matrices along the head.
    pub const fn bands(&self) -> usize {
        self.dim.div_ceil(MATRIX)
    }

    /// Matrices along the tile.
    pub const fn blocks(&self) -> usize {
        self.side / MATRIX
    }

    /// Matrices of the scores, and of the output, that one plane has.
    pub const fn score_share(&self) -> usize {
        self.blocks() * self.blocks() / self.planes()
    }

    pub const fn output_share(&self) -> usize {
        (self.blocks() * self.bands()).div_ceil(self.planes())
    }

    /// Steps of a score product through what is staged: columns, or matrices.
    pub const fn steps(&self) -> usize {
        match self.matrix {
            true => self.depth / MATRIX,
            false => self.depth,
        }
    }

    /// Rows of the other side that are staged at once for an output product: as many as fit where the
    /// operands of the score products were.
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

    pub const fn stage_quads(&self) -> usize {
        match self.matrix {
            true => 1,
            false => larger(
                self.reach() * self.width(),
                self.operands * self.operand_quads(),
            ),
        }
    }

    /// Of the weights, and of what the units of a row tell each other.
    pub const fn weight_quads(&self) -> usize {
        match self.matrix {
            true => self.lanes() * self.quad_pitch(),
            false => self.side * self.quad_pitch(),
        }
    }

    pub const fn stage_numbers(&self) -> usize {
        match self.matrix {
            true => larger(
                self.reach() * self.row_pitch(),
                self.operands * self.operand_numbers(),
            ),
            false => 1,
        }
    }

    pub const fn weight_numbers(&self) -> usize {
        match self.matrix {
            true => self.side * self.weight_pitch(),
            false => 1,
        }
    }

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
