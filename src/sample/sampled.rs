//! Takes a sampled clip's pixels, sharded over the ranks of its sequence, to rank 0 and to a file.

use candle_core::Tensor;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::data::write::{PngWriter, write_video};
use crate::data::{FrameRegion, Frames, RowOrder, token_grid, unit_to_u8};
use crate::ops::read;
use crate::parallel::{Communicator, Split};
use crate::vae::{Decoder, Frame};
use crate::{Result, bail, encode};

/// A sampled clip, sharded like its tokens.
pub struct Sampled {
    /// This rank's rows, [local S, pt ph pw C], in [-1, 1] where the network is right.
    pub rows: Tensor,
    /// Frames, height, width of the clip in pixels.
    pub size: [usize; 3],
    patch: [usize; 3],
    grid: [usize; 3],
    /// What makes pixels of the rows, if they are latents.
    decoder: Option<Arc<Decoder>>,
}

/// The rate of clips whose data had none.
pub const FPS_OF_IMAGES: f64 = 24.0;

/// Elements that travel to rank 0 at a time, unless a line of patches has more.
const BAND: usize = 1 << 20;

impl Sampled {
    /// From this rank's `rows`, [local S, pt ph pw 3], of a clip of `size` (frames, height, width) in patches of
    /// `patch`.
    ///
    /// # Errors
    /// The patch does not divide the size.
    pub fn new(rows: Tensor, size: [usize; 3], patch: [usize; 3]) -> Result<Self> {
        Ok(Self { rows, size, patch, grid: token_grid(size, patch)?, decoder: None })
    }

    /// The same clip, whose rows are latents, of `size` (frames, height, width) in pixels.
    pub fn decoded_by(self, decoder: Arc<Decoder>, size: [usize; 3]) -> Self {
        Self { decoder: Some(decoder), size, ..self }
    }

    /// Hands the clip to rank 0 in bands: `take` is called there, with some lines of one patch of frames at a time,
    /// from top to bottom and from first frame to last. A collective of the sequence's ranks; of the others each sends
    /// its rows.
    ///
    /// # Errors
    /// Those of `take`, on all ranks.
    pub fn bands(&self, comm: &Arc<dyn Communicator>, mut take: impl FnMut(Frames) -> Result<()>) -> Result<()> {
        if let Some(decoder) = &self.decoder {
            return self.decode(decoder, comm, take);
        }
        let [times, lines, columns] = self.grid;
        let row = self.rows.dims()[1];
        let split = Split::new(times * lines * columns, comm.size());
        let own = split.range(comm.rank());
        let within = |tokens: &Range<usize>, own: &Range<usize>| {
            tokens.start.clamp(own.start, own.end)..tokens.end.clamp(own.start, own.end)
        };
        let band = (BAND / (columns * row)).clamp(1, lines);
        for (t, first) in (0..times).flat_map(|t| (0..lines).step_by(band).map(move |first| (t, first))) {
            let last = (first + band).min(lines);
            let tokens = (t * lines + first) * columns..(t * lines + last) * columns;
            let to_send = within(&tokens, &own);
            let empty = self.rows.narrow(0, 0, 0)?;
            let mut send = vec![empty; comm.size()];
            send[0] = self.rows.narrow(0, to_send.start - own.start, to_send.len())?;
            let arriving = |rank| if comm.rank() == 0 { within(&tokens, &split.range(rank)) } else { 0..0 };
            let shapes: Vec<_> = (0..comm.size()).map(|rank| vec![arriving(rank).len(), row]).collect();
            let received = comm.all_to_all(send, &shapes)?;
            if comm.rank() == 0 {
                let region = FrameRegion::of_tokens(tokens.clone(), self.grid, self.patch);
                let mut pixels = Frames::black(&region, self.size[1], self.size[2]);
                for (rank, rows) in received.iter().enumerate() {
                    pixels.set_rows(self.patch, arriving(rank), RowOrder::ChannelLast, &read::<f32>(rows)?)?;
                }
                take(pixels)?;
            }
        }
        Ok(())
    }

