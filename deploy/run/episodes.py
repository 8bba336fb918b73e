"""The table of a run's evaluation episodes, `episodes.arrow`: a row for each episode of each evaluation.

Episodes with the same number, of runs with the same seed and evaluation environment, have the same start and goal after
equally many updates. So they pair across learners and collector depths.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import feather

from collector.behaviour import PREFIX
from collector.evaluator import holds_episodes
from shared.files import replace_file
from shared.metrics import Row, read_metrics
from shared.roles import EVALUATOR

EPISODES = "episodes.arrow"


def write_episodes(run_dir: Path) -> None:
    """Writes the table from the evaluator's rows; nothing if these hold no episodes. Raises OSError."""
    tables = [_table(row, name) for row in read_metrics(run_dir, EVALUATOR) for name in row if holds_episodes(name)]
    if tables:
        file = io.BytesIO()
        feather.write_feather(pa.concat_tables(tables, promote_options="default"), file, compression="zstd")
        replace_file(run_dir / EPISODES, file.getvalue())


def read_episodes(run_dir: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns the table: learner, updates, env_steps, number of the episode, and the columns of `measure_episodes`.

    With several environments of the evaluation it also has `env`, which is null for the first of them.
    Raises OSError where the file is missing or damaged. `columns`: the columns that are read, if they are there; None:
    all.
    """
    try:
        if columns is not None:
            with pa.ipc.open_file(run_dir / EPISODES) as file:
                columns = [name for name in columns if name in file.schema.names]
        return feather.read_table(run_dir / EPISODES, columns=columns, memory_map=False)
    except (pa.ArrowException, OSError) as error:  # Arrow's own errors of a cut file have no text of the system
        missing, text = isinstance(error, FileNotFoundError), getattr(error, "strerror", None)
        reason = "missing" if missing else f"not readable ({text})" if text else "damaged"
        raise OSError(None, f"{EPISODES} is {reason}", str(run_dir / EPISODES)) from error


def evaluated_in(episodes: pa.Table, env: str | None) -> pa.Table:
    """Returns the rows of an environment of the evaluation; None: the first one."""
    if "env" not in episodes.column_names:
        return episodes
    return episodes.filter(pc.field("env").is_null() if env is None else pc.field("env") == env)


def _table(row: Row, name: str) -> pa.Table:
    """Returns the episodes of one evaluation, which `row` has by `name`."""
    columns: dict[str, list[Any]] = row[name]
    count = len(columns["steps"])
    of_env = {} if name == "episodes" else {"env": pa.array([name.split("/")[1]] * count)}
    index = of_env | {
        "learner": pa.array([row["learner"]] * count),
        "updates": pa.array([row["updates"]] * count, pa.int64()),
        "env_steps": pa.array([row["env_steps"]] * count, pa.int64()),
        "episode": pa.array(range(count), pa.int32()),
    }
    return pa.table(index | {name: pa.array(values, _type(name, values)) for name, values in columns.items()})


def _type(name: str, values: list[Any]) -> pa.DataType:
    if name in ("start", "goal"):
        return pa.list_(pa.float32(), len(values[0]))
    if name == "broken":
        return pa.bool_()
    exact = name == "steps" or name.startswith("time_at_goal")
    return pa.int32() if exact and not name.startswith(PREFIX) else pa.float32()
