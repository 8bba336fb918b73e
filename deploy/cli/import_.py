"""`fathom import`: a data set of another project as a recorded stream, on which learners train."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from tyro.conf import Positional

from deploy.cli.options import named_env
from deploy.cli.output import say
from shared.config import EnvOptions
from shared.config_file import parse_experiment, printable
from shared.errors import ConfigError

STREAMS = Path("streams")  # results without an --out
EXPERIMENT = "experiment.yaml"  # beside the stream
NEEDED = ("env", "env_options", "stream", "collector", "budget")  # keys in which a run must agree with the stream


@dataclass(frozen=True)
class Import:
    """Make a recorded stream of another project's data set, and an experiment whose learners train on it."""

    format: Positional[Literal["ogbench"]]
    """Project whose format the file has."""
    file: Positional[Path]
    """The data set: of OGBench, an .npz file of states."""
    env: str
    """Environment with the data's sizes of state and action, in which learners are evaluated."""
    env_options: EnvOptions = EnvOptions()  # noqa: RUF009 - frozen
    """Options of --env."""
    out: Path | None = None
    """Folder to write; none: streams/ with the file's name."""
    environments: int | None = None
    """Environments among which trajectories are shared out; none: up to 64, so that few steps are dropped."""
    unroll_length: int | None = None
    """Steps of a chunk; none: 50, or the episode's length if that is less."""

    def execute(self) -> int:
        """Checks everything, then writes. Raises ConfigError before anything is written."""
        for name in ("environments", "unroll_length"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')}: {value} is not positive")
        out = self._folder.absolute()
        if out.exists():
            raise ConfigError(f"--out: {out} exists; name another folder, or remove it")
        from deploy.importing import ogbench, stream
        from deploy.run.setup import prepare_jax
        from shared.plan import make_plan
        from shared.stream.format import describe

        prepare_jax(cpu_only=True)
        spec = named_env(self.env, self.env_options).spec
        data = ogbench.read(self.file, self.env, spec)
        layout = stream.choose_layout(data.steps, spec.episode_length, self.environments, self.unroll_length)
        values = stream.make_experiment(self.env, self.env_options, spec, layout, out)
        experiment = parse_experiment(values)
        description = describe(experiment, make_plan(experiment, spec), spec)
        heading = f"Learners on {self.file.name}: {_describe(data)}"

        def fill(folder: Path) -> None:
            stream.write(folder, data, layout, description, spec)
            text = f"# {printable(heading)}\n{_as_yaml(values)}"
            (folder / EXPERIMENT).write_text(text, encoding="utf-8")

        _write_whole(out, fill)
        dropped = data.num_steps - layout.num_steps
        say(f"{self.file}: {_describe(data)}")
        say(f"imported {layout.num_steps:,} of {data.num_steps:,} steps, dropped {dropped:,}: {out}")
        say(f"next: fathom run {self._folder / EXPERIMENT}")
        say("an experiment of your own needs:")
        say(_as_yaml({key: values[key] for key in NEEDED if key in values}).rstrip())
        return 0

    @property
    def _folder(self) -> Path:
        """The folder to write, as the user would type it."""
        return self.out or STREAMS / self.file.stem


def _as_yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)


def _describe(data: Any) -> str:
    shortest, longest = data.steps.min(), data.steps.max()
    steps = f"{longest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
    return f"{len(data.steps):,} trajectories of {steps} steps"


def _write_whole(out: Path, fill: Callable[[Path], None]) -> None:
    """Makes the folder `out` with what `fill` writes into it, or leaves nothing. Raises ConfigError."""
    from deploy.run.run_dir import lock_folder

    beside = out.with_name(f".{out.name}.importing")
    with lock_folder(out, "--out"):
        try:
            shutil.rmtree(beside, ignore_errors=True)  # an import was killed
            beside.mkdir()
            fill(beside)
            beside.rename(out)
        except OSError as error:
            cause = os.strerror(error.errno) if error.errno else error  # Arrow's own text is longer
            raise ConfigError(f"--out: {out}: {cause}; make room, or name another folder") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
