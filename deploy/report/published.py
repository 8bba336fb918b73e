"""Published results beside ours: `published.yaml`, and the rows of it that belong to a matrix."""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from deploy.report.contents import Published
from deploy.report.records import Trial
from deploy.report.statistics import estimate
from shared import strict_yaml
from shared.values import Depth, Frozen, PositiveInt, Text

_FILE = Path(__file__).with_name("published.yaml")


class _Source(Frozen):
    """`error`: what the errors of its results are. `differs`: in what its results are not comparable with ours."""

    title: Text
    link: Text
    error: Text
    differs: str


class _Result(Frozen):
    """Steps at goal of 1,000 by depth, each with its error if one is published."""

    source: str
    env: str
    evaluated_in: str
    objective: str
    chunk: PositiveInt = 1
    env_steps: PositiveInt
    values: dict[Depth, tuple[Annotated[float, Field(ge=0)], float | None]]


class _Results(Frozen):
    sources: dict[str, _Source]
    results: tuple[_Result, ...]


@cache
def load_published() -> _Results:
    """Returns the content of `published.yaml`."""
    return _Results.model_validate(strict_yaml.load(_FILE.read_text(encoding="utf-8")))


class _Learners(NamedTuple):
    """Learners of ordinary training that are alike."""

    objective: str
    chunk: int
    depth: int


def published_beside(env: str, evaluated_in: str, active: Iterable[Trial]) -> Iterator[Published]:
    """Yields the published results of a task and a layout at each depth at which collector learners have trained.

    Published networks gather their own data, and so do these: passive learners are not compared.
    """
    ours: dict[_Learners, list[Trial]] = {}
    for trial in active:
        ours.setdefault(_Learners(trial.objective, trial.chunk, trial.learner_depth), []).append(trial)
    published = load_published()
    for result in published.results:
        if (result.env, result.evaluated_in) != (env, evaluated_in):
            continue
        source = published.sources[result.source]
        for depth, (mean, error) in result.values.items():
            trials = ours.get(_Learners(result.objective, result.chunk, depth))
            if trials:
                yield Published(
                    objective=result.objective,
                    chunk=result.chunk,
                    depth=depth,
                    ours=estimate([trial.final for trial in trials]),
                    env_steps=min(trial.steps[-1] for trial in trials),
                    theirs=mean,
                    error=error,
                    error_is=source.error,
                    their_env_steps=result.env_steps,
                    source=source.title,
                    link=source.link,
                    differs=source.differs,
                )
