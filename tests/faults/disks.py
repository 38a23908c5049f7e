"""Full disks: tmpfs and ext4, too small for the run. What was saved stays good, and with room the run ends as an
undisturbed one."""

import os
import shutil
import subprocess

from campaign import Fault, NotHere


def on_tmpfs(lab, rng, folder):
    small(lab, rng, folder, lambda size, disk: mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk),
          lambda disk: mount("-o", "remount,size=64m", disk))


def on_ext4(lab, rng, folder):
    if not shutil.which("mkfs.ext4"):
        raise NotHere("mkfs.ext4")
    image, ballast = folder / "image", folder / "disk/ballast"

    def make(size, disk):
        image.write_bytes(b"")
        os.truncate(image, 32 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        mount("-o", "loop", image, disk)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        ballast.write_bytes(b"\0" * max(0, free - size))

    small(lab, rng, folder, make, lambda disk: ballast.unlink())


def small(lab, rng, folder, make, grow):
    """Trains where there is room for some of what a run writes, then again with room for all."""
    disk = folder / "disk"
    disk.mkdir()
    whole = sum(f.stat().st_size for f in (lab.folder / "run").rglob("*") if f.is_file())
    make(rng.randrange(8 << 10, int(whole * 1.6)), disk)
    try:
        lab.fresh(folder)
        out = ["--set", f"run.out={disk / 'run'}"]
        result = lab.train(folder, *out)
        if result.code:
            error = result.error()
            if "space" not in error.lower():
                raise Fault(f"the error does not tell that the disk is full: {error}")
        if list((disk / "run/checkpoints").glob("step-*")):
            lab.run(folder, "verify", disk / "run").succeed()
        grow(disk)
        lab.train(folder, "--resume", *out).succeed()
        shutil.copytree(disk / "run", folder / "copy", symlinks=True)
        (folder / "copy").rename(folder / "run")
        lab.finish(folder)
    finally:
        subprocess.run(["umount", disk], check=True)


def mount(*args):
    done = subprocess.run(["mount", *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise NotHere(f"leave to mount file systems ({done.stderr.strip()})")
