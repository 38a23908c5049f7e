//! Small sets of clips are decoded once.

use super::media::*;
use longreel::data::{Augment, Crop, FrameCache, FrameRegion, Frames, Loader, Request};
use std::sync::Arc;

const PART: u64 = 2 * 40 * 48 * 3;

#[test]
fn clips_that_fit_are_decoded_once_and_equal_what_decoding_gives() {
    let folder = folder();
    video(folder.path().join("a.mp4"), 25, (64, 48), &H264);
    let mut config = config(4, 40, 48);
    config.flip = true;
    let dataset = Arc::new(open(&config, folder.path()));
    let request = |clip, flip| Request { augment: Augment { flip, ..Augment::PLAIN }, ..dataset.plain(clip) };
    let requests: Vec<Request> = [(1, false), (1, true), (0, false), (1, false), (1, true), (0, false)]
        .into_iter()
        .map(|(clip, flip)| request(clip, flip))
        .collect();
    let expected: Vec<_> =
        requests[..3].iter().map(|r| dataset.frames(&dataset.clip(r.clip), &r.augment, 1..3).unwrap()).collect();
    assert_ne!(expected[0], expected[1], "a mirrored clip is another");

    // What is asked otherwise than a run asks is not taken from the cache.
    config.flip = false;
    let plain = FrameCache::new(&config, 2, &FrameRegion::whole(1..3, 40));
    let mirrored = request(0, true);
    let black = |first| Ok(Frames { first, lines: 0..1, height: 1, width: 1, data: vec![0; 3] });
    assert_eq!(plain.get(&mirrored, || black(1)).unwrap().first, 1);
    assert_eq!(plain.get(&request(1, false), || black(2)).unwrap().first, 2, "the mirror image of clip 0");
    assert_eq!(plain.get(&mirrored, || black(3)).unwrap().first, 3, "kept, though the run has no mirror images");
    assert_eq!(plain.get(&request(1, false), || panic!("decoded again")).unwrap().first, 2);

    // One clip at a time, so that the file is gone before a clip is asked for again.
    let mut loader = Loader::new(dataset.clone(), FrameRegion::whole(1..3, 40), 1, requests.into_iter()).unwrap();
    let mut samples = vec![loader.next().unwrap().unwrap(), loader.next().unwrap().unwrap()];
    samples.push(loader.next().unwrap().unwrap());
    std::fs::write(folder.path().join("a.mp4"), b"gone").unwrap();
    samples.extend(loader.map(Result::unwrap));
    for (i, sample) in samples.iter().enumerate() {
        assert_eq!(*sample.frames, expected[i % 3], "sample {i}");
        assert!(Arc::ptr_eq(&sample.frames, &samples[i % 3].frames), "sample {i} was decoded again");
    }
}

#[test]
fn only_sets_that_fit_and_are_always_cropped_alike_are_kept() {
    let mut config = config(4, 40, 48);
    assert_eq!(FrameCache::bytes(&config, 100, PART), 100 * PART);
    config.flip = true;
    assert_eq!(FrameCache::bytes(&config, 100, PART), 200 * PART);
    let most = (64 << 20) / (2 * PART) as usize;
    assert_eq!(FrameCache::bytes(&config, most, PART), 2 * most as u64 * PART);
    assert_eq!(FrameCache::bytes(&config, most + 1, PART), 0);
    assert_eq!(FrameCache::bytes(&config, usize::MAX, u64::MAX), 0);
    config.crop = Crop::Random;
    assert_eq!(FrameCache::bytes(&config, 1, PART), 0);
}
