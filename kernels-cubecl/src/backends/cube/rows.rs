//! Kernels in which a cube computes whole rows: sums over a row, and the division of rows among cubes.

use burn_cubecl::CubeRuntime;
use cubecl::prelude::*;

/// Units of a cube, at most.
pub const UNITS: usize = 256;
/// Cubes that add up over all rows: each leaves a row of sums.
const BLOCKS: usize = 256;

/// The rows of a kernel.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Rows {
    pub count: usize,
    /// Values of a row.
    pub width: usize,
    /// Rows that a cube computes, one after another.
    pub each: usize,
}

/// How a kernel over rows is launched.
pub struct RowLaunch {
    cubes: CubeCount,
    pub units: usize,
    count: usize,
    width: usize,
    each: usize,
}

impl RowLaunch {
    /// A cube for each row, or for some of them if the kernel `adds` over rows.
    pub fn new<R: CubeRuntime>(
        client: &ComputeClient<R>,
        [count, width]: [usize; 2],
        adds: bool,
    ) -> Self {
        let hardware = &client.properties().hardware;
        // A power of two, as the sums over all units need.
        let most = UNITS.min(1 << hardware.max_units_per_cube.max(1).ilog2());
        // Each unit has about four values of a row.
        let units = width.div_ceil(4).next_power_of_two().max(32).min(most);
        let each = if adds { count.div_ceil(BLOCKS) } else { 1 };
        Self {
            cubes: grid(client, count.div_ceil(each)),
            units,
            count,
            width,
            each,
        }
    }

    /// Cubes, and units of each.
    pub fn grid(&self) -> (CubeCount, CubeDim) {
        (self.cubes.clone(), CubeDim::new_1d(self.units as u32))
    }

    /// Cubes that have rows.
    pub fn blocks(&self) -> usize {
        self.count.div_ceil(self.each)
    }

    pub fn rows<R: CubeRuntime>(&self) -> RowsLaunch<R> {
        RowsLaunch::new(self.count, self.width, self.each)
    }
}

/// So many cubes and, where they do not fill the grid, a few more: one axis may not have room for all of them.
pub fn grid<R: CubeRuntime>(client: &ComputeClient<R>, cubes: usize) -> CubeCount {
    let most = client.properties().hardware.max_cube_count.0 as usize;
    let wide = cubes.min(most).min(1 << 15);
    CubeCount::Static(wide as u32, cubes.div_ceil(wide) as u32, 1)
}

/// The number of this cube.
#[cube]
pub fn block() -> usize {
    CUBE_POS_X as usize + CUBE_POS_Y as usize * CUBE_COUNT_X as usize
}

/// The sum of all units' values.
#[cube]
pub fn sum_across(value: f32, shared: &mut SharedMemory<f32>, #[comptime] units: usize) -> f32 {
    across(value, shared, false, units)
}

/// The largest of all units' values.
#[cube]
pub fn max_across(value: f32, shared: &mut SharedMemory<f32>, #[comptime] units: usize) -> f32 {
    across(value, shared, true, units)
}

#[cube]
fn across(
    value: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] largest: bool,
    #[comptime] units: usize,
) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    let mut reach = comptime!(units / 2).runtime();
    while reach > 0 {
        if unit < reach {
            let (own, other) = (shared[unit], shared[unit + reach]);
            if comptime!(largest) {
                shared[unit] = max(own, other);
            } else {
                shared[unit] = own + other;
            }
        }
        sync_cube();
        reach /= 2;
    }
    shared[0]
}
