"""An environment of its own for each peer: what one of them needs does not meet what we or another need."""

import subprocess
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path


def make_environment(directory: Path, requirements: Sequence[str], *, with_ours: bool = False) -> Path:
    """Where the programs of an environment with `requirements` are; made if it is not there.

    With `with_ours` it sees the packages of this one, and nothing that the requirements ask for is installed.
    """
    if not (directory / "done").exists():
        print(f"installing {requirements[0]}", flush=True)
        venv.create(directory, with_pip=True, clear=True)
        pip = (directory / "bin/python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:")
        subprocess.run([*map(str, (*pip, *requirements, *(["--no-deps"] if with_ours else [])))], check=True)
        if with_ours:
            (next(directory.glob("lib/*/site-packages")) / "ours.pth").write_text(sysconfig.get_path("purelib"))
        (directory / "done").touch()
    return directory / "bin"
