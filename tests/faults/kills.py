"""Kills: at random instants, and before or after a chosen system call. Resumed runs must end as undisturbed ones, bit
for bit."""

import shutil
import time

from campaign import Fault, NotHere, kill

# What saving, pruning and logging are made of. strace ends the process as it makes the call the n-th time.
CALLS = [
    "rename,renameat,renameat2",
    "fsync",
    "fdatasync",
    "unlink,unlinkat,rmdir",
    "mkdir,mkdirat",
    "openat",
    "ftruncate",
    "write",
    "flock,fcntl",
]


def at_random(lab, rng, folder):
    lab.fresh(folder)
    for attempt in range(rng.choice([1, 1, 2, 4])):
        resume = ["--resume"] if attempt else []
        if not kill(lab.start(folder, "train", "config.toml", *resume), rng.uniform(0, 1.2)):
            break
    lab.finish(folder)


def at_system_calls(lab, rng, folder):
    if not shutil.which("strace"):
        raise NotHere("strace (apt-get install strace)")
    lab.fresh(folder)
    calls = rng.choice(CALLS)
    nth = rng.randrange(1, 4 if rng.random() < 0.3 else 120)
    prefix = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={calls}:signal=SIGKILL:when={nth}",
    ]
    lab.train(folder, prefix=prefix)
    if rng.random() < 0.3:
        lab.train(folder, "--resume", prefix=prefix)
    lab.finish(folder)


def failing_calls(lab, rng, folder):
    """A system call that fails once, as on a disk that breaks: an error, or as if nothing had been; resuming gives the
    same."""
    if not shutil.which("strace"):
        raise NotHere("strace (apt-get install strace)")
    lab.fresh(folder)
    calls = rng.choice(["rename,renameat,renameat2", "fsync", "fdatasync", "unlink,unlinkat,rmdir", "write", "flock"])
    error, nth = rng.choice(["EIO", "ENOSPC", "EDQUOT", "EACCES", "EINTR"]), rng.randrange(1, 60)
    prefix = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={calls}:error={error}:when={nth}",
    ]
    result = lab.train(folder, prefix=prefix)
    if result.code != 0 and calls != "write":  # a failing write to stderr takes the error's text along
        result.error()
    lab.finish(folder)


def two_at_once(lab, rng, folder):
    """Two processes in one run's folder: one works, the other is refused and says so."""
    lab.fresh(folder)
    if rng.random() < 0.5:
        kill(lab.start(folder, "train", "config.toml"), rng.uniform(0.3, 1.0))
    first = lab.start(folder, "train", "config.toml", "--resume")
    time.sleep(rng.uniform(0, 0.6))
    second = lab.train(folder, "--resume")
    code = first.wait(60)
    if (code, second.code) not in [(0, 0), (0, 1), (1, 0)]:
        raise Fault(
            f"exit codes {code} and {second.code}:\n{second.err[-1000:]}\n{(folder / 'stderr.txt').read_text()[-1000:]}"
        )
    if second.code and f"process {first.pid}" not in second.error():
        raise Fault(f"the second is not told who is at work: {second.error()}")
    lab.finish(folder)


def readers(lab, rng, folder):
    """Sampling and verifying beside a run that prunes its checkpoints: done, or there was none yet."""
    lab.fresh(folder)
    writer = lab.start(folder, "train", "config.toml")
    try:
        while writer.poll() is None:
            saved = (folder / "run/checkpoints/step-00000002").exists()
            seed = rng.randrange(100)
            command = rng.choice([("verify", "run"), ("sample", "run", "--force", "--seed", seed, "-o", "out.png")])
            result = lab.run(folder, *command)
            if result.code and saved:
                raise Fault(f"{command[0]} beside a run at work: {result.error()}")
        if writer.returncode:
            raise Fault(f"the run was disturbed: {(folder / 'stderr.txt').read_text()[-1000:]}")
    finally:
        kill(writer, 0)
    lab.finish(folder)
