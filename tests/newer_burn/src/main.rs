//! Numbers go from a memory of gradmem into a tensor of the project's own, newer Burn, and back.

use burn::tensor::{Tensor, TensorData};
use gradmem::burn as older;
use gradmem::burn_flex::Flex;
use gradmem::{episode::Tokens, memory::GradMemConfig, memory::Memory, model::LlamaConfig};

fn main() {
    let device = Default::default();
    let lm = LlamaConfig::new(20, 16, 1, 2)
        .init::<Flex>(0, &device)
        .unwrap();
    let gradmem = GradMemConfig::new().init(lm, 1, &device).unwrap();
    let contexts = Tokens::new(&[[4_u32, 7, 5]], &device).unwrap();
    let written = gradmem.write(&contexts).unwrap();

    let vectors = written.vectors().into_data(); // [batch, memory_tokens, d_model]
    let [batch, m, d] = [0, 1, 2].map(|axis| vectors.shape[axis]);
    let data = TensorData::new(vectors.to_vec::<f32>().unwrap(), [batch, m, d]);
    let newer = Tensor::<3>::from_data(data, &Default::default()) * 2.0;

    let values = newer.into_data().try_to_vec::<f32>().unwrap();
    let data = older::tensor::TensorData::new(values, [batch, m, d]);
    let back = older::tensor::Tensor::<Flex, 3>::from_data(data, &device) / 2.0;
    assert_eq!(back.to_data(), written.vectors().to_data());
    let queries = Tokens::new(&[[4_u32]], &device).unwrap();
    let logits = gradmem.read(&Memory::from_vectors(back), &queries).unwrap();
    println!(
        "{batch} memory of {m} vectors went through both; logits {:?}",
        logits.dims()
    );
}
