//! Parses the command line, runs the command, and turns its result into an exit code. Each command has a file of its
//! own with its arguments and its `run`.
//!
//! Errors are printed once, as `error: ...` on stderr; the exit code is 1, 2 where the command line itself is wrong, or
//! 130 where Ctrl-C has cut work short.
//! Logging goes to stderr as `RUST_LOG` says, stdout holds only what was asked for; who closes it early (`| head`) is
//! no error.

#[cfg(feature = "bench")]
mod bench;
mod cache;
mod decode;
mod encode;
mod forward;
mod interrupt;
mod lora;
mod machine;
mod plan;
mod pretrained;
mod progress;
mod prompts;
mod report;
mod sample;
mod sampling;
mod scan;
mod shell;
mod show;
mod source_clip;
mod status;
mod text;
mod train;
mod vae;
mod verify;
mod watch;

use crate::allocator::report_shortage;
use crate::data::write::Kind;
use crate::files::{check_target, expand_home};
use crate::observe::stderr::Stderr;
use crate::observe::warnings::KeepWarnings;
use crate::parallel::{Launch, LauncherEnv, Limits, is_first, is_to_tell, start_pool, threads_per_rank};
use crate::simd;
use crate::{Error, Result, bail, terminal};
use clap::builder::{OsStringValueParser, StringValueParser, TypedValueParser};
use clap::{CommandFactory, Parser, Subcommand};
use std::error::Error as _;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use interrupt::{catch_interrupts, interrupted};

/// Trains diffusion transformers on video clips and images, their token sequences sharded over ranks.
#[derive(Debug, Parser)]
#[command(name = "longreel", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(train::TrainArgs),
    Plan(plan::PlanArgs),
    Sample(sample::SampleArgs),
    Encode(encode::EncodeArgs),
    Decode(decode::DecodeArgs),
    Forward(forward::ForwardArgs),
    Cache(cache::CacheArgs),
    Lora(lora::LoraArgs),
    Scan(scan::ScanArgs),
    Show(show::ShowArgs),
    Status(status::StatusArgs),
    Verify(verify::VerifyArgs),
    Watch(watch::WatchArgs),
    Report(report::ReportArgs),
    #[cfg(feature = "bench")]
    Bench(bench::BenchArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

/// The exit code of a step that was abandoned, as of a process that Ctrl-C ends.
const ABANDONED: u8 = 130;

/// Runs the command that the process was started with; of several processes that are ranks, the first one speaks for
/// all.
pub fn main() -> ExitCode {
    #[cfg(feature = "cuda")]
    crate::cuda::before_start();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            if is_first() {
                refuse(&e);
            }
            return ExitCode::from(e.exit_code() as u8);
        }
    };
    let ready = start_logging()
        .and_then(|()| interrupt::outlive_file_limit().and_then(|()| simd::Isa::allowed()).map_err(|e| e.to_string()))
        .and_then(|_| report_shortage().map_err(|e| format!("SIGABRT cannot be caught: {e}")));
    if let Err(message) = ready {
        if is_first() {
            let _ = writeln!(io::stderr(), "error: {}", terminal::message(&message));
        }
        return ExitCode::from(2);
    }
    let outcome = match cli.command {
        Command::Train(args) => on_ranks(|launch| train::run(&args, launch)),
        Command::Sample(args) => on_ranks(|launch| sample::run(&args, launch)),
        Command::Encode(args) => on_ranks(|launch| encode::run(&args, launch)),
        Command::Decode(args) => on_ranks(|launch| decode::run(&args, launch)),
        Command::Forward(args) => on_ranks(|launch| forward::run(&args, launch)),
        Command::Plan(args) => alone(|| plan::run(args)),
        Command::Cache(args) => on_ranks(|launch| cache::run(&args, launch)),
        Command::Lora(args) => alone(|| lora::run(&args)),
        Command::Scan(args) => alone(|| scan::run(args)),
        Command::Show(args) => alone(|| show::run(&args)),
        Command::Status(args) => alone(|| status::run(&args)),
        Command::Verify(args) => alone(|| verify::run(&args)),
        Command::Watch(args) => alone(|| watch::run(&args)),
        Command::Report(args) => alone(|| report::run(&args)),
        #[cfg(feature = "bench")]
        Command::Bench(args) => alone(|| bench::run(args)),
        Command::Completions(args) => alone(|| shell::completions(&args, Cli::command())),
        Command::Man(args) => alone(|| shell::man(&args, Cli::command())),
    };
    match outcome {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Error::Abandoned { .. }) => ExitCode::from(ABANDONED),
        Err(_) => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
    }
}

/// Runs a command whose ranks may be processes.
fn on_ranks(command: impl FnOnce(&Launch) -> Result<()>) -> Result<()> {
    match Limits::from_environment().and_then(Launch::from_environment) {
        Ok(launch) => launch.run_to_exit(|launch| start_pool().and_then(|()| command(launch)), report),
        Err(e) => report_once(Err(e)),
    }
}

