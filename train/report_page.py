"""A report as one self-contained page: what a run did, when its time went, what it was made of. No text in it acts."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared.page import Html, Section, element, facts, joined, page, table
from train.chain import Link
from train.continuing import flatten
from train.drawing import stacked
from train.lost_time import CAUSES
from train.report_plots import plot_section
from train.starts import changes_of, machine_of
from train.study import MOST_NOTABLE, Difference, Study, told_of_sources
from train.wording import clock, duration, toml, value

HERE = Path(__file__).parent
MOST_FILES, MOST_STRETCHES = 20, 20


def report_page(studies: Sequence[Study], now_s: float) -> str:
    """The page of one run, or of two side by side."""
    plots, data = plot_section(studies)
    sections = [
        Section("summary", "Summary", _each(studies, _summary)),
        plots,
        Section("events", "What happened", _each(studies, _events)),
        Section("time", "Where the time went", _each(studies, _time)),
        Section("starts", "Starts", _each(studies, _starts)),
        *([_between(*studies)] if len(studies) == 2 else []),
        Section("recipe", "Recipe", _each(studies, _recipe)),
        Section("hashes", "From input to checkpoint", _each(studies, _hashes)),
    ]
    title = " and ".join(study.name for study in studies)
    lead = "; ".join(study.state for study in studies)
    styles, script = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return page(title, f"{lead}. As of {clock(now_s)}.", sections, styles=styles, script=script, data=data)


def _each(studies: Sequence[Study], section: Callable[[Study], Html]) -> Html:
    """A section of one run, or that of each under its name."""
    if len(studies) == 1:
        return section(studies[0])
    return joined(
        element("div", element("h3", study.name, class_=f"run color{number}"), section(study))
        for number, study in enumerate(studies)
    )


def _summary(study: Study) -> Html:
    figures = study.figures()
    loss, validation = figures["loss"], figures["validation_loss"]
    total = "" if study.total_steps is None else f" of {study.total_steps:,}"
    told = {
        "state": study.state,
        "steps": f"{figures['steps']:,}{total}",
        "tokens": f"{figures['tokens'] or 0:,.0f}",
        "loss": f"{loss['first']:.4f} to {loss['last']:.4f}" if loss else "none yet",
        "validation loss": f"{validation['last']:.4f} at step {validation['step']:,}" if validation else "none",
        **({"sources": "; ".join(told_of_sources(figures["sources"]))} if figures["sources"] else {}),
        **({"began from": study.beginning} if study.beginning else {}),
        "speed (median)": f"{figures['tokens_per_s']:,.0f} tokens/s" if figures["tokens_per_s"] else "not told",
        "MFU (median)": f"{figures['mfu']:.1%}" if figures["mfu"] else "not told",
        "time": duration(study.lost.total_s) if study.starts else "not told",
        "starts": f"{len(study.starts):,}",
        "skipped steps": f"{figures['skipped'] or 0:,.0f}",
        "directory": str(study.recorded.run),
    }
    problems = [element("p", problem, class_="bad") for problem in study.recorded.problems]
    return joined([facts(told), *problems])


def _events(study: Study) -> Html:
    events = study.notable()
    if not events:
        return element("p", "No spike, skipped step, backoff, rollback, hang or warning.")
    rows = [
        (
            clock(event["time"]),
            "" if event["step"] is None else f"{event['step']:,.0f}",
            event["kind"],
            joined([event["told"], *([_documents(study, event)] if event["documents"] else [])]),
        )
        for event in events[:MOST_NOTABLE]
    ]
    more = len(events) - len(rows)
    columns = ["time", "step", "what", "told"]
    return joined(
        [
            table(columns, rows, label=f"Events of {study.name}", numbers=["step"]),
            *([element("p", f"{more:,} more are in events.jsonl, and in what --json prints.")] if more > 0 else []),
        ]
    )


def _documents(study: Study, event: dict[str, Any]) -> Html:
    """The documents of an event: input files, and rows in them; and how to see what was read of them."""
    documents: dict[str, list[tuple[int, int]]] = event["documents"]
    shown = list(documents.items())[:MOST_FILES]
    items = [element("li", element("code", source), f": {_rows(rows)}") for source, rows in shown]
    if len(documents) > len(shown):
        items.append(element("li", f"and {len(documents) - len(shown):,} more files"))
    count = sum(last - first + 1 for rows in documents.values() for first, last in rows)
    plural = "" if count == 1 else "s"
    parts = [element("summary", f"its {count:,} document{plural}"), element("ul", *items)]
    if event["step"] is not None:
        command = (
            f"python -m train trace --run {shlex.quote(str(study.recorded.run))} --step {event['step']:.0f} --text"
        )
        parts.append(element("p", "What the step read of them: ", element("code", command)))
    return element("details", *parts)


def _rows(stretches: list[tuple[int, int]]) -> str:
    said = [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in stretches[:MOST_STRETCHES]]
    more = len(stretches) - len(said)
    rows = "row" if len(stretches) == 1 and stretches[0][0] == stretches[0][1] else "rows"
    return f"{rows} {', '.join(said)}" + (f", and {more:,} more stretches" if more else "")


def _time(study: Study) -> Html:
    seconds, total_s = study.lost.seconds, study.lost.total_s
    unknown = [element("li", text) for text in study.lost.unknown]
    unknown = [element("p", "What the files do not tell:"), element("ul", *unknown)] if unknown else []
    if not seconds:
        return joined([element("p", "No start is told, so nothing is known of its time."), *unknown])
    styles = {cause: f"cause{number}" for number, cause in enumerate(CAUSES)}
    bar = stacked([(styles[cause], share_s) for cause, share_s in seconds.items()], "Shares of the time by cause")
    rows = [
        (
            joined([_swatch(styles[cause]), "waiting for data" if cause == "data" else cause]),
            duration(share_s),
            f"{share_s / total_s:.1%}",
            CAUSES[cause],
        )
        for cause, share_s in seconds.items()
    ]
    whole = "from its first process to its end, or its last sign of life"
    rows.append((Html("all"), duration(total_s), "100.0%", whole))
    columns = ["part", "time", "share", "what that is"]
    return joined([bar, table(columns, rows, label=f"Time of {study.name}", numbers=columns[1:3]), *unknown])


def _swatch(style: str) -> Html:
    return element(
        "svg",
        element("rect", width=10, height=10, class_=style),
        viewBox="0 0 10 10",
        class_="swatch",
        aria_hidden="true",
    )


def _starts(study: Study) -> Html:
    if not study.starts:
        return element("p", "No start is told.")
    rows = [
        (
            clock(start.time_s),
            machine_of(start),
            str(start.event.get("layout", "")),
            f"{start.after + 1:,} to {start.until:,}" if start.num_steps else "none",
            f"{start.undone.get('undone', 0):,.0f}" if start.undone else "",
            start.how,
            "; ".join(changes_of(start)),
        )
        for start in study.starts
    ]
    columns = ["ready at", "machine, ranks", "layout", "steps", "done again later", "how it ended", "changed"]
    return table(columns, rows, label=f"Starts of {study.name}", numbers=["done again later"])


def _recipe(study: Study) -> Html:
    if not study.recorded.recipe:
        return element("p", "The run has no readable run.json.")
    rows = [_difference(difference) for difference in study.differences]
    name = study.recipe_name
    against = table(["option", name, "this run"], rows, label=f"Recipe of {study.name} against {name}")
    changes = [(clock(start.time_s), change) for start in study.starts for change in changes_of(start)]
    changed = table(["start", "change"], changes, label=f"Changes of {study.name} at its starts")
    return joined(
        [
            element("h4", f"Other than in the recipe {name}"),
            against if rows else element("p", "Nothing."),
            element("h4", "Changed when it went on"),
            changed if changes else element("p", "Nothing."),
            element("details", element("summary", "All of it"), element("pre", toml(study.recorded.recipe))),
        ]
    )


def _difference(difference: Difference) -> tuple[str, str, str]:
    return difference.name, value(difference.shipped), value(difference.here)


def _between(one: Study, other: Study) -> Section:
    """What is different in the recipes of two runs."""
    before, now = flatten(dict(one.recorded.recipe)), flatten(dict(other.recorded.recipe))
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    rows = [_difference(Difference(name, before.get(name), now.get(name))) for name in names]
    body = table(["option", one.name, other.name], rows, label="Recipes of both runs")
    return Section("between", "Other than each other", body if rows else element("p", "Nothing in their recipes."))


def _hashes(study: Study) -> Html:
    return element("ol", *(_link(link) for link in study.links))


def _link(link: Link) -> Html:
    state = {True: element("span", " fits", class_="good"), False: element("span", " does not fit", class_="bad")}
    parts = [
        element("li", element("code", name), " ", element("span", digest, class_="hash")) for name, digest in link.parts
    ]
    return element(
        "li",
        element("strong", link.what),
        *([state[link.fits]] if link.fits is not None else []),
        element("div", link.hash or "none", class_="hash"),
        element("small", link.note),
        *([element("details", element("summary", f"{len(parts)} of them"), element("ul", *parts))] if parts else []),
    )
