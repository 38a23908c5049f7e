//! What the weights that a run goes on from were trained for, against what its config asks for: what cannot be right is
//! refused, what may be is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use toml::{Table, Value};

use crate::config::RunConfig;
use crate::data::ClipSets;
use crate::files::atomic_write;
use crate::model::{LoraSpec, ModelConfig};
use crate::state::adapters::AdapterRecord;
use crate::state::checkpoint::{Checkpoint, DataCounts, RunFolder, State};
use crate::state::named::NamedModel;
use crate::{Error, Result, bail, hub};

/// Classes that are named where they do not fit.
const NAMED: usize = 5;

/// Refuses to go on from `checkpoint` with another network, other adapters, or another prediction.
///
/// # Errors
/// The first key that differs, with both values. The checkpoint cannot be read.
pub(super) fn check_network(
    checkpoint: &Checkpoint,
    config: &RunConfig,
    model: &ModelConfig,
    lora: Option<&LoraSpec>,
) -> Result<()> {
    let step = checkpoint.state().step;
    let network = match (checkpoint.is_of_adapters(), lora) {
        (true, Some(lora)) => {
            let record = AdapterRecord::of(&checkpoint.adapter()?)?;
            if record.lora.modules != lora.modules {
                bail!(
                    Config,
                    "[lora] has other layers, ranks or scales than the adapters of the checkpoint of step {step}: set it back, or \
                     start a new run with another run.out"
                )
            }
            record.network()?
        }
        (false, None) => ModelConfig::of(&checkpoint.transformer()?)?,
        (adapters, _) => {
            let [was, is] = [adapters, !adapters].map(|lora| if lora { "adapters ([lora])" } else { "all weights" });
            bail!(
                Config,
                "the checkpoint of step {step} is of a run that trains {was}, and the config trains {is}: set [lora] back, or start a \
                 new run with another run.out"
            )
        }
    };
    let [was, is] = [&network, model].map(|model| serde_json::to_value(model).expect("plain fields"));
    for (key, is) in is.as_object().into_iter().flatten() {
        let was = &was[key];
        if was != is {
            bail!(
                Config,
                "model.{key} is {is}, the network of the checkpoint of step {step} has {was}: set it back, or start a new run with \
                 another run.out"
            )
        }
    }
    let (was, is) = (written(checkpoint.state()), table(config)?);
    let [was, is] = [&was, &is].map(|config| value(config, "diffusion", "prediction"));
    if was.is_some() && was != is {
        let [was, is] = [was, is].map(shown);
        bail!(
            Config,
            "diffusion.prediction is {is}, the checkpoint of step {step} was trained with {was}: the network would predict another thing \
             than it learnt; set it back, or start a new run from its weights with model.from"
        )
    }
    Ok(())
}

/// Gives the classes of `dataset` the numbers that the checkpoint's network knows them by.
///
/// # Errors
/// There is a class that it does not know.
pub(super) fn number_classes(checkpoint: &Checkpoint, dataset: &mut ClipSets) -> Result<()> {
    let State { classes, step, .. } = checkpoint.state();
    if classes.is_empty() || !dataset.labelled() {
        return Ok(());
    }
    if let Some(new) = dataset.classes().iter().find(|name| !classes.contains(name)) {
        bail!(
            Data,
            "data.path: class folder {new:?} is not among the classes of the checkpoint of step {step}: {classes:?}; the network knows \
             classes by their place in that list, so name the folder as before, or start a new run with model.from"
        )
    }
    dataset.number_classes_as(classes)
}

