//! What a plan says of a run's cache of latents: clips, bytes and time by their sizes, and what encoding a clip takes.

use super::*;
use image::RgbImage;

/// Bytes of the latents of 5 frames of 48 x 32 pixels, and of one of 32 x 48, in f16.
const VIDEO: u64 = 2 * 3 * 2 * 4 * 6;
const PICTURE: u64 = 2 * 3 * 6 * 4;

/// The phase in which clips are encoded.
fn encoding(plan: &Value) -> &Value {
    let phases = plan["phases"].as_array().unwrap();
    phases.iter().find(|phase| phase["name"] == "encoding clips, before the first step").unwrap()
}

fn seconds(plan: &Value) -> f64 {
    plan["seconds_of_run"]["encoding"].as_f64().unwrap()
}

#[test]
fn clips_of_the_cache_are_counted_with_their_variants() {
    let place = Place::latents();
    let one = planned(&place, &[]);
    assert_eq!(one["latents"], serde_json::json!({"clips": 4, "bytes": 4 * VIDEO}));
    let three = planned(&place, &["data.flip=true", "data.variants=3"]);
    assert_eq!(three["latents"], serde_json::json!({"clips": 12, "bytes": 12 * VIDEO}));
    assert!((seconds(&three) / seconds(&one) - 3.0).abs() < 1e-9 && seconds(&one) > 0.0);
    let said = text(&succeed(&mut plan(&place, &[])).stdout);
    assert!(said.contains("encoding 4 clips, 1.1 KiB in the cache"), "{said}");
    assert!(planned(&Place::videos(), &[])["latents"].is_null(), "a run on pixels has no cache");
    fs::remove_dir_all(place.path("clips")).unwrap();
    let gone = planned(&place, &[]);
    assert!(gone["latents"]["bytes"].is_null() && gone["seconds_of_run"]["encoding"].is_null(), "{gone}");
}

/// A picture is not taken for the largest clip, which memory is planned for.
#[test]
fn each_size_of_the_cache_has_its_own_bytes() {
    let place = Place::latents();
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let buckets = config.replace("frames = 5\nheight = 32\nwidth = 48\n", "buckets = [[48, 32, 5], [32, 48, 1]]\n");
    assert_ne!(buckets, config);
    let videos = planned(&place, &[]);
    fs::write(place.path("config.toml"), buckets).unwrap();
    RgbImage::new(36, 52).save(place.path("clips/still.png")).unwrap();
    let both = planned(&place, &[]);
    assert_eq!(both["latents"], serde_json::json!({"clips": 5, "bytes": 4 * VIDEO + PICTURE}));
    assert_eq!(both["tokens"], 12);
    assert!((seconds(&both) / seconds(&videos) - 21.0 / 20.0).abs() < 1e-9, "21 frames, not 20");
}

/// A clip's decoder and pixels are there while it is encoded, not while steps run.
#[test]
fn encoding_has_the_decoder_and_the_pixels_of_a_clip() {
    let place = Place::latents();
    let known = planned(&place, &[]);
    let parts = &encoding(&known)["parts"];
    assert_eq!(parts["pixels being encoded"], 5 * 32 * 48 * 3);
    assert_eq!(parts["the clip's moments and latents"], 3 * 4 * VIDEO / 2);
    assert_eq!(parts["the file being decoded"], known["decoding"]["video"]);
    assert!(known["decoding"]["video"].as_u64().unwrap() > 36 * 52 * 3 / 2, "{known}");
    assert!(known["phases"][0]["parts"]["images being decoded"].as_u64().unwrap_or_default() == 0, "{known}");
    // Of a long clip no more pixels than are decoded at a time.
    let long = planned(&place, &["data.frames=2001", "data.height=480", "data.width=832"]);
    assert_eq!(encoding(&long)["parts"]["pixels being encoded"], 256 << 20);
}
