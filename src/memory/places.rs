//! Where in a model's layers a memory is, and how many numbers it is made of.

use std::collections::BTreeSet;

use super::kinds::Place;
use super::{GradMemConfig, LoraPlace, MemProj, MemoryKind};
use crate::error::Error;
use crate::model::Slots;
use crate::model::paths::is_called;

impl GradMemConfig {
    /// How many numbers one memory is made of, for a model of this width with these slots; of one chunk, if READ is given
    /// those of several.
    ///
    /// # Errors
    ///
    /// Settings that do not fit the model.
    pub fn numbers(&self, slots: &Slots, d_model: usize) -> Result<usize, Error> {
        Ok(match self.kind {
            MemoryKind::Prefix => {
                let own = match self.mem_proj {
                    MemProj::PerSample => d_model * (d_model + 1),
                    MemProj::None | MemProj::Proj => 0,
                };
                self.memory_tokens * d_model + own
            }
            MemoryKind::Lora => {
                let places = lora_places(self, slots, d_model)?;
                let widths = places
                    .iter()
                    .map(|(_, d_input, d_output)| d_input + d_output);
                self.lora_rank * widths.sum::<usize>()
            }
            MemoryKind::Kv => {
                let layers = chosen_layers(self, slots.layers)?.len();
                let [heads, head_dim] = keys_values(self, slots)?;
                2 * layers * self.memory_tokens * heads * head_dim
            }
        })
    }
}

/// Heads of keys and values, and their width.
pub(super) fn keys_values(config: &GradMemConfig, slots: &Slots) -> Result<[usize; 2], Error> {
    let problem = "the model keeps no keys and values: `prefix` and `lora` are other kinds";
    let error = || Error::config("kind", config.kind.as_str(), problem);
    slots.keys_values.ok_or_else(error)
}

/// The layers that have a memory: all, unless some are named.
pub(super) fn chosen_layers(config: &GradMemConfig, layers: usize) -> Result<Vec<usize>, Error> {
    let kind = config.kind.as_str();
    if layers == 0 {
        let problem = "the model does not say where in its layers a memory can be (`CausalLm::slots`): `prefix` needs nothing of it";
        return Err(Error::config("kind", kind, problem));
    }
    if config.layers.is_empty() {
        return Ok((0..layers).collect());
    }
    if let Some(layer) = config.layers.iter().find(|layer| **layer >= layers) {
        let problem = format!("the model's layers are 0 … {}", layers - 1);
        return Err(Error::config("layers", layer, problem));
    }
    let chosen: BTreeSet<usize> = config.layers.iter().copied().collect();
    Ok(chosen.into_iter().collect())
}

/// Where LoRA's maps are, with the widths of what they read and add to.
pub(super) fn lora_places(
    config: &GradMemConfig,
    slots: &Slots,
    d_model: usize,
) -> Result<Vec<(Place, usize, usize)>, Error> {
    let layers = chosen_layers(config, slots.layers)?;
    let modules = match config.lora_place {
        LoraPlace::Layers => vec![(None, d_model, d_model)],
        LoraPlace::Modules => chosen_modules(config, slots)?,
    };
    let places = layers.into_iter().flat_map(|layer| {
        let of_layer = modules.iter();
        of_layer.map(move |(module, d_input, d_output)| {
            let place = Place {
                layer,
                module: *module,
            };
            (place, *d_input, *d_output)
        })
    });
    Ok(places.collect())
}

type ModuleWidths = (Option<&'static str>, usize, usize);

/// The modules that `lora_targets` names by their paths or the ends of them, or all, with their widths.
fn chosen_modules(config: &GradMemConfig, slots: &Slots) -> Result<Vec<ModuleWidths>, Error> {
    let targets = &config.lora_targets;
    let unknown = |target: &&String| !slots.modules.iter().any(|m| is_called(m.name, target));
    if let Some(unknown) = targets.iter().find(unknown) {
        let names: Vec<&str> = slots.modules.iter().map(|module| module.name).collect();
        let problem = format!("the model has no such module: it has {}", names.join(", "));
        return Err(Error::config("lora_targets", unknown, problem));
    }
    if slots.modules.is_empty() {
        let problem = "the model's modules take no adapters: `layers` is another place";
        return Err(Error::config("lora_place", "modules", problem));
    }
    let chosen = slots.modules.iter().filter(|module| {
        targets.is_empty() || targets.iter().any(|target| is_called(module.name, target))
    });
    let chosen = chosen.map(|module| (Some(module.name), module.d_input, module.d_output));
    Ok(chosen.collect())
}
