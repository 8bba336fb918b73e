"""`fathom bench`: options of each benchmark, and output of its result. `deploy/bench/` holds the measurements."""

import re
import signal
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from tyro.conf import Positional, arg

from deploy.bench.harness import to_stderr
from deploy.bench.saved import check_save, compare, describe_machine, differences, load, save
from deploy.cli.experiments import find_file
from deploy.cli.options import EXIT_FAILED, named_env
from deploy.cli.output import complain, print_rows, say, show
from deploy.replay.server.provision import ProvisionError
from shared.config import EnvOptions
from shared.errors import ConfigError, RunFailed
from shared.files import to_json
from shared.replay.errors import ReplayError


@dataclass(frozen=True)
class _Options:
    """Options of all benchmarks. The name of a subclass gives the name of the sub-command and of its module."""

    quick: bool = False
    """Small sizes and few repeats for options that are left alone: shows that it works, not how fast."""
    json: bool = False
    """Print one JSON object."""
    save: Path | None = None
    """Write the figures to this file, with the machine that they come from."""
    compare: Path | None = None
    """Print every figure beside the one that --save wrote to this file."""

    @property
    def name(self) -> str:
        return re.sub("(?<=[a-z])(?=[A-Z])", "-", type(self).__name__).lower()

    def sized(self) -> Self:
        """Returns the options with --quick's sizes in place of defaults, if it is given."""
        sizes = QUICK[type(self)] if self.quick else {}
        defaults = {field.name: field.default for field in fields(self)}
        return replace(self, **{name: size for name, size in sizes.items() if getattr(self, name) == defaults[name]})

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of the benchmark's function: the options that only this benchmark has."""
        own = {field.name for field in fields(self)} - {field.name for field in fields(_Options)}
        return {name: getattr(self, name) for name in own}

    def measure(self) -> dict[str, Any]:
        """Calls `bench_x` of `deploy/bench/x.py`. Imports it only now: most modules need neither Ray nor Reverb."""
        name = self.name.replace("-", "_")
        return getattr(import_module(f"deploy.bench.{name}"), f"bench_{name}")(**self.arguments())


@dataclass(frozen=True)
class Update(_Options):
    """Speed of a learner's update by depth."""

    depths: tuple[int, ...] = (4, 16, 64)
    batch: int = 256
    width: int = 256
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of the networks' products, as in an experiment."""
    against: Literal["unrolled"] | None = None
    """Also measure the textbook's update, layers one by one, and its difference from ours."""
    repeats: int = 5
    """Least number of updates of each depth."""
    seconds: float = 3.0
    """Least number of seconds of updates of each depth."""
    seeds: int = 1
    """Also measure this number of learners in one vmapped update."""
    objective: str = "contrastive"
    episode_length: int = 100
    """Rows of a window, with which the labels of some objectives grow."""


@dataclass(frozen=True)
class Rollout(_Options):
    """Environment steps per second: bare, with a policy, and of a whole collector."""

    env: str = "point_u_maze"
    env_options: EnvOptions = EnvOptions()  # noqa: RUF009 - frozen
    num_envs: int = 512
    depth: int = 4
    """Depth of the policy's network."""
    width: int = 256
    repeats: int = 9
    """Turns of each loop."""
    with_replay: bool = False
    """Also measure a whole collector, inserting into a replay server."""

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"env_id": self.env, "env": named_env(self.env, self.env_options)}


@dataclass(frozen=True)
class Replay(_Options):
    """Replay in and out: rows of 293 floats and 4 ints, 64 environments, windows of 18 chunks, two tables."""

    against_stock: bool = False
    """Also measure Reverb's own client."""
    repeats: int = 5
    """Turns of each measurement."""
    unrolls: int = 60
    """Unrolls inserted in one turn."""
    batches: int = 36
    """Batches of 64 windows sampled in one turn."""


@dataclass(frozen=True)
class Weights(_Options):
    """Transfer of weights from a learner's device to a collector's, between real processes of this machine."""

    depth: int = 1024
    """Depth of the actor."""
    width: int = 256
    repeats: int = 9
    """Versions that are sent."""


@dataclass(frozen=True)
class EndToEnd(_Options):
    """A whole short run, distributed and in one process: speed and waits."""

    experiment: Positional[Path | None] = None
    """The experiment's YAML file, or a shipped one's name; none: one whose learner is slower than its collector."""
    modes: tuple[Literal["distributed", "in_process"], ...] = ("distributed", "in_process")
    """in_process alone needs neither Ray nor Reverb."""
    repeats: int = 9
    """Turns of the collector and of its policy's rollout."""
    matrix: bool = False
    """Instead: the cost of a matrix, which EXPERIMENT names then, to that of its cells as runs of their own."""

    def arguments(self) -> dict[str, Any]:
        path = self.experiment and find_file(self.experiment, "matrix" if self.matrix else "experiment")
        return {"path": path, "quick": self.quick, "repeats": self.repeats, "modes": self.modes}

    def measure(self) -> dict[str, Any]:
        if not self.matrix:
            return super().measure()
        if self.modes != type(self).modes:
            raise ConfigError("--modes: --matrix measures both; leave one of them out")
        from deploy.bench.matrix_cost import bench_matrix_cost

        return bench_matrix_cost(self.arguments()["path"], self.quick)


