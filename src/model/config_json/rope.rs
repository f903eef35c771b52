//! The rotary settings of a `config.json`, which versions of `transformers` keep in several places.

use serde_json::{Map, Value};

/// Where a model's rotary settings are at the top level.
pub struct Names {
    theta: &'static str,
    /// The share of each head's dimensions that is rotated; a Llama has none, it rotates all.
    share: Option<&'static str>,
    /// Keys that look like settings and that no version reads for this model.
    unread: &'static [&'static str],
}

pub const LLAMA: Names = Names {
    theta: "rope_theta",
    share: None,
    unread: &[],
};

pub const GPT_NEOX: Names = Names {
    theta: "rotary_emb_base",
    share: Some("rotary_pct"),
    unread: &["rope_theta", "partial_rotary_factor"],
};

/// Brings the rotary settings to one place each: base and share at the top level under the model's names, the scaling
/// rule in `rope_scaling`. As in `transformers` 5, the dictionary is `rope_scaling` or else `rope_parameters`; what is
/// in it takes precedence over the top level, which fills the gaps.
pub fn unify(
    json: &mut Map<String, Value>,
    names: Names,
    said: impl Fn(String),
) -> Result<(), String> {
    let mut dictionary = |key: &str| match json.remove(key) {
        None => Ok(Map::new()),
        Some(Value::Object(mut rope)) => {
            rope.retain(|_, value| !value.is_null());
            Ok(rope)
        }
        Some(other) => Err(format!(
            "`{key}` = {other} is not an object of rotary settings"
        )),
    };
    let (scaling, parameters) = (dictionary("rope_scaling")?, dictionary("rope_parameters")?);
    let (place, mut rope, other) = match scaling.is_empty() {
        true => ("rope_parameters", parameters, Map::new()),
        false => ("rope_scaling", scaling, parameters),
    };
    for (key, value) in &other {
        if rope.get(key) != Some(value) {
            said(format!(
                "`rope_scaling` and `rope_parameters` differ in `{key}`: `rope_scaling` is used, as by transformers 5"
            ));
        }
    }
    let kind = rope.remove("rope_type");
    let old_kind = rope.remove("type");
    if let (Some(kind), Some(old_kind)) = (&kind, &old_kind)
        && kind != old_kind
    {
        return Err(format!(
            "`{place}.type` = {old_kind} contradicts `{place}.rope_type` = {kind}: versions of transformers choose differently"
        ));
    }
    let kind = kind.or(old_kind).unwrap_or("default".into());
    let share = "partial_rotary_factor";
    let homes = [("rope_theta", Some(names.theta)), (share, names.share)];
    for (key, top) in homes {
        if let Some(top) = top
            && let Some(value) = rope.remove(key)
            && let Some(old) = json.insert(top.into(), value.clone())
            && old.as_f64() != value.as_f64()
        {
            said(format!(
                "`{top}` = {old} and `{place}.{key}` = {value} differ: the second is used, as by transformers 5"
            ));
        }
    }
    if names.share.is_none() {
        let inside = rope
            .remove(share)
            .map(|value| (format!("{place}.{share}"), value));
        let outside = json.remove(share).map(|value| (share.to_string(), value));
        let mut values = [inside, outside].into_iter().flatten();
        if let Some((key, value)) = values.find(|(_, value)| value.as_f64() != Some(1.0)) {
            return Err(format!(
                "`{key}` = {value} is not supported: a Llama rotates all dimensions of a head"
            ));
        }
    }
    for key in names.unread {
        let Some(value) = json.remove(*key) else {
            continue;
        };
        let (top, usual) = match *key {
            "rope_theta" => (names.theta, 10_000.0),
            _ => (names.share.unwrap_or_default(), 0.25),
        };
        let read = json.get(top).map_or(Some(usual), Value::as_f64);
        if value.as_f64() != read {
            said(format!(
                "`{key}` = {value} is ignored, as by transformers, which reads `{top}` or `rope_parameters.{key}`"
            ));
        }
    }
    // `transformers` 5 prefers this one; 4 does not read it.
    let length = "original_max_position_embeddings";
    if let Some(top) = json.remove(length)
        && kind == "llama3"
        && let Some(inside) = rope.insert(length.into(), top.clone())
        && inside != top
    {
        return Err(format!(
            "`{length}` = {top} contradicts `{place}.{length}` = {inside}: versions of transformers choose differently"
        ));
    }
    // Its base grows where a sequence is longer than `max_position_embeddings`, which none is here.
    if kind == "dynamic" && !rope.contains_key(length) {
        return Ok(());
    }
    if kind == "default" {
        return match rope.keys().next() {
            None => Ok(()),
            Some(key) => Err(format!(
                "`{place}.{key}` has no meaning with `rope_type` = \"default\": remove it or name the rule that it belongs to"
            )),
        };
    }
    rope.insert("rope_type".into(), kind);
    json.insert("rope_scaling".into(), Value::Object(rope));
    Ok(())
}
