//! Which keys there are, learnt from the structs: serde's derived code tells a deserializer the fields it expects, so a
//! deserializer that only listens needs no second list to keep true.

use super::data::Data;
use super::lora::Lora;
use super::run::{Model, Parallel, Run, RunConfig, Sample, Text, Train, Vae};
use crate::diffusion::DiffusionOptions;
use crate::engine::stash::StashOptions;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor, value::Error};

/// Every section and its keys, in the order of [`RunConfig`].
pub fn sections() -> Vec<(&'static str, &'static [&'static str])> {
    let keys: [&[_]; 11] = [
        fields::<Run>(),
        fields::<Data>(),
        fields::<Model>(),
        fields::<Lora>(),
        fields::<Vae>(),
        fields::<Text>(),
        fields::<DiffusionOptions>(),
        fields::<Train>(),
        fields::<Parallel>(),
        fields::<StashOptions>(),
        fields::<Sample>(),
    ];
    let names = fields::<RunConfig>();
    assert_eq!(names.len(), keys.len(), "a section is missing from this list");
    names.iter().copied().zip(keys).collect()
}

/// The names of a struct's fields, as TOML spells them.
fn fields<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    let mut heard: &'static [&'static str] = &[];
    let _ = T::deserialize(Listener(&mut heard)); // always an error: it has no values to give
    heard
}

struct Listener<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Listener<'_> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        Err(Error::custom("listened"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::custom("not a struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
