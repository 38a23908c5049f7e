//! Prints a plan as one line of JSON.

use serde_json::{Map, Value, json};

use super::Found;
use crate::plan::search::Change;
use crate::plan::{Part, Phase};

/// All of it.
pub fn line(found: &Found) -> Value {
    let (plan, times) = (&found.plan, &found.times);
    let largest = plan.largest();
    let phase = |phase: &Phase| json!({"name": phase.name, "bytes": phase.bytes(), "parts": parts(&phase.parts)});
    let fit = found.fit.as_ref();
    let decoding = found.decoding.as_ref().ok();
    json!({
        "tokens": plan.tokens,
        "parameters": plan.parameters,
        "trained": plan.trained,
        "mesh": {"data": plan.mesh[0], "ulysses": plan.mesh[1], "ring": plan.mesh[2]},
        "peak": largest.peak().name,
        "phases": largest.phases.iter().map(phase).collect::<Vec<_>>(),
        "ranks": plan.ranks.iter().map(|rank| rank.peak().bytes()).collect::<Vec<_>>(),
        "disk": plan.ranks.iter().map(|rank| rank.disk).collect::<Vec<_>>(),
        "host": parts(&largest.host),
        "decoding": decoding.map(|one| json!({
            "image": one.image,
            "video": one.video,
            "seconds_a_clip": one.seconds,
            "files": one.files[0],
            "of_files": one.files[1],
        })),
        "latents": plan.latents.map(|latents| json!({"clips": latents.clips, "bytes": latents.total()})),
        "texts": plan.texts.map(|texts| json!({"texts": texts.texts, "bytes": texts.total()})),
        "process": plan.total(),
        "per_rank": plan.per_rank(),
        "memory": fit.map(|fit| fit.memory),
        "fits": fit.map(|fit| plan.per_rank() <= fit.memory),
        "least_change": fit.and_then(|fit| fit.least.as_ref()).map(change),
        "with_more_ranks": fit.and_then(|fit| fit.with_ranks.as_ref()).map(change),
        "smallest": fit.and_then(|fit| fit.smallest.as_ref()).map(change),
        "longest_tokens": fit.and_then(|fit| fit.longest.as_ref()).map(|plan| plan.tokens),
        "longest_changed": fit.and_then(|fit| fit.longest_changed.as_ref()).map(change),
        "flop": {"linear": plan.work.flop[0], "attention": plan.work.flop[1]},
        "sent": plan.work.sent.iter().map(|(name, bytes)| json!({"name": name, "bytes": bytes})).collect::<Vec<_>>(),
        "seconds": times.step,
        "seconds_of_decoding": times.decoding,
        "seconds_of_run": {
            "encoding": times.encoding,
            "embedding": times.embedding,
            "steps": times.steps,
            "heldout": times.heldout,
            "samples": times.samples,
            "checkpoints": times.checkpoints,
            "all": times.run(),
        },
        "basis": found.basis,
    })
}

fn parts(parts: &[Part]) -> Map<String, Value> {
    parts.iter().map(|part| (part.name.to_owned(), json!(part.bytes))).collect()
}

fn change(change: &Change) -> Value {
    json!({
        "settings": change.settings,
        "per_rank": change.plan.per_rank(),
        "process": change.plan.total(),
        "tokens": change.plan.tokens,
    })
}
