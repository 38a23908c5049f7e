//! Chooses the bucket of a file: the size nearest in shape that it fills, and the most frames that it has.

use super::buckets::Bucket;

impl Bucket {
    /// The logarithm of width over height.
    fn aspect(&self) -> f64 {
        (self.width as f64 / self.height as f64).ln()
    }
}

/// What of a file decides about its bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct FileShape {
    pub width: usize,
    pub height: usize,
    /// Frames at the rate that is asked for; none of an image.
    pub frames: Option<usize>,
    /// Whether all frames have this size.
    pub one_size: bool,
}

/// The bucket of `group` for a file, or the one that it is too small or too short for.
///
/// An image takes one frame, a video more where the group has such buckets. Of those the nearest aspect ratio counts;
/// of several of that ratio the largest that fits, in area and then in frames. `span` is how many frames of a file so
/// many of a clip need.
pub(super) fn choose(group: &[Bucket], file: FileShape, span: impl Fn(usize) -> usize) -> Choice {
    let [stills, videos]: [Vec<Bucket>; 2] = {
        let (stills, videos) = group.iter().partition(|bucket| bucket.frames == 1);
        [stills, videos]
    };
    let suited = match file.frames {
        None if stills.is_empty() => return Choice::NoImages,
        None => stills,
        Some(_) if videos.is_empty() => stills,
        Some(_) => videos,
    };
    let log = (file.width as f64 / file.height as f64).ln();
    let distance = |bucket: &Bucket| (bucket.aspect() - log).abs();
    let least = suited.iter().map(distance).fold(f64::INFINITY, f64::min);
    let near: Vec<Bucket> = suited.into_iter().filter(|bucket| distance(bucket) < least + 1e-9).collect();
    let short = |bucket: &Bucket| file.frames.is_some_and(|frames| frames < span(bucket.frames));
    let small = |bucket: &Bucket| file.one_size && (file.width < bucket.width || file.height < bucket.height);
    let size = |bucket: &Bucket| (bucket.pixels(), bucket.frames);
    let fitting = near.iter().copied().filter(|bucket| !short(bucket) && !small(bucket)).max_by_key(size);
    match fitting {
        Some(bucket) => Choice::Fits(bucket),
        None => {
            // What is asked of the file is the least: frames first, since those are what more often lacks.
            let enough = near.iter().copied().filter(|bucket| !short(bucket)).min_by_key(size);
            let least = near.iter().copied().min_by_key(|bucket| (bucket.frames, bucket.pixels()));
            enough.or(least).map_or(Choice::NoImages, Choice::Lost)
        }
    }
}

/// What [`choose`] finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Choice {
    Fits(Bucket),
    /// The file is too small or too short for this.
    Lost(Bucket),
    /// It is an image, and clips have more frames.
    NoImages,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn video(width: usize, height: usize, frames: usize) -> FileShape {
        FileShape { width, height, frames: Some(frames), one_size: true }
    }

    fn bucket(width: usize, height: usize, frames: usize) -> Bucket {
        Bucket { frames, height, width }
    }

    #[test]
    fn a_file_takes_the_nearest_aspect_and_the_most_frames_that_it_has() {
        let group = [bucket(96, 48, 1), bucket(96, 48, 9), bucket(96, 48, 17), bucket(48, 96, 9), bucket(64, 64, 1)];
        let fits = |file| choose(&group, file, |frames| frames);
        assert_eq!(fits(video(200, 100, 40)), Choice::Fits(bucket(96, 48, 17)));
        assert_eq!(fits(video(200, 100, 16)), Choice::Fits(bucket(96, 48, 9)));
        // Too short for nine frames; a bucket of images is not for videos.
        assert_eq!(fits(video(200, 100, 8)), Choice::Lost(bucket(96, 48, 9)));
        assert_eq!(fits(video(90, 200, 16)), Choice::Fits(bucket(48, 96, 9)));
        assert_eq!(fits(video(90, 46, 40)), Choice::Lost(bucket(96, 48, 9)));
        let image = FileShape { frames: None, ..video(70, 65, 1) };
        assert_eq!(fits(image), Choice::Fits(bucket(64, 64, 1)));
        assert_eq!(choose(&group[1..4], image, |frames| frames), Choice::NoImages);
        // Where all buckets have one frame, every frame of a video is a clip.
        assert_eq!(choose(&group[..1], video(200, 100, 5), |frames| frames), Choice::Fits(bucket(96, 48, 1)));
        // Every second frame: seventeen of them span 33.
        assert_eq!(choose(&group, video(200, 100, 32), |n| 2 * n - 1), Choice::Fits(bucket(96, 48, 9)));
    }
}
