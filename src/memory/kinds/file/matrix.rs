//! One matrix of n memories, as a file holds it.

use burn::tensor::{DType, TensorData};

/// A matrix of each memory.
#[derive(Clone, Debug)]
pub(super) struct Matrix {
    pub name: String,
    /// `[n, rows, columns]`, of floats or of bytes.
    pub numbers: TensorData,
    /// Of bytes, what each row of them is multiplied with: `[n, rows, 1]`.
    pub scales: Option<TensorData>,
}

impl Matrix {
    pub fn of_floats(name: &str, numbers: TensorData) -> Self {
        Self {
            name: name.into(),
            numbers,
            scales: None,
        }
    }

    pub fn shape(&self) -> [usize; 3] {
        [0, 1, 2].map(|at| self.numbers.shape[at])
    }

    /// Bytes of all memories' numbers.
    pub fn bytes(&self) -> usize {
        let scales = self.scales.as_ref().map_or(0, |scales| scales.bytes.len());
        self.numbers.bytes.len() + scales
    }

    pub fn in_f32(&self) -> Self {
        let numbers = match &self.scales {
            None => self.numbers.clone().convert_dtype(DType::F32),
            Some(scales) => {
                let [.., columns] = self.shape();
                let scales: Vec<f32> = scales.iter::<f32>().collect();
                let values = self.numbers.iter::<f32>().enumerate();
                let values = values.map(|(at, value)| value * scales[at / columns]);
                TensorData::new(values.collect::<Vec<f32>>(), self.shape())
            }
        };
        Self::of_floats(&self.name, numbers)
    }

    pub fn in_bf16(&self) -> Self {
        let numbers = self.in_f32().numbers.convert_dtype(DType::BF16);
        Self::of_floats(&self.name, numbers)
    }

    /// As whole numbers from −127 to 127 times one number of each row.
    pub fn in_bytes(&self) -> Self {
        let [n, rows, columns] = self.shape();
        let values: Vec<f32> = self.in_f32().numbers.iter::<f32>().collect();
        let (mut bytes, mut scales) = (Vec::with_capacity(values.len()), Vec::new());
        for row in values.chunks(columns) {
            let largest = row.iter().fold(0f32, |most, value| most.max(value.abs()));
            let scale = largest / 127.0;
            scales.push(scale);
            bytes.extend(row.iter().map(|value| match scale > 0.0 {
                true => (value / scale).round().clamp(-127.0, 127.0) as i8,
                false => 0,
            }));
        }
        Self {
            name: self.name.clone(),
            numbers: TensorData::new(bytes, [n, rows, columns]),
            scales: Some(TensorData::new(scales, [n, rows, 1])),
        }
    }

    /// Those of the memories of these indices, in this order.
    pub fn select(&self, indices: &[usize]) -> Self {
        let [n, ..] = self.shape();
        let some = |data: &TensorData| {
            let each = data.bytes.len() / n;
            let bytes = indices
                .iter()
                .flat_map(|index| &data.bytes[index * each..(index + 1) * each]);
            let shape = [indices.len(), data.shape[1], data.shape[2]];
            TensorData::from_bytes_vec(bytes.copied().collect(), shape.to_vec(), data.dtype)
        };
        Self {
            name: self.name.clone(),
            numbers: some(&self.numbers),
            scales: self.scales.as_ref().map(some),
        }
    }
}

/// The root mean square of the differences between two forms of a memory, over that of the first's numbers.
pub(super) fn change(before: &[Matrix], after: &[Matrix], at: usize) -> f64 {
    let (mut squares, mut total) = (0.0, 0.0);
    for (a, b) in before.iter().zip(after) {
        let (a, b) = (&a.numbers, &b.numbers);
        let each = a.num_elements() / a.shape[0].max(1);
        let of_sample = |data: &TensorData| -> Vec<f32> {
            let all = data.as_slice::<f32>().unwrap_or_default();
            all.get(at * each..(at + 1) * each)
                .unwrap_or_default()
                .to_vec()
        };
        for (a, b) in of_sample(a).into_iter().zip(of_sample(b)) {
            squares += f64::from(a - b).powi(2);
            total += f64::from(a).powi(2);
        }
    }
    if total > 0.0 {
        (squares / total).sqrt()
    } else {
        0.0
    }
}