@dataclass(frozen=True)
class Start(_Options):
    """Seconds from the command to the first update, cold and warm, by phase and role."""

    experiment: Positional[Path] = Path("point_u_maze")
    """The experiment's YAML file, or a shipped one's name."""
    modes: tuple[Literal["in_process", "distributed", "matrix"], ...] = ("in_process", "distributed", "matrix")
    """matrix: the second distributed run of a matrix."""
    repeats: int = 3
    """Warm starts of each mode."""

    def arguments(self) -> dict[str, Any]:
        return {"path": find_file(self.experiment, "experiment"), "modes": self.modes, "repeats": self.repeats}


@dataclass(frozen=True)
class Scaling(_Options):
    """Simulated collectors and learners against one real replay server: the load that it carries, and the limit."""

    collectors: tuple[int, ...] = (1, 4, 16, 64)
    learners: tuple[int, ...] = (1, 4, 16, 64)
    seconds: float = 4.0
    """Duration of the measurement of each pair."""
    environments: int = 16
    """Environments of each collector."""
    state_size: int = 29
    action_size: int = 8
    goal_size: int = 2
    samples_per_insert: float = 1.0


@dataclass(frozen=True)
class Entries(_Options):
    """Cost of a window's entry in a table, in time and memory."""

    tables: tuple[int, ...] = (1, 8, 16)
    unrolls: int = 100
    """Unrolls of 64 environments inserted into each number of tables."""


@dataclass(frozen=True)
class RowBytes(_Options):
    """Bytes of an environment step in messages and files, measured on an environment's own rows."""

    envs: tuple[str, ...] = ("point_u_maze", "ant", "humanoid")
    unrolls: int = 20
    """Unrolls of 16 environments each."""

    def arguments(self) -> dict[str, Any]:
        return {"envs": {env_id: named_env(env_id) for env_id in self.envs}, "unrolls": self.unrolls}


@dataclass(frozen=True)
class Gpu(_Options):
    """All that is asked of a new GPU, in parts; the same command goes on with what is left."""

    minutes: float = 40.0
    """Longest time; what is left then is measured by the next call."""
    only: str = ""
    """Only parts in whose name this occurs."""
    out: Path = Path("runs/bench/gpu")
    """Folder of the parts' own files."""
    results: Path = Path("runs/bench/gpu")
    """Folder of the figures, a file for each card."""
    page: Path = Path("runs/bench/gpu.md")
    """Markdown page of the tables, which keeps its other text."""

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"quick": self.quick}


QUICK: dict[type[_Options], dict[str, Any]] = {
    Update: {"depths": (4,), "batch": 32, "width": 32, "repeats": 2, "seconds": 0.2},
    Rollout: {"num_envs": 64, "width": 32, "repeats": 3},
    Replay: {"repeats": 2, "unrolls": 8, "batches": 4},
    Weights: {"depth": 64, "repeats": 3},
    EndToEnd: {"repeats": 3},
    Start: {"repeats": 1},
    Scaling: {"collectors": (1, 4), "learners": (1, 4), "seconds": 1.0, "environments": 8},
    Entries: {"tables": (1, 2), "unrolls": 10},
    RowBytes: {"envs": ("point_u_maze",), "unrolls": 6},
    Gpu: {name: Path("runs/bench/quick/gpu") for name in ("out", "results")}
    | {"page": Path("runs/bench/quick/gpu.md")},
}


@dataclass(frozen=True)
class Bench:
    """Measure the speed of one part, or of a whole run."""

    what: Annotated[
        Update | Rollout | Replay | Weights | EndToEnd | Start | Scaling | Entries | RowBytes | Gpu, arg(name="")
    ]

    def execute(self) -> int:
        sized = self.what.sized()
        for count in ("repeats", "unrolls", "batches"):
            if (number := getattr(sized, count, 1)) < 1:
                raise ConfigError(f"--{count}: {number} is not positive; use at least 1")
        return measure_and_show(sized)


def measure_and_show(options: _Options) -> int:
    """Measures, then shows, saves and compares the result. Refuses files before the measurement where possible."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also if a shell has made this process ignore Ctrl-C
    if options.save:
        check_save(options.save)
    before = load(options.compare, options.name) if options.compare else None
    try:
        result = options.measure()
    except (RunFailed, ReplayError, ProvisionError) as error:  # one line each, with cause and remedy
        complain(str(error))
        return EXIT_FAILED
    compared: list[dict[str, Any]] = []
    try:
        machine = describe_machine(result.get("device")) if options.save or before else {}
        if options.save:
            save(options.save, options.name, machine, result)
        if options.compare and before:
            unlike = differences(options.compare, before["machine"], machine)
            compared = compare(options.compare, before["result"], result)
            if unlike:
                to_stderr(f"fathom: --compare: {options.compare} is from another machine: {'; '.join(unlike)}")
    finally:  # an error must not cost the measurement
        _show(result, compared, options.json)
    return 0


def _show(result: dict[str, Any], compared: list[dict[str, Any]], as_json: bool) -> None:
    """Prints a result, its rows as columns since they have many figures, and the comparison, if there is one."""
    if as_json:
        say(to_json(result | ({"compared": compared} if compared else {})))
        return
    if "rows" in result:
        (first, *names), rows = result["rows"][0], result["rows"]
        print_rows([{first: name} | {str(row[first]): row[name] for row in rows} for name in names])
    rest = {name: value for name, value in result.items() if name not in ("rows", "details")}
    if rest:
        show(rest, as_json=False)
    if compared:
        print_rows(compared)
