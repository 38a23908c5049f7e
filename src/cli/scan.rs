//! Runs `longreel scan` to report which files of a dataset folder would be used, which not, and why.
//!
//! It cuts clips exactly as training does; what it says is what `longreel train` will see. Nothing in the folder is
//! changed.

use super::{at_least_1, print, print_json};
use crate::config::RunConfig;
use crate::data::{self, Apart, ClipOptions, Dataset, Label, Overlaps, draw_sheet, name_below, token_grid};
use crate::terminal::{self, counted};
use crate::{Result, bail, hub};
use clap::Args;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Report which clips of a dataset would be used, and why others not.
#[derive(Debug, Args)]
pub struct ScanArgs {
    /// The dataset's folder, or `hf://owner/name[@revision][/path]`; with --config, its data.path if left out
    #[arg(value_name = "DIR", required_unless_present = "config", value_parser = super::place())]
    pub path: Option<String>,
    /// A run's config to take [data] and the patch size from; the flags below go over it
    #[arg(long, value_name = "CONFIG.toml")]
    pub config: Option<PathBuf>,
    /// Frames of a clip [default: 16]
    #[arg(long, value_parser = at_least_1)]
    pub frames: Option<usize>,
    /// Take every n-th frame [default: 1]
    #[arg(long, value_parser = at_least_1)]
    pub stride: Option<usize>,
    /// Height of a clip in pixels [default: 64]
    #[arg(long, value_parser = at_least_1)]
    pub height: Option<usize>,
    /// Width of a clip in pixels [default: 64]
    #[arg(long, value_parser = at_least_1)]
    pub width: Option<usize>,
    /// Frames per second to resample to [default: the source's own]
    #[arg(long)]
    pub fps: Option<f64>,
    /// Where classes come from: none, or the folder directly below DIR
    #[arg(long)]
    pub label: Option<LabelFlag>,
    /// Patch size (frames, height, width), to count tokens
    #[arg(long, value_name = "T,H,W", value_parser = three)]
    pub patch: Option<[usize; 3]>,
    /// Decode every frame of every file, to find damage within
    #[arg(long)]
    pub decode: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// Where the contact sheet goes [default: scan.png]
    #[arg(long, value_name = "FILE.png", value_parser = super::path())]
    pub sheet: Option<PathBuf>,
    /// Replace the contact sheet if it exists
    #[arg(long)]
    pub force: bool,
    /// Write no contact sheet
    #[arg(long, conflicts_with = "sheet")]
    pub no_sheet: bool,
}

/// [`Label`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum LabelFlag {
    None,
    Folder,
}

/// For clap: `T,H,W`.
fn three(text: &str) -> std::result::Result<[usize; 3], String> {
    let numbers: Vec<usize> =
        text.split(',').map(|part| at_least_1(part.trim())).collect::<std::result::Result<_, _>>()?;
    numbers.try_into().map_err(|_| "must be three numbers: frames,height,width".to_owned())
}

/// Where the contact sheet goes by default.
const SHEET: &str = "scan.png";

/// So many clips are shown on a contact sheet, one a file.
const SHOWN: usize = 48;

/// Runs the command.
///
/// # Errors
/// A setting or the patch does not fit, the folder cannot be read, nothing in it is usable, or the sheet cannot be
/// written.
pub fn run(args: ScanArgs) -> Result<()> {
    let sheet = args.sheet.clone().unwrap_or_else(|| SHEET.into());
    if !args.no_sheet {
        // Before every file is looked at. Whoever scans again and again, and names no sheet, is not stopped by the last
        // one.
        super::may_write(&sheet, args.force || args.sheet.is_none())?;
    }
    let (path, clips, patch, apart) = settings(&args)?;
    let root = hub::resolve(&path)?;
    let mut dataset = Dataset::survey_without(&clips, &root, &apart)?;
    Overlaps::find(&dataset, None).log();
    if args.decode {
        dataset = dataset.decode_all();
    }
    let tokens = match patch {
        Some(patch) => Some(token_grid(clips.size(), patch)?.iter().product()),
        None => None,
    };
    let report = Report { dataset: &dataset, root: &root, tokens };
    if args.json { print_json(format!("{:#}", data::report(&dataset, &root, tokens))) } else { print(report.text()) }?;
    if dataset.is_empty() {
        bail!(Data, "{}: no usable clips", root.display());
    }
    if args.no_sheet {
        return Ok(());
    }
    if args.sheet.is_none() && super::may_write(&sheet, args.force).is_err() {
        tracing::warn!(
            "{SHEET} exists already and stays as it is: draw it anew with --force, or name one with --sheet"
        );
        return Ok(());
    }
    let shown = draw_sheet(&dataset, &root, &sheet, SHOWN, None)?;
    let total = counted(dataset.files().len(), "file", "files");
    tracing::info!("{}: {shown} of {total}", sheet.display());
    Ok(())
}

