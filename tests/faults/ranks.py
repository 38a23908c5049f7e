"""Ranks under MPI: one is killed or stopped at a random instant, and all end soon; resumed, the run gives what it would
have."""

import os
import pathlib
import shutil
import signal
import time

from campaign import STEPS, Fault, NotHere, losses, weights

RANKS = 2
MPIRUN = ["mpirun", "-n", str(RANKS), "--oversubscribe"]
ROOT_OK = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}


def dead(lab, rng, folder):
    if not shutil.which("mpirun"):
        raise NotHere("mpirun")
    reference = undisturbed(lab)
    lab.fresh(folder)
    job = Mpi(lab)
    process = job.start(folder, "train", "config.toml")
    time.sleep(rng.uniform(0, 2.5))
    victims = children(process.pid)
    if victims and process.poll() is None:
        try:
            os.kill(rng.choice(victims), signal.SIGKILL)
        except ProcessLookupError:
            pass
        began = time.monotonic()
        try:
            process.wait(40)
        except Exception:
            left = children(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
            raise Fault(
                f"{time.monotonic() - began:.0f} s after a rank was killed, {len(left)} ranks still run"
            ) from None
    else:
        process.wait(60)
    job.run(folder, "train", "config.toml", "--resume").succeed()
    run = folder / "run"
    if (losses(run), weights(run, STEPS)) != reference:
        raise Fault("a run whose rank was killed ends with other numbers")


def undisturbed(lab):
    folder = lab.folder / "mpi"
    if not folder.exists():
        folder.mkdir()
        Mpi(lab).run(lab.fresh(folder), "train", "config.toml").succeed()
    return losses(folder / "run"), weights(folder / "run", STEPS)


class Mpi:
    """The lab's commands, started by mpirun."""

    def __init__(self, lab):
        self.lab = lab

    def run(self, folder, *args):
        return self.lab.run(folder, *args, prefix=MPIRUN, env=ROOT_OK, memory=64 << 30)

    def start(self, folder, *args):
        return self.lab.start(folder, *args, env=ROOT_OK, prefix=MPIRUN)


def children(pid):
    """Processes that mpirun started: they have this group or are its children."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(entry.parent.name))
    return found
