//! Estimates what decoding takes: memory of a thread, from what a file says of itself, and the time of a clip.
//!
//! An image's decoder holds the whole image, unless its lines come one by one. FFmpeg's hold as many frames as the
//! codec may look back at, and those that wait for their turn to be shown.

use super::apart::Apart;
use super::buckets::Bucket;
use super::dataset::Dataset;
use super::ffmpeg::{Reader, Reason};
use super::image_reader;
use super::options::ClipOptions;
use super::scale::cover;
use super::sets::{ClipSets, Source};
use super::shuffle::Augment;
use super::source::{Media, SourceFile};
use ffmpeg_next::codec::Id;
use ffmpeg_next::frame;
use std::path::Path;
use std::time::Instant;

/// How many files a plan looks at, if there are more: spread over the folder.
pub const LOOKED_AT: usize = 200;

/// How many of those with the most pixels are opened for what their decoders take.
const LARGEST: usize = 8;

/// What a decoder of FFmpeg's has beside its frames: its tables, a packet, the demuxer's buffers.
const CONTEXT: u64 = 2 << 20;

/// What decoding a data set's clips takes one thread.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoding {
    /// Bytes for an image, by the process's own allocator: the most of the files that were looked at.
    pub image: u64,
    /// Bytes for a video, by FFmpeg.
    pub video: u64,
    /// Seconds for the clip of the largest file, as measured; none if it was not.
    pub seconds: Option<f64>,
    /// Files that were looked at, and all.
    pub files: [usize; 2],
    /// Clips of all files, by those that were looked at.
    pub clips: usize,
    /// The same by their size.
    pub sizes: Vec<(Bucket, usize)>,
}

impl Decoding {
    /// What several datasets take together: the most of each, and all their clips.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let seconds = [self.seconds, other.seconds].into_iter().flatten().reduce(f64::max);
        Self {
            image: self.image.max(other.image),
            video: self.video.max(other.video),
            seconds,
            files: [self.files[0] + other.files[0], self.files[1] + other.files[1]],
            clips: self.clips + other.clips,
            sizes: [self.sizes, other.sizes].concat(),
        }
    }

    /// Threads that decode for one rank, `prefetch` clips ahead and a micro-batch of `batch` clips at least.
    pub fn threads(prefetch: usize, batch: usize) -> usize {
        prefetch.max(batch).min(Self::cores())
    }

    /// Processors of this machine.
    pub fn cores() -> usize {
        std::thread::available_parallelism().map_or(1, |n| n.get())
    }

    /// What the files below `path` take, but for what is `apart`; with `timed`, one clip is decoded to measure that.
    /// None if no file can be used.
    ///
    /// # Errors
    /// Those of [`Dataset::survey`].
    pub fn look(options: &ClipOptions, path: &Path, apart: &Apart, timed: bool) -> crate::Result<Option<Self>> {
        let (dataset, count) = Dataset::spread(options, path, apart, LOOKED_AT)?;
        if dataset.is_empty() {
            return Ok(None);
        }
        let mut decoding = Self::of(&dataset);
        let looked_at = count.min(LOOKED_AT) as u128;
        decoding.clips = (decoding.clips as u128 * count as u128 / looked_at.max(1)) as usize;
        decoding.sizes.iter_mut().for_each(|(_, clips)| *clips = decoding.clips); // of the one size
        decoding.files[1] = count;
        if timed {
            decoding.seconds = dataset.seconds_of_a_clip();
        }
        Ok(Some(decoding))
    }

    /// The same of clips of several sizes, untimed.
    ///
    /// # Errors
    /// Those of [`ClipSets::survey`].
    pub fn look_at(sources: &[Source]) -> crate::Result<Option<Self>> {
        let (sets, count) = ClipSets::spread(sources, LOOKED_AT)?;
        let all = sets.buckets().iter().map(|dataset| Self::of(dataset)).reduce(Self::and);
        Ok(all.map(|decoding| Self { files: [decoding.files[0], count], ..decoding }))
    }

    /// How many clips the files below `path` give, if all of them are looked at and some can be used.
    pub fn clips(options: &ClipOptions, path: &Path, apart: &Apart) -> Option<usize> {
        let (dataset, count) = Dataset::spread(options, path, apart, LOOKED_AT).ok()?;
        (count <= LOOKED_AT && !dataset.is_empty()).then(|| dataset.len())
    }

    /// What the files of `dataset` take.
    pub fn of(dataset: &Dataset) -> Self {
        let files = dataset.files();
        let sizes = vec![(dataset.options().size().into(), dataset.len())];
        let mut decoding = Self { files: [files.len(); 2], clips: dataset.len(), sizes, ..Self::default() };
        for file in largest(files, LARGEST) {
            match file.media {
                Media::Image => decoding.image = decoding.image.max(image_reader::memory(&file.path).unwrap_or(0)),
                // A thread has the whole frames that it was given.
                Media::Own(_) => {
                    decoding.image = (file.frames * file.height * file.width * 3) as u64;
                }
                Media::Video { .. } => decoding.video = decoding.video.max(video(file).unwrap_or(0)),
            }
        }
        decoding
    }
}

/// The `count` files with the most pixels a frame, the largest first.
fn largest(files: &[SourceFile], count: usize) -> Vec<&SourceFile> {
    let mut all: Vec<&SourceFile> = files.iter().collect();
    all.sort_by_key(|file| std::cmp::Reverse(file.width * file.height));
    all.truncate(count);
    all
}

fn video(file: &SourceFile) -> Reason<u64> {
    let mut reader = Reader::open(&file.path, None)?;
    let mut frame = frame::Video::empty();
    reader.next_frame(&mut frame)?;
    let bytes: usize = (0..frame.planes()).map(|plane| frame.data(plane).len()).sum();
    // One is being decoded, one is in the hands of who asked for it.
    let frames = references(reader.codec(), reader.references()) + reader.delay() + 2;
    let (width, height) = cover((file.width, file.height), (file.options.width, file.options.height));
    let resized = (width * height * 3) as u64;
    Ok((frames * bytes) as u64 + resized + CONTEXT)
}

/// Frames that a codec may look back at. `claimed` is what the stream says, if it does.
fn references(codec: Id, claimed: usize) -> usize {
    match codec {
        Id::H264 => claimed.clamp(1, 16),
        Id::HEVC => 5,
        Id::VP9 | Id::AV1 => 8,
        Id::MJPEG | Id::PNG | Id::PRORES | Id::DNXHD | Id::RAWVIDEO | Id::GIF => 0,
        _ => 2,
    }
}

impl Dataset {
    /// Seconds that one thread takes to decode a clip of the largest file; none if it cannot.
    fn seconds_of_a_clip(&self) -> Option<f64> {
        let file = largest(self.files(), 1).first().map(|file| file.path.clone())?;
        let number = self.files().iter().position(|other| other.path == file)?;
        // One in the middle: on average a clip begins as far behind a key frame.
        let clip = self.clip(self.first_clip(number) + self.files()[number].clips / 2);
        let start = Instant::now();
        self.frames(&clip, &Augment::PLAIN, 0..self.options().frames).ok()?;
        Some(start.elapsed().as_secs_f64())
    }
}