/// The folder, and how its clips are cut, as the arguments say; the patch size if one is known, and what training would
/// leave out.
fn settings(args: &ScanArgs) -> Result<(String, ClipOptions, Option<[usize; 3]>, Apart)> {
    let config = args.config.as_deref().map(|path| RunConfig::load(path, &[])).transpose()?;
    let patch = config.as_ref().map(|c| c.model.patch_size).filter(|patch| *patch != [0; 3]);
    let apart = config
        .as_ref()
        .map_or(Apart::default(), |config| Apart::of_run(&config.run.out, config.data.heldout.as_ref().map(Path::new)));
    let (mut path, mut clips) = match config {
        Some(config) => (config.data.path.clone(), config.data.clips()),
        None => (String::new(), ClipOptions::new([16, 64, 64])),
    };
    if let Some(named) = &args.path {
        path = named.clone();
    }
    let numbers = [
        (&mut clips.frames, args.frames),
        (&mut clips.stride, args.stride),
        (&mut clips.height, args.height),
        (&mut clips.width, args.width),
    ];
    for (field, flag) in numbers {
        *field = flag.unwrap_or(*field);
    }
    clips.fps = args.fps.or(clips.fps);
    match args.label {
        Some(LabelFlag::None) => clips.label = Label::None,
        Some(LabelFlag::Folder) => clips.label = Label::Folder,
        None => {}
    }
    Ok((path, clips, args.patch.or(patch), apart))
}

struct Report<'a> {
    dataset: &'a Dataset,
    root: &'a Path,
    /// Tokens a clip.
    tokens: Option<usize>,
}

impl Report<'_> {
    fn name(&self, path: &Path) -> String {
        name_below(self.root, path)
    }

    /// Files, skips and totals, for people.
    fn text(&self) -> String {
        let (dataset, options) = (self.dataset, self.dataset.options());
        let which = match options.stride {
            1 => "every frame".to_owned(),
            stride => format!("one frame in {stride}"),
        };
        let rate = options.fps.map_or(String::new(), |fps| format!(" at {fps} fps"));
        let mut out = format!(
            "clips of {}, {}x{} (width x height), {which} of the source{rate}\n",
            counted(options.frames, "frame", "frames"),
            options.width,
            options.height
        );
        let names: Vec<String> = dataset.files().iter().map(|f| terminal::name(self.name(&f.path))).collect();
        let wide = names.iter().map(|n| n.chars().count()).max().unwrap_or(0).max(4);
        if !names.is_empty() {
            let _ = writeln!(
                out,
                "\n{:wide$}  {:>7}  {:>14}  {:>7}  {:>7}  class",
                "used", "frames", "width x height", "fps", "clips"
            );
        }
        for (name, file) in names.iter().zip(dataset.files()) {
            let size = format!("{}x{}", file.width, file.height);
            let rate = file.rate.map_or("-".to_owned(), |rate| format!("{:.2}", rate));
            let class = file.class.map_or("-".to_owned(), |class| terminal::name(&dataset.classes()[class]));
            let _ =
                writeln!(out, "{name:wide$}  {:>7}  {size:>14}  {rate:>7}  {:>7}  {class}", file.frames, file.clips);
        }
        if !dataset.skipped().is_empty() {
            let _ = writeln!(out, "\nnot used");
        }
        for skip in dataset.skipped() {
            let _ = writeln!(out, "{}: {}", terminal::name(self.name(&skip.path)), terminal::name(&skip.reason));
        }
        let noted =
            || names.iter().zip(dataset.files()).flat_map(|(name, file)| file.notes.iter().map(move |n| (name, n)));
        if noted().next().is_some() {
            let _ = writeln!(out, "\nof the files used");
        }
        for (name, note) in noted() {
            let _ = writeln!(out, "{name}: {note}");
        }
        if let Some(mixed) = dataset.mixed_rates() {
            let _ = writeln!(out, "\n{mixed}");
        }
        let captions = match dataset.captions() {
            0 => String::new(),
            captions => format!(" ({captions} with a caption, which training does not use yet)"),
        };
        let _ = write!(
            out,
            "\n{} used{captions}, {} not used, {}\n{}",
            counted(dataset.files().len(), "file", "files"),
            dataset.skipped().len(),
            counted(dataset.classes().len(), "class", "classes"),
            counted(dataset.len(), "clip", "clips")
        );
        if let Some(tokens) = self.tokens {
            let total = tokens * dataset.len();
            let _ =
                write!(out, " of {}, {} in all", counted(tokens, "token", "tokens"), counted(total, "token", "tokens"));
        }
        if let Some((width, height)) = dataset.largest_size() {
            let _ =
                write!(out, "\n{width}x{height} (width x height) is the largest clip for which no file is too small");
        }
        out
    }
}