/// Runs a command that is the work of one process.
fn alone(command: impl FnOnce() -> Result<()>) -> Result<()> {
    report_once(match LauncherEnv::here() {
        Some(LauncherEnv { size, launcher, .. }) => Err(Error::Environment(format!(
            "{launcher} started {size} processes of a command that is the work of one: start it without {launcher}"
        ))),
        None => start_pool().and_then(|()| command()),
    })
}

/// Reports the outcome of processes that have not joined each other: once, where it is the same in all.
fn report_once(outcome: Result<()>) -> Result<()> {
    if outcome.as_ref().map_or_else(is_to_tell, |()| is_first()) {
        report(&outcome);
    }
    outcome
}

/// Prints the error of a command, if there is one.
fn report(outcome: &Result<()>) {
    match outcome {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => {}
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: {}", terminal::message(&with_causes(e)));
        }
        Ok(()) => {}
    }
}

/// Says what is wrong with the command line; `--help` and `--version` come here too. Colours are left out where an
/// argument holds control characters, since escaping takes all of them, and where [`terminal::has_colours`] says no:
/// clap's own rule has colours on any terminal that a CI service watches.
fn refuse(error: &clap::Error) {
    let plain = error.to_string();
    let shown = terminal::lines(&plain);
    let _ = match (shown == plain && terminal::has_colours(), error.use_stderr()) {
        (true, _) => error.print(),
        (false, true) => write!(io::stderr(), "{shown}"),
        (false, false) => write!(io::stdout(), "{shown}"),
    };
}

/// Writes `text` and a newline to stdout, control characters escaped; `println!` would panic where the reader is gone.
///
/// # Errors
/// stdout cannot be written; of kind `BrokenPipe`, [`main`] ends quietly.
pub fn print(text: impl std::fmt::Display) -> Result<()> {
    writeln!(io::stdout(), "{}", terminal::lines(&text.to_string())).map_err(|e| Error::io("stdout", e))
}

/// As [`print`], of JSON, whose values stay as they are.
pub fn print_json(text: impl std::fmt::Display) -> Result<()> {
    writeln!(io::stdout(), "{}", terminal::json(&text.to_string())).map_err(|e| Error::io("stdout", e))
}

/// The error and what caused it, once each: some messages hold their cause's already.
fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let message = inner.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = inner.source();
    }
    text
}

/// The time of day of a log line.
struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, out: &mut format::Writer<'_>) -> std::fmt::Result {
        out.write_str(&terminal::utc())
    }
}

/// Refuses to write over what is there, before the work: no regular file ever, a file only if the user said `--force`.
fn may_write(path: &Path, force: bool) -> Result<()> {
    check_target(path)?;
    if is_first() && !force && path.symlink_metadata().is_ok() {
        bail!(Config, "{}: exists already: choose another name, or --force to replace it", path.display())
    }
    Ok(())
}

/// Refuses a file to write whose folder is not there.
fn check_parent(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder.filter(|folder| !folder.is_dir()) {
        Some(folder) => bail!(Config, "{}: the folder {} is not there", path.display(), folder.display()),
        None => Ok(()),
    }
}

/// What clips are to be written to `path`; the folder of a file must be there, and the encoder.
fn output_kind(path: &Path) -> Result<Kind> {
    let kind = Kind::of(path)?;
    kind.check_encoder(path)?;
    if kind != Kind::Folder {
        check_parent(path)?;
    }
    Ok(kind)
}

fn start_logging() -> std::result::Result<(), String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(wish) if !wish.is_empty() => EnvFilter::try_new(&wish).map_err(|e| format!("RUST_LOG={wish}: {e}"))?,
        _ if is_first() => EnvFilter::new("info,ureq=warn,ureq_proto=warn"),
        _ => EnvFilter::new("off"), // the first speaks for all
    };
    // Control characters are escaped here, as tracing lets newlines and others through.
    let fields = format::debug_fn(|out, field, value| {
        let value = terminal::message(&format!("{value:?}"));
        match field.name() {
            "message" => write!(out, "{value}"),
            name => write!(out, "{name}={value}"),
        }
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(fields.delimited(" "))
        .with_writer(|| Stderr) // above the progress line, not through it
        .with_ansi(terminal::has_colours())
        .with_target(false)
        .with_timer(Utc)
        .log_internal_errors(false) // it would panic where stderr is closed
        .finish()
        .with(KeepWarnings)
        .init();
    Ok(())
}

/// For clap: a path, in which a leading `~` is the home folder, since a shell leaves `--sheet=~/x` as it is.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(expand_home)
}

/// For clap: a path as [`path()`], or `hf://...`.
fn place() -> impl TypedValueParser<Value = String> {
    let utf8 = |path: PathBuf| path.into_os_string().into_string();
    StringValueParser::new().try_map(move |text| match text.starts_with('~') {
        true => utf8(expand_home(&text).map_err(|e| e.to_string())?).map_err(|_| "is not UTF-8".to_owned()),
        false => Ok(text),
    })
}

/// For clap: a whole number of at least 1.
fn at_least_1(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a whole number of at least 1".to_owned()),
        Ok(n) => Ok(n),
    }
}