    /// Decodes the clip over the ranks and hands rank 0 each frame.
    fn decode(
        &self,
        decoder: &Decoder,
        comm: &Arc<dyn Communicator>,
        mut take: impl FnMut(Frames) -> Result<()>,
    ) -> Result<()> {
        let [_, height, width] = self.size;
        let latents = self.latents(comm.as_ref(), decoder.config().z_dim)?;
        let mut first = 0;
        encode::decode(decoder, comm, &latents, &mut |frame| {
            let data = frame.values.iter().map(|value| unit_to_u8(*value)).collect();
            let frame = Frames { first, lines: 0..height, height, width, data };
            first += 1;
            if comm.rank() == 0 { take(frame) } else { Ok(()) }
        })
    }

    /// The latent frames, whole, on every rank.
    fn latents(&self, comm: &dyn Communicator, channels: usize) -> Result<Vec<Frame>> {
        let ([times, lines, columns], [pt, ph, pw]) = (self.grid, self.patch);
        let row = self.rows.dims()[1];
        let split = Split::new(times * lines * columns, comm.size());
        let shapes: Vec<_> = (0..comm.size()).map(|rank| vec![split.count(rank), row]).collect();
        let parts = comm.all_gather(&self.rows.contiguous()?, &shapes)?;
        let shape = [lines * ph, columns * pw, channels];
        let mut frames = vec![Frame::new(shape, vec![0.0; shape.iter().product()]); times * pt];
        let mut token = 0;
        for part in parts {
            for row in read::<f32>(&part)?.chunks_exact(row) {
                let (t, y, x) = (token / (lines * columns), token / columns % lines, token % columns);
                for (i, run) in row.chunks_exact(pw * channels).enumerate() {
                    let at = ((y * ph + i % ph) * columns * pw + x * pw) * channels;
                    frames[t * pt + i / ph].values[at..at + run.len()].copy_from_slice(run);
                }
                token += 1;
            }
        }
        Ok(frames)
    }

    /// Writes the clip, of one frame, to the PNG `path`, by rank 0 as its lines arrive. A collective. The inner result
    /// is that of writing: the ranks' exchange is complete then, so that a run can go on without its picture.
    ///
    /// # Errors
    /// The clip has more frames; those of the ranks' exchange. Within: the file cannot be written; nothing is left
    /// behind or overwritten then.
    pub fn write_png(&self, comm: &Arc<dyn Communicator>, path: &Path) -> Result<Result<()>> {
        let [frames, height, width] = self.size;
        if frames != 1 {
            bail!(Data, "{}: a clip of {frames} frames is not one picture", path.display())
        }
        let mut writer = (comm.rank() == 0).then(|| PngWriter::create(path, height, width)).transpose();
        self.bands(comm, |band| {
            if let Ok(Some(png)) = &mut writer
                && let Err(e) = png.push(&band.data)
            {
                writer = Err(e);
            }
            Ok(())
        })?;
        Ok(writer.and_then(|writer| writer.map_or(Ok(()), PngWriter::finish)))
    }

    /// Writes the clip to `path`, as its extension says, at `fps` frames per second; a PNG of one frame line by line. A
    /// collective. The inner result is that of writing, as of [`write_png`](Self::write_png).
    ///
    /// # Errors
    /// Those of the ranks' exchange. Within: the file cannot be written.
    pub fn write(&self, comm: &Arc<dyn Communicator>, path: &Path, fps: f64) -> Result<Result<()>> {
        if self.size[0] == 1 && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
            return self.write_png(comm, path);
        }
        let clip = self.collect(comm)?;
        Ok(clip.map_or(Ok(()), |clip| write_video(path, &clip.data, clip.height, clip.width, fps)))
    }

    /// The clip's pixels, whole, on rank 0; none on others. A collective.
    ///
    /// # Errors
    /// Those of the ranks' exchange.
    pub fn collect(&self, comm: &Arc<dyn Communicator>) -> Result<Option<Frames>> {
        let [frames, height, width] = self.size;
        let mut clip = (comm.rank() == 0).then(|| Frames::black(&FrameRegion::whole(0..frames, height), height, width));
        self.bands(comm, |band| {
            if let Some(clip) = &mut clip {
                clip.place(&band);
            }
            Ok(())
        })?;
        Ok(clip)
    }
}
