"""What a cluster wants to be told with every job, from a small TOML file that its users write once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.config import read_toml, structure
from shared.errors import ConfigError

VARIABLE = "ARGONNE_SITE"
USUAL_PLACE = Path("~/.config/argonne/site.toml")


@dataclass(frozen=True)
class Site:
    """A cluster, as its users see it; all of it may be left out."""

    account: str | None = None
    """Who pays: Slurm's --account, PBS' -A."""
    queue: str | None = None
    """Slurm's --partition, PBS' -q."""
    walltime: str | None = None
    """Of a job, if the command line does not say: hours:minutes or hours:minutes:seconds."""
    gpus: int | None = None
    """Of a node, if the command line does not say."""
    cpus: int | None = None
    """Of a node, for all that runs on it."""
    select: str | None = None
    """More of PBS' -l select, as in system=polaris."""
    directives: tuple[str, ...] = ()
    """More lines for the batch system as they stand behind #SBATCH or #PBS: --constraint=a100, -l filesystems=home."""
    setup: tuple[str, ...] = ()
    """Lines of shell that every node runs before anything else."""
    modules: tuple[str, ...] = ()
    """Environment modules to load then."""
    spawn: str | None = None
    """What runs a command once on every node (None: srun, and pbsdsh -- for PBS); mpiexec -n 4 --ppn 1."""


def load_site(path: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[Site, str]:
    """The site of that file, or of the one that ARGONNE_SITE names, or of the usual place; and where it was found.

    Raises: ConfigError if a file that is named is not there, or is not a site.
    """
    if path is None and (named := environment.get(VARIABLE)):
        path = Path(named)
    if path is None:
        path = USUAL_PLACE.expanduser()
        if not path.is_file():
            return Site(), f"no site file ({USUAL_PLACE})"
    elif not path.is_file():
        raise ConfigError(f"{path} not found: name an existing site file, or none")
    site = structure(read_toml(path), Site, str(path))
    for name in ("account", "queue", "select", "spawn", "directives", "modules", "setup"):
        value = getattr(site, name) or ()
        if any(not line.isprintable() for line in ([value] if isinstance(value, str) else value)):
            raise ConfigError(f"{path}: {name} {value!r} has more than one line: a line each is wanted")
    return site, str(path)
