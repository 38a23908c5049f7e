//! Tests the order of clips and the prefetch queue.

use super::media::*;
use longreel::data::{Augment, Crop, Dataset, FrameRegion, Loader, Request, token_grid};
use longreel::parallel::Split;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// 11 clips of 4 frames, 48 x 64, from two files.
fn eleven() -> (TempDir, Arc<Dataset>) {
    let folder = folder();
    video(folder.path().join("a.mp4"), 25, (64, 48), &H264);
    video(folder.path().join("b.mkv"), 20, (64, 48), &H264);
    let mut augmented = config(4, 40, 48);
    (augmented.crop, augmented.flip) = (Crop::Random, true);
    let dataset = open(&augmented, folder.path());
    assert_eq!(dataset.len(), 11);
    (folder, Arc::new(dataset))
}

#[test]
fn every_epoch_goes_through_all_clips_in_an_order_of_its_own() {
    let (_folder, dataset) = eleven();
    let epoch =
        |seed: u64, e: u64| -> Vec<usize> { (e * 11..(e + 1) * 11).map(|p| dataset.clip_at(seed, p).0).collect() };
    for e in 0..5 {
        assert_eq!(epoch(7, e).iter().copied().collect::<BTreeSet<_>>(), (0..11).collect());
    }
    assert_ne!(epoch(7, 0), epoch(7, 1));
    assert_ne!(epoch(7, 0), epoch(8, 0));
    assert_eq!(epoch(7, 0), epoch(7, 0));
    assert_eq!((dataset.clip_at(7, 10).1, dataset.clip_at(7, 11).1), (0, 1));
}

#[test]
fn order_crops_and_flips_depend_on_the_position_alone() {
    let (_folder, dataset) = eleven();
    let whole: Vec<Request> = (0..36).map(|p| dataset.training(3, p)).collect();
    for ranks in [1u64, 2, 3] {
        let again = Dataset::open(dataset.options(), dataset.files()[0].path.parent().unwrap()).unwrap();
        // Data ranks take positions step * ranks + rank; the run is resumed in the middle, in any order of asking.
        for position in (0..36).rev() {
            let (step, rank) = (position / ranks, position % ranks);
            assert_eq!(again.training(3, step * ranks + rank), whole[position as usize]);
        }
    }
    let crops: BTreeSet<String> = whole.iter().map(|r| format!("{:?}", r.augment.crop)).collect();
    assert_eq!(crops.len(), 36, "each clip in each epoch has a crop of its own");
    let flips = whole.iter().filter(|r| r.augment.flip).count();
    assert!((8..=28).contains(&flips), "{flips} of 36 mirrored");
    assert!(whole.iter().all(|r| r.augment.crop.iter().all(|share| (0.0..1.0).contains(share))));

    let mut plain = dataset.options().clone();
    (plain.crop, plain.flip) = (Crop::Center, false);
    assert_eq!(Augment::draw(&plain, 3, 1, 5), Augment::PLAIN);
    assert_eq!(dataset.plain(4), Request { bucket: 0, clip: 4, epoch: 0, augment: Augment::PLAIN });
}

#[test]
fn ranks_load_disjoint_regions_that_cover_the_clip() {
    let (_folder, dataset) = eleven();
    let patch = [2, 8, 8];
    let grid = token_grid([4, 40, 48], patch).unwrap();
    let tokens = grid.iter().product();
    for position in [0, 5] {
        let request = dataset.training(1, position);
        let clip = dataset.clip(request.clip);
        let whole = dataset.frames(&clip, &request.augment, 0..4).unwrap();
        for ranks in [1, 2, 3, 7] {
            for rank in 0..ranks {
                let range = FrameRegion::of_tokens(Split::new(tokens, ranks).range(rank), grid, patch);
                let part = dataset.region(&clip, &request.augment, &range).unwrap();
                assert_eq!((part.first, part.count()), (range.frames.start, range.frames.len()));
                for (i, n) in range.frames.enumerate() {
                    let lines = range.lines.start * 48 * 3..range.lines.end * 48 * 3;
                    assert!(part.frame(i) == &whole.frame(n)[lines], "frame {n} of rank {rank} of {ranks}");
                }
            }
        }
    }
}