/// As [`number_classes`], for a new run whose weights come from a checkpoint of ours; other classes than there are a
/// warning.
///
/// # Errors
/// None that [`Dataset::number_classes_as`] has for classes that are known.
pub(super) fn inherit_classes(config: &RunConfig, dataset: &mut ClipSets) -> Result<()> {
    let known = match origin(config) {
        Some(checkpoint) if config.data.labelled() => checkpoint.state().classes.clone(),
        _ => return Ok(()),
    };
    if known.is_empty() || dataset.classes() == known {
        return Ok(());
    }
    if dataset.classes().iter().all(|name| known.contains(name)) {
        tracing::info!("classes are numbered as where the weights come from: {known:?}");
        return dataset.number_classes_as(&known);
    }
    let other = known.iter().zip(dataset.classes()).enumerate().filter(|(_, (was, is))| was != is);
    let other: Vec<String> =
        other.take(NAMED).map(|(i, (was, is))| format!("class {i} was {was:?}, is {is:?}")).collect();
    tracing::warn!("the weights were trained on other classes, which keep their numbers only: {}", other.join(", "));
    Ok(())
}

/// Logs a table of what differs from when `checkpoint` was saved.
///
/// # Errors
/// None for a config that was checked.
pub(super) fn log_differences(checkpoint: &Checkpoint, config: &RunConfig, dataset: &ClipSets) -> Result<()> {
    let state = checkpoint.state();
    let mut rows = differences(&written(state), &table(config)?);
    let counts = DataCounts::of(dataset);
    if let Some(was) = state.data.filter(|was| *was != counts) {
        rows.push(["the data".to_owned(), was.to_string(), counts.to_string()]);
    }
    for (class, name) in dataset.classes().iter().enumerate() {
        if !state.classes.is_empty()
            && dataset.buckets().iter().flat_map(|set| set.files()).all(|file| file.class != Some(class))
        {
            rows.push([format!("class {name:?}"), "a folder".to_owned(), "no clips".to_owned()]);
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let wide = rows.iter().map(|[key, ..]| key.chars().count()).max().unwrap_or(0);
    let rows: Vec<String> = rows.iter().map(|[key, was, is]| format!("\n  {key:wide$}  {was} -> {is}")).collect();
    tracing::info!("since the checkpoint of step {}:{}", state.step, rows.concat());
    Ok(())
}

/// Takes the keys of `[diffusion]` that are not `given` from the checkpoint of ours that `model.from` names weights of,
/// if it does: the weights are good for what they were trained with. What is given stays; another prediction is a
/// warning.
///
/// # Errors
/// None for a checkpoint that longreel wrote.
pub fn inherit_diffusion(config: &mut RunConfig, given: impl Fn(&str) -> bool) -> Result<()> {
    let Some(checkpoint) = origin(config) else { return Ok(()) };
    let (old, mut new) = (written(checkpoint.state()), table(config)?);
    let mut taken = vec![];
    let keys = old.get("diffusion").and_then(Value::as_table).into_iter().flatten();
    let section = new.get_mut("diffusion").and_then(Value::as_table_mut);
    let Some(section) = section else { return Ok(()) };
    for (key, was) in keys {
        let Some(is) = section.get_mut(key).filter(|is| *is != was) else { continue };
        if !given(key) {
            taken.push(format!("{key} = {was}"));
            *is = was.clone();
        } else if key == "prediction" {
            let from = checkpoint.dir().display();
            tracing::warn!(
                "diffusion.prediction is {is}, but the weights of {from} were trained to predict {was}: the network has to learn that \
                 anew; leave the key out to go on as it was trained"
            );
        } else {
            tracing::info!("diffusion.{key} is {is}; the weights were trained with {was}");
        }
    }
    if !taken.is_empty() {
        tracing::info!(
            "[diffusion] as the weights of {} were trained: {}",
            checkpoint.dir().display(),
            taken.join(", ")
        );
    }
    config.diffusion =
        section.clone().try_into().map_err(|e| Error::Checkpoint(format!("model.from: [diffusion]: {e}")))?;
    config.check()
}

/// Gives the config of a run that goes on, and that does not say its dtype, the one of the checkpoint it goes on from:
/// of `step`, or the last. Where there is none, or it cannot be read, the run itself says so.
pub fn inherit_dtype(config: &mut RunConfig, step: Option<u64>) {
    let Ok(Some(checkpoint)) = RunFolder::new(&config.run.out).to_resume(step) else { return };
    let Ok(was) = RunConfig::of_checkpoint(&checkpoint).map(|was| was.train.dtype) else { return };
    if was != config.train.dtype {
        tracing::info!("train.dtype is {}, as the run was begun; to change it, name it", was.name());
        config.train.dtype = was;
    }
}

/// Writes config.toml anew for a run that goes on from `step`, if it differs. The old one is kept beside it, and named
/// for the steps that it counted for.
///
/// # Errors
/// Those of reading and writing.
pub(super) fn rewrite_config(folder: &RunFolder, config: &RunConfig, step: u64) -> Result<()> {
    let (path, text) = (folder.config(), config.to_toml()?);
    let read = |path: &Path| match std::fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, e)),
    };
    let old = read(&path)?;
    if old.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    if let Some(old) = old {
        for number in 1.. {
            let number = if number == 1 { String::new() } else { format!("-{number}") };
            let kept = path.with_file_name(format!("config-until-step-{step:08}{number}.toml"));
            let there = read(&kept)?;
            if there.is_none() {
                atomic_write(&kept, |out| out.write_all(&old))?;
                tracing::info!("{}: the config until step {step}; config.toml is written anew", kept.display());
            }
            if there.is_none_or(|there| there == old) {
                break;
            }
        }
    }
    atomic_write(&path, |out| out.write_all(text.as_bytes()))
}

