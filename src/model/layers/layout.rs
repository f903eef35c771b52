use std::marker::PhantomData;

use burn::module::{
    AutodiffModule, Content, Devices, HasAutodiffModule, Module, ModuleDisplay,
    ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::record::{PrecisionSettings, Record};
use burn::tensor::backend::{AutodiffBackend, Backend};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// In a record, beside a weight `[d_output, d_input]`: that it is one. Burn's linear layer has the same names and the other
/// layout; its record lacks the mark and is refused, where a square weight would be loaded transposed.
#[derive(Clone, Debug, Default)]
pub struct OutputFirst<B>(PhantomData<B>);

/// What of [`OutputFirst`] is in a record.
#[derive(Clone, Copy, Debug)]
pub struct Mark;

const MARK: &str = "[d_output, d_input]";

impl Serialize for Mark {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MARK)
    }
}

impl<'de> Deserialize<'de> for Mark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = String::deserialize(deserializer)?;
        match found == MARK {
            true => Ok(Self),
            false => Err(D::Error::custom(format!(
                "a weight of the layout {found:?} where {MARK} belongs"
            ))),
        }
    }
}

impl<B: Backend> Record<B> for Mark {
    type Item<S: PrecisionSettings> = Self;

    fn into_item<S: PrecisionSettings>(self) -> Self {
        self
    }

    fn from_item<S: PrecisionSettings>(item: Self, _: &B::Device) -> Self {
        item
    }
}

impl<B: Backend> Module<B> for OutputFirst<B> {
    type Record = Mark;

    fn collect_devices(&self, devices: Devices<B>) -> Devices<B> {
        devices
    }

    fn fork(self, _: &B::Device) -> Self {
        self
    }

    fn to_device(self, _: &B::Device) -> Self {
        self
    }

    fn visit<V: ModuleVisitor<B>>(&self, _: &mut V) {}

    fn map<M: ModuleMapper<B>>(self, _: &mut M) -> Self {
        self
    }

    fn load_record(self, _: Mark) -> Self {
        self
    }

    fn into_record(self) -> Mark {
        Mark
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for OutputFirst<B> {
    type InnerModule = OutputFirst<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        OutputFirst::default()
    }

    fn from_inner(_: Self::InnerModule) -> Self {
        Self::default()
    }
}

impl<B: AutodiffBackend> HasAutodiffModule<B> for OutputFirst<B::InnerBackend> {
    type TrainModule = OutputFirst<B>;
}

impl<B: Backend> ModuleDisplayDefault for OutputFirst<B> {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(&MARK).optional()
    }
}

impl<B: Backend> ModuleDisplay for OutputFirst<B> {}
