"""What every campaign shares: a run small enough to be disturbed hundreds of times, commands with limits, and what
counts as a fault."""

import dataclasses
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 1 << 30
STEPS = 12

CONFIG = f"""
[run]
out = "run"
seed = 5
[data]
path = "clips"
frames = 4
height = 32
width = 32
[model]
patch_size = [2, 8, 8]
num_attention_heads = 3
attention_head_dim = 16
num_layers = 1
ffn_dim = 64
[train]
steps = {STEPS}
warmup = 2
checkpoint_every = 2
sample_every = 4
keep = 2
[sample]
steps = 2
count = 1
"""


class Fault(Exception):
    """longreel did what it must not."""


class NotHere(Exception):
    """This machine lacks what a campaign needs: a program, root, a kind of file system."""


@dataclasses.dataclass
class Outcome:
    code: int  # negative: the signal that ended it
    out: str
    err: str
    seconds: float

    def error(self):
        """The one error that a command which fails must end with."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.code not in (1, 2) or len(errors) != 1:
            raise Fault(f"exit code {self.code} and {len(errors)} errors:\n{self.err[-2000:]}")
        return errors[0]

    def succeed(self):
        if self.code != 0:
            raise Fault(f"exit code {self.code}:\n{self.err[-2000:]}")
        return self


class Lab:
    """A folder with clips, a config and an undisturbed run; trials work on copies of it."""

    def __init__(self, longreel, folder):
        self.longreel, self.folder = str(longreel), pathlib.Path(folder)
        clips = self.folder / "clips"
        clips.mkdir()
        for file in sorted((ROOT / "datasets/bbb/train").glob("*.mp4"))[:2]:
            shutil.copy(file, clips)
        (self.folder / "config.toml").write_text(CONFIG)
        self.train(self.folder).succeed()
        self.weights = weights(self.folder / "run", STEPS)
        self.losses = losses(self.folder / "run")
        if list(self.losses) != list(range(1, STEPS + 1)):
            raise Fault(f"an undisturbed run has the steps {list(self.losses)}")

    def command(self, *args):
        return [self.longreel, *map(str, args)]

    def train(self, folder, *more, **options):
        return self.run(folder, "train", "config.toml", *more, **options)

    def run(self, folder, *args, seconds=60, memory=4 * GIB, env=None, prefix=(), text=None):
        """Runs a command to its end. Slower, larger, a panic, an abort or raw control characters are faults, whatever
        it was given."""
        began = time.monotonic()
        try:
            done = subprocess.run(
                [*prefix, *self.command(*args)], cwd=folder, input=text, capture_output=True, timeout=seconds,
                env={**environment(), **(env or {})},
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory)),
            )
        except subprocess.TimeoutExpired as e:
            raise Fault(
                f"{args} did not end within {seconds} s:\n{(e.stderr or b'').decode(errors='replace')[-2000:]}"
            ) from e
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        result = Outcome(done.returncode, out, err, time.monotonic() - began)
        check_manners(args, result, killed=bool(prefix))
        return result

    def start(self, folder, *args, env=None, prefix=()):
        """Starts a command that a trial is going to disturb; its stderr goes to a file beside the run."""
        with open(folder / "stderr.txt", "ab") as log:
            return subprocess.Popen(
                [*prefix, *self.command(*args)],
                cwd=folder,
                stdout=log,
                stderr=log,
                env={**environment(), **(env or {})},
                start_new_session=True,
            )

    def fresh(self, folder):
        """Clips and config in a folder of a trial, without a run."""
        shutil.copytree(self.folder / "clips", folder / "clips")
        shutil.copy(self.folder / "config.toml", folder)
        return folder

    def trained(self, folder):
        """The same with the finished run."""
        shutil.copytree(self.folder / "run", self.fresh(folder) / "run", symlinks=True)
        return folder

    def finish(self, folder):
        """Resumes to the end and compares all that counts with the undisturbed run, bit for bit."""
        self.train(folder, "--resume").succeed()
        run = folder / "run"
        if (found := losses(run)) != self.losses:
            raise Fault(f"metrics.jsonl: steps {list(found)} with losses {list(found.values())}, not {self.losses}")
        if weights(run, STEPS) != self.weights:
            raise Fault("the last checkpoint differs from that of an undisturbed run")
        self.run(folder, "verify", "run").succeed()
        check_tidy(run)


def environment():
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LONGREEL_", "OMPI_", "PMIX_", "SLURM_"))}
    return {**kept, "RUST_BACKTRACE": "0", "RAYON_NUM_THREADS": "1"}


def check_manners(args, result, killed=False):
    if "panicked" in result.err:
        raise Fault(f"{args} panicked:\n{result.err[-2000:]}")
    if result.code < 0 and not (killed and result.code == -signal.SIGKILL):
        raise Fault(f"{args} was ended by signal {-result.code}:\n{result.err[-2000:]}")
    if raw := re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", result.out + result.err):
        raise Fault(f"{args} printed the raw control character {raw[0]!r}:\n{(result.out + result.err)[:2000]!r}")


def weights(run, step):
    """Every file of numbers of a checkpoint."""
    folder = run / f"checkpoints/step-{step:08}"
    found = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.safetensors"))}
    if len(found) < 2:
        raise Fault(f"{folder.name} holds {list(found)}")
    return found


def losses(run):
    """Loss by step, in the file's order; a repeated or damaged line is a fault."""
    found = {}
    for number, line in enumerate((run / "metrics.jsonl").read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
        except ValueError as e:
            raise Fault(f"metrics.jsonl:{number}: {e}: {line[:100]!r}") from e
        if "loss" in entry:
            if entry["step"] in found:
                raise Fault(f"metrics.jsonl:{number}: step {entry['step']} a second time")
            found[entry["step"]] = entry["loss"]
    return found


def check_tidy(run):
    """Nothing of a killed process is left: no temporary names, no more checkpoints than are kept."""
    odd = [
        str(f.relative_to(run))
        for f in run.rglob("*")
        if f.name.startswith(".") or ".tmp" in f.name or ".part" in f.name
    ]
    if odd:
        raise Fault(f"left over in the run's folder: {odd}")
    if len(kept := sorted(f.name for f in (run / "checkpoints").iterdir())) != 2:
        raise Fault(f"checkpoints kept: {kept}")


def kill(process, after):
    """Kills a process after some seconds, unless it has ended; says whether it had to."""
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def mutated(data, rng):
    """Outside bytes with a few of the changes that break parsers."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(7):
            case 0 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at] = rng.choice([0, 0x7f, 0x80, 0xff, rng.randrange(256)])
            case 2:
                del data[at:at + rng.choice([1, 4, 100])]
            case 3:
                data[at:at] = rng.randbytes(rng.choice([1, 4, 100]))
            case 4:
                data[at : at + 4] = rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]).to_bytes(
                    4, rng.choice(["big", "little"])
                )
            case 5:
                del data[at:]
            case 6:
                data[at:at] = data[at:at + rng.choice([4, 64, 1000])]
    return bytes(data)


def generator(seed, name, trial):
    return random.Random(f"{seed} {name} {trial}")