/// The checkpoint of ours on this machine whose weights `model.from` names: itself, a part of it, or its run.
fn origin(config: &RunConfig) -> Option<Checkpoint> {
    let name = config.model.from.as_ref().filter(|name| !name.starts_with("hf://"))?;
    NamedModel::find(&hub::resolve(name).ok()?).ok()?.checkpoint
}

/// The config in a checkpoint's state, with the defaults of keys that came later, if it can still be read as one.
fn written(state: &State) -> Table {
    let config = RunConfig::parse(&state.config, Path::new("state.json"), &[]);
    config.and_then(|config| table(&config)).unwrap_or_else(|_| state.config.parse().unwrap_or_default())
}

fn table(config: &RunConfig) -> Result<Table> {
    Table::try_from(config).map_err(|e| Error::Config(format!("the config cannot be written as TOML: {e}")))
}

fn value<'a>(config: &'a Table, section: &str, key: &str) -> Option<&'a Value> {
    config.get(section)?.get(key)
}

fn shown(value: Option<&Value>) -> String {
    value.map_or("none".to_owned(), Value::to_string)
}

/// Key, old and new value of all that differs; where the run's folder lies is no difference.
fn differences(was: &Table, is: &Table) -> Vec<[String; 3]> {
    let [was, is] = [was, is].map(keys);
    let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let mut rows = vec![];
    for name in names.into_iter().filter(|name| *name != "run.out") {
        let [was, is] = [&was, &is].map(|keys| keys.get(name).copied());
        if was != is {
            rows.push([name.clone(), shown(was), shown(is)]);
        }
    }
    rows
}

/// Every `section.key` with its value; of sections that are repeated `section.1.key` and so on.
fn keys<'a>(config: &'a Table) -> BTreeMap<String, &'a Value> {
    let mut keys = BTreeMap::new();
    let mut add = |section: String, table: &'a Value| {
        let values = table.as_table().into_iter().flatten();
        keys.extend(values.map(|(key, value)| (format!("{section}.{key}"), value)));
    };
    for (section, value) in config {
        match value.as_array() {
            Some(tables) => {
                tables.iter().zip(1..).for_each(|(table, number)| add(format!("{section}.{number}"), table))
            }
            None => add(section.clone(), value),
        }
    }
    keys
}
