"""Outside bytes, mutated: checkpoints, configs, media, model folders. Each ends well or with one error, in bounded time
and memory."""

import json
import os
import shutil
import subprocess

from campaign import ROOT, STEPS, Fault, NotHere, mutated


def checkpoints(lab, rng, folder):
    """Any change of any file of a checkpoint is found, whoever reads it, and the file is named."""
    lab.trained(folder)
    here, other = (folder / f"run/checkpoints/step-{step:08}" for step in (STEPS, STEPS - 2))
    file = rng.choice(sorted(f for f in here.rglob("*") if f.is_file()))
    name = str(file.relative_to(here))
    match rng.randrange(6):
        case 0:
            file.unlink()
        case 1:
            shutil.copy(other / name, file)  # of an older step
        case 2:
            with open(file, "r+b") as out:
                out.truncate(rng.randrange(file.stat().st_size))
        case _:
            data = file.read_bytes()
            while (changed := mutated(data, rng)) == data:
                pass
            file.write_bytes(changed)
    if file.exists() and file.read_bytes() == (lab.folder / "run/checkpoints" / here.name / name).read_bytes():
        return  # equal in both steps
    error = lab.run(folder, "verify", "run").error()
    if "step" not in error and name not in error:
        raise Fault(f"verify does not name {name}: {error}")
    before = sorted((f, f.read_bytes()) for f in here.rglob("*") if f.is_file())
    lab.train(folder, "--resume", "--set", f"train.steps={STEPS + 2}").error()
    if before != sorted((f, f.read_bytes()) for f in here.rglob("*") if f.is_file()):
        raise Fault("a run that could not resume changed the checkpoint")
    lab.train(folder, "--resume", "--step", STEPS - 2).succeed()
    lab.finish(folder)


def configs(lab, rng, folder):
    lab.fresh(folder)
    config = rng.choice(sorted((ROOT / "configs").glob("*.toml")))
    text = bytearray(config.read_bytes())
    if rng.random() < 0.5:  # a value that a person might write
        lines = text.split(b"\n")
        at = rng.choice([i for i, line in enumerate(lines) if b"=" in line])
        value = rng.choice(
            [
                b"-1",
                b"0",
                b"1e300",
                b"nan",
                b"inf",
                b"9223372036854775807",
                b"1000000000",
                b'""',
                b"[]",
                b"{}",
                b"true",
                b'"\x1b[2J"',
            ]
        )
        lines[at] = lines[at].split(b"=")[0] + b"= " + value
        text = b"\n".join(lines)
    else:
        text = mutated(text, rng)
    (folder / "config.toml").write_bytes(text)
    result = lab.run(folder, "plan", "config.toml", "--set", "data.path=clips")
    if result.code:
        result.error()


def media(lab, rng, folder):
    clips = folder / "clips"
    clips.mkdir()
    source = rng.choice(sample_media(lab))
    (clips / source.name).write_bytes(mutated(source.read_bytes(), rng))
    shutil.copy(next((lab.folder / "clips").iterdir()), clips / "good.mp4")
    shutil.copy(lab.folder / "config.toml", folder)
    frames = rng.choice([1, 4])
    result = lab.run(
        folder, "scan", "clips", "--frames", frames, "--height", 16, "--width", 16, "--decode", "--sheet", "s.png"
    )
    if result.code:
        raise Fault(f"one bad file ends the scan of all: {result.error()}")
    if "good.mp4" not in result.out:
        raise Fault(f"the good file is lost:\n{result.out}")
    short = [
        "--set",
        "train.steps=2",
        "--set",
        "train.sample_every=0",
        "--set",
        f"data.frames={4 if frames == 4 else 2}",
    ]
    trained = lab.train(folder, *short)
    if trained.code and source.name not in trained.error():
        raise Fault(f"training does not name {source.name}: {trained.error()}")


def sample_media(lab):
    """A small file of each kind that is read, made once."""
    folder = lab.folder / "media"
    if not folder.exists():
        folder.mkdir()
        still = ["-frames:v", "1"]
        kinds = {
            "a.png": still,
            "b.jpg": still,
            "c.webp": still,
            "d.gif": [],
            "e.mp4": ["-c:v", "mpeg4"],
            "f.mkv": ["-c:v", "ffv1"],
            "g.webm": ["-c:v", "libvpx-vp9"],
            "h.mov": ["-c:v", "mjpeg"],
            "i.avi": ["-c:v", "rawvideo", "-pix_fmt", "yuv420p"],
            "j.bmp": still,
            "k.tiff": still,
            "l.ts": ["-c:v", "mpeg2video"],
        }
        for name, options in kinds.items():
            subprocess.run(
                [
                    "ffmpeg",
                    "-v",
                    "error",
                    "-f",
                    "lavfi",
                    "-i",
                    "testsrc=size=64x48:rate=8:duration=1",
                    *options,
                    folder / name,
                ],
                check=True,
            )
    return sorted(folder.iterdir())


# Tests that spoil bytes themselves, for parsers that no command shows alone; what ranks of several machines greet each
# other with.
SPOILING = [
    "data::claims::no_change_of_an_image_makes_a_decoder_panic",
    "data::files::no_change_of_metadata_makes_its_reader_panic",
    "limits::no_change_of_a_header_makes_the_reader_panic",
    "parallel::strangers::spoiled_greetings_neither_end_a_job_nor_get_in",
]


def parsers(lab, rng, folder):
    """The same tests with other bytes than `make test` has."""
    built = [f for f in (ROOT / "target/release/deps").glob("tests-*") if f.suffix == "" and os.access(f, os.X_OK)]
    if not built:
        raise NotHere("the tests, built (cargo test --release --no-run)")
    newest, seed = max(built, key=lambda f: f.stat().st_mtime), rng.randrange(1 << 32)
    done = subprocess.run(
        [newest, "--exact", rng.choice(SPOILING)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "LONGREEL_FAULTS_SEED": str(seed)},
    )
    if done.returncode or "1 passed" not in done.stdout:
        raise Fault(f"LONGREEL_FAULTS_SEED={seed}: {done.stdout[-3000:]}")


def models(lab, rng, folder):
    """A transformer folder from somewhere else."""
    source = ROOT / "tests/golden/shards/transformer"
    shutil.copytree(source, folder / "model")
    file = rng.choice(sorted((folder / "model").iterdir()))
    if file.suffix == ".json" and rng.random() < 0.6:
        entries = json.loads(file.read_text())
        key = rng.choice(sorted(entries))
        entries[key] = rng.choice(
            [0, -1, 1, 2**31 - 1, 2**63, 2**64 - 1, 1e300, None, "", [], [2**40] * 3, {"a": 1}, "\x1b[2J"]
        )
        file.write_text(json.dumps(entries))
    else:
        head = rng.choice([200, None])
        data = file.read_bytes()
        file.write_bytes(mutated(data[:head], rng) + data[head:] if head else mutated(data, rng))
    inputs = ROOT / "tests/golden/shards/inputs.safetensors"
    result = lab.run(folder, "forward", "model", inputs, "-o", "out.safetensors")
    if result.code:
        result.error()
