"""Sees to it that a script's Python packages are there: as installed, or in a virtual environment of its own."""

import importlib.util
import os
import pathlib
import subprocess
import sys

# What the figures in docs/quality.md were made with.
PINNED = {"numpy": "numpy==2.4.6", "sklearn": "scikit-learn==1.9.1", "tomli": "tomli==2.4.0"}


def need(*modules):
    """Returns if `modules` can be imported; else starts this script again in ~/.cache/longreel-quality, which it
    makes."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if not missing:
        return
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "longreel-quality"
    python = home / "bin" / "python"
    packages = [PINNED[module] for module in modules]
    if sys.version_info < (3, 11):
        packages = [package.split("==")[0] for package in packages]  # the pinned ones need a newer Python
    if pathlib.Path(sys.prefix) == home or not python.exists() or not _has(python, modules):
        print(f"installing {', '.join(packages)} into {home}", file=sys.stderr)
        steps = [[sys.executable, "-m", "venv", str(home)]] if not python.exists() else []
        steps.append([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
        for step in steps:
            if subprocess.run(step, check=False).returncode != 0:
                debian = " ".join(f"python3-{module}" for module in modules)
                sys.exit(f"error: `{' '.join(step)}` failed; on Debian `sudo apt-get install python3-venv` lets it "
                         f"work, and `sudo apt-get install {debian}` makes it needless")
    os.execv(python, [str(python), *sys.argv])


def _has(python, modules):
    code = "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(m) is None for m in sys.argv[1:]))"
    return subprocess.run([str(python), "-c", code, *modules], check=False).returncode == 0
