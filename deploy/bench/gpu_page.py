"""Tables of `gpu.py`: a section of a Markdown page, written from the figures of all cards."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.mode import Mode
from shared.errors import ConfigError
from shared.files import replace_file

UPDATE, ROLLOUT, END_TO_END, CURVE = "update", "rollout", "end-to-end", "curve"
"""Kinds of parts, with which their names begin."""
BEGIN, END = "<!-- Written by make bench-gpu: begin -->", "<!-- Written by make bench-gpu: end -->"
NOT_MEASURED = "not measured"

Figures = Mapping[str, Any]
Parts = Mapping[str, Figures]


def check_page(page: Path) -> None:
    """Raises ConfigError if `page` exists and has no place for the tables."""
    if page.exists():
        _split(page)


def write_page(page: Path, results: Path, quick: bool) -> None:
    """Writes the section of all cards in `results` to its place in `page`, which is made if it is missing."""
    before, after = _split(page) if page.exists() else ("", "\n")
    page.parent.mkdir(parents=True, exist_ok=True)
    warning = "\nMade with `--quick`: these figures show that all parts work, not how fast.\n" if quick else ""
    replace_file(page, f"{before}{BEGIN}\n{warning}{section(results)}\n{END}{after}")


def _split(page: Path) -> tuple[str, str]:
    """Returns the text before and after the place of the tables."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"--page: {page} lacks the lines {BEGIN} and {END}; add them where the tables should be")
    return before, after


def read_cards(results: Path) -> dict[str, dict[str, Any]]:
    """Returns the parts of each card by the name of its file. Raises ConfigError if a file is damaged."""
    cards = {}
    for file in sorted(results.glob("*.json")):
        try:
            cards[file.name] = json.loads(file.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{file}: is damaged; delete it to measure anew") from error
    return cards


def section(results: Path) -> str:
    """Returns the tables of all cards in `results`, a heading for each card."""
    return "\n".join(line for name, parts in read_cards(results).items() for line in _card(name, parts))


def _card(file: str, parts: Parts) -> Iterator[str]:
    machines = [part["machine"] for part in parts.values()]

    def of(name: str) -> str:
        return ", ".join(dict.fromkeys(str(machine[name]) for machine in machines))

    yield f"\n### {of('device')}\n"
    yield f"{of('cpu')}, {of('cores')} cores, JAX {of('jax')}; each part in a process of its own: `{file}`.\n"
    for kind, lines in _TABLES.items():
        found = {name: part["result"] for name, part in parts.items() if name.startswith(kind)}
        yield from lines(found) if found else [f"{kind}: {NOT_MEASURED}.\n"]


def _update(parts: Parts) -> Iterator[str]:
    rows = [row for result in parts.values() for row in result["rows"]]
    sizes = rows[0]
    yield (
        f"Update, `fathom bench update --batch {sizes['batch']} --width {sizes['width']}`.\n"
        "Speedup: over the textbook's update, in turns in the same process. The textbook's products are in float32\n"
        "where ours are, else in JAX's default.\n"
    )
    by_size: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:  # a depth may be compared in a part of its own: its other figures stay those of the first
        size = row["precision"], row["depth"]
        by_size[size] = row | by_size.get(size, {})
    order = [*dict.fromkeys(precision for precision, _ in by_size)]
    yield from _table(
        *("precision", "depth", "gradient step (s)", "gradient steps/s", "to float32's", "speedup"),
        *("first step (s)", "textbook's", "memory (MB)", "textbook's", "share of a matrix product's speed"),
        rows=(
            (
                *(precision, str(depth), _number(row["step_seconds"]), _number(row["gradient_steps_per_second"])),
                _ratio(row, by_size.get(("float32", depth)), "step_seconds"),
                *(_number(row.get("step_speedup")), _number(row["first_step_seconds"])),
                *(_number(row.get("unrolled_first_step_seconds")), _megabytes(row["memory_bytes"])),
                *(_megabytes(row.get("unrolled_memory_bytes")), f"{row['peak_share']:.1%}"),
            )
            for (precision, depth), row in sorted(by_size.items(), key=lambda of: (order.index(of[0][0]), of[0][1]))
        ),
    )


def _rollout(parts: Parts) -> Iterator[str]:
    sizes = next(iter(parts.values()))
    yield (
        f"Rollout, `fathom bench rollout --env ID --num-envs {sizes['num_envs']} --width {sizes['width']}`,\n"
        f"environment steps/s, physics in float32; the policy has depth {sizes['depth']}.\n"
    )
    yield from _table(
        *("environment", "compile (s)", "physics alone", "rollout", "with a policy"),
        rows=(
            (
                *(f"`{row['env']}`", _number(row["compile_seconds"]), _number(row["bare_steps_per_second"])),
                *(_number(row["rollout_steps_per_second"]), _number(row["policy_steps_per_second"])),
            )
            for row in parts.values()
        ),
    )


_RUN_FIGURES = {
    "environment steps/s": "env_steps_per_second",
    "gradient steps/s": "gradient_steps_per_second",
    "seconds to the first update": "seconds_to_first_update",
    "seconds in all": "wall_seconds",
    "share of time in updates": "learner_updating",
    "collector waits for room in replay": "collector_waiting_replay_full",
    "learner waits for data": "learner_waiting_replay_starved",
}


def _end_to_end(parts: Parts) -> Iterator[str]:
    sizes = next(iter(parts.values()))
    modes = {row["mode"]: row for result in parts.values() for row in result["rows"]}
    yield (
        f"End to end, `fathom bench end-to-end`: `{sizes['env']}`, {sizes['num_envs']} environments,\n"
        f"depth {sizes['depth']}, batches of {sizes['batch']}, {sizes['minibatches']} gradient steps an update,\n"
        f"{sizes['budget']:,} environment steps.\n"
    )
    yield from _table(
        *("", "distributed", "in one process"),
        rows=(
            (heading, *(_of_mode(modes.get(mode), figure) for mode in (Mode.DISTRIBUTED, Mode.IN_PROCESS)))
            for heading, figure in _RUN_FIGURES.items()
        ),
    )


def _of_mode(row: Figures | None, figure: str) -> str:
    return NOT_MEASURED if row is None else _number(row[figure])


def _curve(parts: Parts) -> Iterator[str]:
    (result,) = parts.values()
    last = result["rows"][-1]
    yield (
        f"Learning curve, `fathom run ant --in-process`: `{result['env']}`, {last['env_steps']:,} environment steps,\n"
        f"{_number(result['env_steps_per_second'])} a second with evaluations, and "
        f"{_number(result['gradient_steps_per_second'])} gradient steps/s; the first update after\n"
        f"{_number(result['seconds_to_first_update'])} s; {_number(result['memory_mb'])} MB of the computer's memory.\n"
    )
    yield from _table(
        *("environment steps", f"time at goal, of {result['episode_length']:,} steps", "success rate"),
        rows=(
            (f"{row['env_steps']:,}", _number(row["time_at_goal"]), _number(row["success_rate"]))
            for row in result["rows"]
        ),
    )


_TABLES = {UPDATE: _update, ROLLOUT: _rollout, END_TO_END: _end_to_end, CURVE: _curve}


def _table(*headings: str, rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in (headings, ["---"] * len(headings), *rows):
        yield f"| {' | '.join(row)} |"
    yield ""


def _number(value: float | None) -> str:
    """Returns three digits, or all before the point; empty for an unknown figure."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _megabytes(size: float | None) -> str:
    return _number(None if size is None else size / 1e6)


def _ratio(row: Figures, other: Figures | None, figure: str) -> str:
    return _number(None if other is None else row[figure] / other[figure])