#[test]
fn the_loader_gives_the_clips_in_order() {
    let (_folder, dataset) = eleven();
    for prefetch in [1, 2, 5, 40] {
        let requests: Vec<Request> = (4..30).map(|p| dataset.training(9, p)).collect();
        let loader =
            Loader::new(dataset.clone(), FrameRegion::whole(1..3, 40), prefetch, requests.clone().into_iter()).unwrap();
        let samples: Vec<_> = loader.map(Result::unwrap).collect();
        assert_eq!(samples.len(), requests.len());
        for (sample, request) in samples.iter().zip(&requests) {
            assert_eq!((sample.request, sample.clip.id), (*request, request.clip));
            assert_eq!((sample.frames.first, sample.frames.count()), (1, 2));
            assert_eq!(*sample.frames, dataset.frames(&sample.clip, &request.augment, 1..3).unwrap());
        }
    }
}

#[test]
fn loader_queue_is_bounded() {
    let (_folder, dataset) = eleven();
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, source) = (asked.clone(), dataset.clone());
    let requests = (0..1_000_000).map(move |p| {
        count.fetch_add(1, Ordering::SeqCst);
        source.training(2, p)
    });
    let mut loader = Loader::new(dataset, FrameRegion::whole(0..4, 40), 3, requests).unwrap();
    for taken in 0..6 {
        let start = Instant::now();
        while asked.load(Ordering::SeqCst) < taken + 3 && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(asked.load(Ordering::SeqCst), taken + 3);
        loader.next().unwrap().unwrap();
    }
    assert!(loader.waited() < Duration::from_secs(5));
}

#[test]
fn damaged_clip_is_an_error_in_its_place_and_ends_the_loader() {
    let (folder, dataset) = eleven();
    std::fs::write(folder.path().join("b.mkv"), b"gone").unwrap();
    let requests: Vec<Request> = [0, 1, 2, 9, 3, 4, 5].into_iter().map(|clip| dataset.plain(clip)).collect();
    let mut loader = Loader::new(dataset.clone(), FrameRegion::whole(0..4, 40), 2, requests.into_iter()).unwrap();
    for _ in 0..3 {
        loader.next().unwrap().unwrap();
    }
    let error = refusal!(Data, loader.next().unwrap());
    assert!(error.contains("b.mkv") && error.contains("clip 3 from frame 12"), "{error}");
    assert!(loader.next().is_none() && loader.next().is_none());

    let mut loader =
        Loader::new(dataset.clone(), FrameRegion::whole(0..4, 40), 2, std::iter::once(dataset.plain(11))).unwrap();
    assert!(refusal!(Data, loader.next().unwrap()).contains("there are 11"));
    let panics = (0..3u64).map({
        let dataset = dataset.clone();
        move |i| if i < 1 { dataset.plain(0) } else { panic!("on purpose") }
    });
    let mut loader = Loader::new(dataset, FrameRegion::whole(0..4, 40), 2, panics).unwrap();
    loader.next().unwrap().unwrap();
    assert!(refusal!(Data, loader.next().unwrap()).contains("panicked"));
    assert!(loader.next().is_none());
}

#[test]
fn dropping_the_loader_early_stops_it_promptly() {
    let (_folder, dataset) = eleven();
    for taken in [0, 1, 3] {
        let source = dataset.clone();
        let mut loader =
            Loader::new(dataset.clone(), FrameRegion::whole(0..4, 40), 4, (0..).map(move |p| source.training(2, p)))
                .unwrap();
        for _ in 0..taken {
            loader.next().unwrap().unwrap();
        }
        let start = Instant::now();
        drop(loader);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}
