//! Runs `longreel scan` to report which files of a dataset folder would be used, which not, and why.
//!
//! It cuts clips exactly as training does; what it says is what `longreel train` will see. Nothing in the folder is
//! changed.

mod buckets;
mod captions;

use super::{at_least_1, print, print_json};
use crate::config::RunConfig;
use crate::data::{
    Apart, ClipGrid, ClipOptions, ClipSets, Dataset, Label, Overlaps, Source, SourceOptions, draw_sheet, name_below,
    report_buckets, token_grid,
};
use crate::model::ModelConfig;
use crate::terminal::{self, counted};
use crate::text::TextEncoder;
use crate::vae::Space;
use crate::{Result, bail, hub};
use captions::CaptionCounts;
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
    let Settings { sources, names, patch, space, network, encoder } = settings(&args)?;
    let root = sources.first().map_or_else(PathBuf::new, |source| source.path.clone());
    let root = if sources.len() > 1 { PathBuf::new() } else { root };
    let mut sets = ClipSets::survey(&sources)?;
    Overlaps::find(sets.buckets(), &[]).log();
    if args.decode {
        sets = sets.decode_all();
    }
    let grid = |dataset: &Dataset, patch| token_grid(space.size(dataset.options().size(), patch)?, patch);
    if let Some(patch) = patch {
        sets.datasets().try_for_each(|dataset| grid(dataset, patch).map(drop))?;
    }
    let tokens = |dataset: &Dataset| Some(grid(dataset, patch?).ok()?.iter().product());
    let captions = CaptionCounts::new(&sets, encoder.as_ref())?;
    if args.json {
        let mut report = report_buckets(&sets, &root, tokens);
        report["captions"] = captions.value();
        print_json(format!("{report:#}"))
    } else if let [dataset] = sets.buckets()
        && sets.empty().is_empty()
    {
        print(Report { dataset, root: &root, tokens: tokens(dataset) }.text())
    } else {
        print(buckets::table(&sets, &root, network.as_ref(), tokens))
    }?;
    if let Some(line) = captions.line().filter(|_| !args.json) {
        print(line)?;
    }
    if sets.is_empty() {
        bail!(Data, "{}: no usable clips", names.join(", "));
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
    let shown = draw_sheet(sets.buckets(), &root, &sheet, SHOWN, None)?;
    let files: usize = sets.buckets().iter().map(|dataset| dataset.files().len()).sum();
    tracing::info!("{}: {shown} of {}", sheet.display(), counted(files, "file", "files"));
    Ok(())
}

/// What the arguments ask for.
struct Settings {
    sources: Vec<Source>,
    /// The folders as they were written.
    names: Vec<String>,
    /// The patch size, if one is known.
    patch: Option<[usize; 3]>,
    /// What the patches are of.
    space: Space,
    /// The network, where it tells what the config does not: the grid that clips of several sizes are cut to, or the
    /// patch of a network from elsewhere.
    network: Option<ModelConfig>,
    /// The text encoder that the config names.
    encoder: Option<TextEncoder>,
}

fn settings(args: &ScanArgs) -> Result<Settings> {
    let Some(path) = &args.config else {
        let mut clips = ClipOptions::new([16, 64, 64]);
        flags(args, &mut clips);
        let path = args.path.clone().unwrap_or_default();
        let source = Source { path: hub::resolve(&path)?, options: SourceOptions::new(clips), apart: Apart::default() };
        return Ok(Settings {
            sources: vec![source],
            names: vec![path],
            patch: args.patch,
            space: Space::PIXELS,
            network: None,
            encoder: None,
        });
    };
    let mut config = RunConfig::load(path, &[])?;
    if let Some(named) = &args.path {
        if config.data.iter().count() > 1 {
            bail!(Config, "{named}: the config names several folders ([[data]]), and they are scanned: leave it out");
        }
        config.data.path.clone_from(named);
    }
    let one_size = config.data.has_one_size();
    let sizes = [("--frames", args.frames), ("--height", args.height), ("--width", args.width)];
    if let Some((flag, _)) = sizes.into_iter().find(|(_, value)| value.is_some() && !one_size) {
        bail!(Config, "{flag} is for clips of one size, and the config has several: leave it out");
    }
    for section in config.data.iter_mut() {
        let mut clips = section.clips();
        flags(args, &mut clips);
        *section = section.clone().cut_as(&clips);
    }
    let is_needed = !one_size || (config.model.from.is_some() && args.patch.is_none());
    let network = if is_needed { Some(config.network()?) } else { None };
    let patch = network.as_ref().map_or(config.model.patch_size, |network| network.patch_size);
    let patch = args.patch.or(Some(patch).filter(|patch| *patch != [0; 3]));
    let grid = match &network {
        Some(network) if !one_size => {
            config.check_sizes(network)?;
            config.clip_grid(network)?
        }
        _ => ClipGrid::of_patches([1; 3]),
    };
    let sources = config.sources(&grid)?;
    let names = config.data.iter().map(|section| section.path.clone()).collect();
    let open = |from: &String| TextEncoder::open(&hub::resolve(from)?).map_err(|e| e.at("text.from"));
    let encoder = config.text.from.as_ref().map(open).transpose()?;
    Ok(Settings { sources, names, patch, space: config.space()?, network, encoder })
}

/// Puts the flags over `clips`.
fn flags(args: &ScanArgs, clips: &mut ClipOptions) {
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
        let captions = match dataset.captions().count() {
            0 => String::new(),
            captions => format!(" ({captions} with a caption)"),
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
