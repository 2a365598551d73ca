"""Job scripts: one slice of a chain as Slurm, PBS or a machine without either runs it, as plain text.

A slice asks for the next one before it does anything, to begin when it has ended in whatever way, and takes that back
once there is nothing left to do: so a chain outlives a lost node, a kill, and its own script. `PROGRAM slice begin|end`
(shared/slices.py) decides, the shell only carries out. Made twice, a script is the same.
"""

import shlex
from pathlib import Path

from shared.batch import DIALECTS, Dialect, Job, System
from shared.site import Site
from shared.slices import ENDED, FINISHED_NAME, LOG_NAME, NEXT_NAME, SCRIPT_NAME, STOPPED_NAME
from shared.terminal import safe_text


def script(system: System, job: Job, site: Site, root: Path) -> str:
    """A slice as a bash script that runs from the directory `root`."""
    dialect = DIALECTS[system]
    parts = [
        ["#!/bin/bash", *dialect.header(job, site)],
        [
            f"# A slice of a chain of jobs, made by: {safe_text(job.origin)}",
            f"# What came of it is in {safe_text(str(job.directory))}",
        ],
        _preparation(dialect, job, site, root),
        _on_node(job) if job.tasks is None and system != "local" else [],
        _beginning(dialect, job),
        _middle(system, dialect, job, site),
        _ending(system, dialect, job),
    ]
    return "\n".join("".join(f"{line}\n" for line in part) for part in parts if part)


def _preparation(dialect: Dialect, job: Job, site: Site, root: Path) -> list[str]:
    """Every node does this."""
    return [
        "set -u",
        f"job={shlex.quote(str(job.directory))}",
        f'me=$(realpath -- "$0") id={dialect.job_id}',
        *([f"task={dialect.task_id}"] if job.tasks else []),
        '[ -n "$id" ] || [ "${1-}" = on-node ] || { echo "error: this is no job: submit this script" >&2; exit 2; }',
        'mkdir -p "$job" || exit',
        f'exec >> "$job/{LOG_NAME}" 2>&1',
        f"cd {shlex.quote(str(root))} || exit",
        *site.setup,
        *(f"module load {shlex.quote(module)}" for module in site.modules),
        *(f"export {name}={shlex.quote(value)}" for name, value in job.environment),
    ]


def _on_node(job: Job) -> list[str]:
    return [
        'if [ "${1-}" = on-node ]; then  # this script again, by itself, on every node',
        "  head=$2 id=$3",
        "  port=$((20000 + 10#0${id//[!0-9]/} % 10000))",
        f"  exec {job.command}",
        "fi",
    ]


def _beginning(dialect: Dialect, job: Job) -> list[str]:
    """The next slice is asked for first, so that nothing that ends this one ends the chain."""
    task = ' --task "$task"' if job.tasks else ""
    told = f'{shlex.quote(str(job.target))} --job "$id"{task}'
    new, there = f'"$job/{SCRIPT_NAME}.$id"', f'"$job/{SCRIPT_NAME}"'
    is_new = f'[ "$(cat "$job/{NEXT_NAME}" 2> /dev/null)" != "$id" ] && ! [ "$me" -ef {there} ]'
    asking = [
        f'if {is_new}; then cp -- "$me" {new} && mv -- {new} {there} || stop "job $id could not keep its script"; fi',
        *([f'{_ask(dialect)} || rm -f "$job/{NEXT_NAME}"'] if dialect.submit else []),
    ]
    only_first = ['if [ "$task" = 1 ]; then', *(f"  {line}" for line in asking), "fi"]
    return [
        "slice() (  # whoever ends all that the job runs lets this be",
        "  trap '' TERM USR1 INT",
        f'  exec {shlex.join(job.program)} slice "$1" "$job" {told} "${{@:2}}"',
        ")",
        f'stop() {{ echo "needs a person: $1; see {LOG_NAME}" > "$job/{STOPPED_NAME}"; no_next; exit 1; }}',
        f"no_next() {{ {_cancel(dialect)}; }}",
        f'if [ -e "$job/{STOPPED_NAME}" ] || [ -e "$job/{FINISHED_NAME}" ]; then',
        '  echo "job $id: the chain has ended, see $job: delete its marker to go on"',
        "  exit",
        "fi",
        *(only_first if job.tasks else asking),
        "slice begin; said=$?",
        f"if [ $said -eq {ENDED} ]; then no_next; exit; fi",
        '[ $said -eq 0 ] || stop "job $id could not begin"',
    ]


def _cancel(dialect: Dialect) -> str:
    """Takes back what was asked for."""
    following = f'"$job/{NEXT_NAME}"'
    return f'if [ -s {following} ]; then {dialect.cancel} "$(cat {following})"; fi' if dialect.cancel else "true"


def _ask(dialect: Dialect) -> str:
    """Asks for the next slice and keeps its name."""
    return f'(cd "$job" && {dialect.submit} {SCRIPT_NAME}) > "$job/{NEXT_NAME}"'


def _middle(system: System, dialect: Dialect, job: Job, site: Site) -> list[str]:
    """The work, which hears what the script is told."""
    if job.tasks is None and system != "local":
        spawn = f"{site.spawn or dialect.spawn(site)} " if job.nodes > 1 else ""
        work, notice = f'{spawn}/bin/bash "$job/{SCRIPT_NAME}" on-node "$(hostname)" "$id"', "USR1"
    else:
        work, notice = job.command, "TERM"
    return [
        "work= asked=",
        f'trap \'asked=1; [ -z "$work" ] || kill -{notice} "$work"\' USR1 TERM INT  # before there is work to be told',
        f"{work} &",
        f'work=$!; [ -z "$asked" ] || kill -{notice} "$work"',
        'while wait "$work"; code=$?; kill -0 "$work" 2> /dev/null; do :; done',
        'wait "$work" 2> /dev/null; again=$?  # a trap cuts a wait short, with its signal for a code',
        "[ $again -eq 127 ] || code=$again",
        "trap 'asked=1' USR1 TERM INT",
    ]


def _ending(system: System, dialect: Dialect, job: Job) -> list[str]:
    lines = ['slice end --code "$code"; said=$?']
    if system == "local":
        lines += [
            f'[ $said -eq 0 ] || [ $said -eq {ENDED} ] || stop "what became of job $id is not known"',
            f'[ $said -eq {ENDED} ] || [ -n "$asked" ] || exec /bin/bash "$job/{SCRIPT_NAME}"',
        ]
    else:
        only_first = '[ "$task" = 1 ] && ' if job.tasks else ""
        following = f'[ -s "$job/{NEXT_NAME}" ]'
        lines += [
            f"if [ $said -eq {ENDED} ]; then no_next; fi",
            f"if {only_first}[ $said -ne {ENDED} ] && ! {following}; then",
            f'  {_ask(dialect)} || stop "no job was taken to follow $id"',
            "fi",
        ]
    return [*lines, f'[ ! -e "$job/{STOPPED_NAME}" ]']
