"""`fathom import`: from a rollout's episodes in OGBench's format to learners, and everything that it refuses."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from collector.feeder import Feeder
from collector.rollout import make_start, make_unroll
from deploy.cli.main import run_command
from deploy.run.setup import check_stream, make_envs_and_plan
from shared.config import EnvOptions
from shared.config_file import load_experiment
from shared.envs.base import EnvState
from shared.envs.registry import make_env, make_envs
from shared.envs.space import GRIDS
from shared.metrics import read_metrics
from shared.plan import make_plan
from shared.policy import random_policy
from shared.replay.codec import Columns, pack
from shared.replay.ring import WindowRing
from shared.stream.format import describe
from shared.stream.read import open_stream
from shared.stream.write import StreamWriter, write_manifest
from tests.conftest import MountDisk
from tests.deploy.importing.cases import dataset, save

PAGE = Path(__file__).parents[3] / "docs" / "import.md"
N, T, EPISODE, UNROLLS = 4, 5, 20, 40
OPTIONS = ["--env", "point_u_maze", "--env-options.episode-length", str(EPISODE)]
SIZES = ["--environments", str(N), "--unroll-length", str(T)]
SMALL = ["--learners.contrastive.width", "8", "--learners.cloning.width", "8", "--evaluation.count", "1"]
SMALL += ["--evaluation.episodes", "8"]


def import_file(file: Path, *options: str) -> int:
    return run_command(["import", "ogbench", str(file), *options])


def as_ogbench(env: Any, unrolls: list[Columns]) -> dict[str, Any]:
    """Returns the episodes of `unrolls` in OGBench's arrays, in the order in which they began, then by environment."""
    floats, ints = (np.concatenate(each, axis=1) for each in zip(*unrolls, strict=True))
    state, action, final = np.split(floats, [4, 6], axis=-1)
    start = EnvState((), state, final, jnp.zeros(state.shape[:2], bool))
    after = jax.jit(jax.vmap(jax.vmap(env.step)))(start, action).state  # rows do not hold an episode's last state
    episodes = [
        (np.append(state[index, rows], after[index, rows][-1:], axis=0), np.append(action[index, rows], [[0, 0]], 0))
        for episode in range(ints[..., 0].max() + 1)
        for index in range(N)
        if (rows := ints[index, :, 0] == episode).any()
    ]
    terminals = [np.arange(len(states)) == len(states) - 1 for states, _ in episodes]
    states, actions = (np.concatenate(each) for each in zip(*episodes, strict=True))
    return {"observations": states, "actions": actions.astype(np.float32), "terminals": np.concatenate(terminals)}


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A stream that a rollout's unrolls were recorded in, and the stream that is imported from the same episodes."""
    folder = tmp_path_factory.mktemp("streams")
    env = make_env("point_u_maze", EnvOptions(episode_length=EPISODE))
    state, unroll = jax.jit(make_start(env, N))(jax.random.key(0)), jax.jit(make_unroll(env, random_policy(2), T))
    unrolls = []
    for number in range(UNROLLS):
        state, made = unroll({}, jnp.int32(0), state, jax.random.key(number))
        unrolls.append(jax.tree.map(lambda x: np.swapaxes(np.asarray(x), 0, 1), pack(made.rows)))
    file = save(folder / "episodes.npz", **as_ogbench(env, unrolls))
    assert import_file(file, *OPTIONS, *SIZES, "--out", str(folder / "imported")) == 0
    experiment = load_experiment(folder / "imported" / "experiment.yaml")
    description = describe(experiment, make_plan(experiment, env.spec), env.spec)
    assert description.unrolls == UNROLLS
    writer = StreamWriter(folder / "recorded", 0, description)
    for number, columns in enumerate(unrolls):
        writer.write(columns, number)
    write_manifest(folder / "recorded", description, [writer.close()])
    return folder / "recorded", folder / "imported"


def fed(stream: Path, experiment: Any) -> tuple[list[Columns], Columns]:
    """Returns the unrolls that a feeder inserts, and windows that a learner would draw then."""
    envs = make_envs(experiment)
    plan = make_plan(experiment, envs.training.spec)
    feeder = Feeder(experiment, plan, envs.training, open_stream(stream).shard(0))
    ring, unrolls = WindowRing(plan, 1, envs.training.spec.row_floats), []
    while not feeder.done:
        number, columns, *_ = feeder.feed()
        ring.insert(0, number, columns)
        unrolls.append(columns)
    return unrolls, ring.sample(64, np.random.default_rng(0))


def test_learners_get_the_same_windows_as_from_a_collectors_recording(streams: tuple[Path, Path]) -> None:
    experiment = load_experiment(streams[1] / "experiment.yaml")
    recorded, imported = (fed(stream, experiment) for stream in streams)
    assert len(recorded[0]) == UNROLLS
    assert np.any(imported[1].ints[..., 3] != 0)
    assert np.any(imported[1].floats[..., 6:] != 0)
    jax.tree.map(np.testing.assert_array_equal, imported, recorded)


@pytest.mark.slow
def test_the_experiment_beside_the_stream_trains(streams: tuple[Path, Path], tmp_path: Path) -> None:
    """Both objectives, and in each update with the same numbers as on the recording."""
    rows = []
    for stream in streams:
        run_dir = tmp_path / stream.name
        options = ["--in-process", "--run-dir", str(run_dir), "--stream", str(stream), *SMALL]
        assert run_command(["run", str(streams[1] / "experiment.yaml"), *options]) == 0
        summary = json.loads((run_dir / "summary.json").read_text())
        assert summary["env_steps"] == N * T * UNROLLS
        rows.append({name: read_metrics(run_dir, f"learner-{name}") for name in ("contrastive", "cloning")})
    losses = {"contrastive": ("actor/loss", "critic/loss", "alpha/loss"), "cloning": ("actor/loss", "alpha/loss")}
    for name, keys in losses.items():
        assert len(rows[1][name]) > 5
        for key in keys:
            ours, theirs = ([row[key] for row in run[name]] for run in rows)
            assert np.isfinite(ours).all()
            assert ours == theirs


def test_the_output_says_what_was_imported_and_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "walks.npz", **dataset([20] * 40 + [7], state_size=4))
    assert import_file(Path("walks.npz"), *OPTIONS) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    stream = tmp_path / "streams" / "walks"
    assert lines == [
        "walks.npz: 41 trajectories of 7 to 20 steps",
        f"imported 800 of 807 steps, dropped 7: {stream}",
        "next: fathom run streams/walks/experiment.yaml",
        "an experiment of your own needs:",
        "env: point_u_maze",
        "env_options: {episode_length: 20}",
        f"stream: {stream}",
        "collector: {environments: 4, unroll_length: 20}",
        "budget: {env_steps: 800}",
    ]
    text = (stream / "experiment.yaml").read_text()
    assert text.startswith("# Learners on walks.npz: 41 trajectories of 7 to 20 steps\nenv: point_u_maze\n")
    values = yaml.safe_load(text)
    assert values["env_options"] == {"episode_length": EPISODE}
    assert values["stream"] == str(stream)
    assert sorted(path.name for path in (tmp_path / "streams").iterdir()) == [".walks.lock", "walks"]


def test_an_own_environment_of_the_datas_sizes_can_be_named(own_envs: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "walks.npz", **dataset([20] * 40))
    assert import_file(file, "--env", "field:Field", "--out", str(tmp_path / "stream")) == 0
    experiment = load_experiment(tmp_path / "stream" / "experiment.yaml")
    assert experiment.env == "field:Field"
    envs, plan = make_envs_and_plan(experiment)
    assert check_stream(experiment, plan, envs) == str(tmp_path / "stream")


# --- refusals ---


def good(**changes: Any) -> dict[str, Any]:
    """Returns a data set that can be imported, with other arrays; None leaves one out."""
    arrays = dataset([20] * 40, state_size=4) | changes
    return {name: array for name, array in arrays.items() if array is not None}


def marked(*rows: int) -> dict[str, Any]:
    """Returns a data set with `terminals` at `rows` alone."""
    terminals = np.zeros(840, bool)
    terminals[list(rows)] = True
    return good(terminals=terminals)


def spoilt(name: str, row: int, value: float) -> dict[str, Any]:
    arrays = good()
    arrays[name][row, 1] = value
    return arrays


DATA: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (good(actions=None), "actions are missing, it has observations, terminals; name a data set of OGBench"),
    "nothing": ({}, "observations are missing, it has no arrays; name a data set of OGBench"),
    "loaded": (good(next_observations=np.zeros(3)), "has next_observations, so it is what OGBench's loader returns; "),
    "loaded compactly": (
        good(valids=np.zeros(3)),
        "has valids, so it is what OGBench's loader returns; name the file ",
    ),
    "pictures": (
        good(observations=np.zeros((840, 8, 8, 3), np.uint8)),
        "observations are uint8 [840, 8, 8, 3], numbers [M, S] of type float are needed; networks take states, not "
        "pictures, so name a state-based data set",
    ),
    "discrete": (
        good(actions=np.zeros(840, np.int32)),
        "actions are int32 [840], numbers [M, A] of type float are needed; policies act continuously, so name a data "
        "set with such actions",
    ),
    "objects": (good(actions=np.array([{}])), "actions are object [1], numbers [M, A] of type float are needed; "),
    "marks": (good(terminals=np.full(840, "x")), "terminals are <U1 [840], a number or bool for each state is needed"),
    "lengths": (
        good(terminals=np.ones(3)),
        "840 observations, 840 actions, 3 terminals: each state needs one of each; make the file again",
    ),
    "state": (
        good(observations=np.zeros((840, 29))),
        "observations have 29 numbers, the state of point_u_maze has 4; name an --env of the data's sizes, your own if "
        "need be (docs/import.md)",
    ),
    "action": (good(actions=np.zeros((840, 8))), "actions have 8 numbers, the action of point_u_maze has 2; name an "),
    "other marks": (good(terminals=np.full(840, 2)), "terminals: other numbers than 0 and 1; name a data set of "),
    "NaN mark": (good(terminals=np.full(840, np.nan)), "terminals: other numbers than 0 and 1; name a data set of "),
    "no rows": (
        {"observations": np.zeros((0, 4)), "actions": np.zeros((0, 2)), "terminals": np.zeros(0)},
        "terminals: no trajectory ends; it needs a 1 at the last state of each",
    ),
    "no end": (marked(), "terminals: no trajectory ends; it needs a 1 at the last state of each"),
    "cut off": (
        marked(20, 41),
        "terminals: the last 1 is in row 41, of 840 rows; the last trajectory is not whole, leave it out of the file",
    ),
    "one state": (
        marked(19, 20, 839),
        "terminals: the trajectory in row 20 has one state and no step; mark the last state of each trajectory alone, "
        "and leave such trajectories out",
    ),
    "too long": (
        dataset([20, 25, 22], state_size=4),
        "trajectories have up to 25 steps, an episode of point_u_maze has 20; add --env-options.episode-length 25",
    ),
    "NaN": (spoilt("observations", 7, np.nan), "observations: row 7 is not finite; leave its trajectory out of the f"),
    "infinite": (spoilt("observations", 839, -np.inf), "observations: row 839 is not finite; leave its trajectory ou"),
    "range": (
        spoilt("actions", 7, -1.5),
        "actions: -1.5 in row 7, policies act in [-1, 1]; scale the file's actions to this range",
    ),
    "NaN action": (spoilt("actions", 3, np.nan), "actions: nan in row 3, policies act in [-1, 1]; scale the file's "),
}


@pytest.fixture
def refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """`refuses(file, line, *options)` checks that an import of `file` ends with this one line, and writes nothing."""

    def check(file: Path, line: str, *options: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        assert import_file(file, *OPTIONS, "--out", str(tmp_path / "new" / "stream"), *options) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"fathom: {line}"), printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""
        assert sorted(tmp_path.rglob("*")) == before

    return check


@pytest.mark.parametrize(("arrays", "line"), DATA.values(), ids=DATA.keys())
def test_data_that_cannot_be_imported_are_refused_in_one_line(
    arrays: dict[str, Any], line: str, refuses: Callable[..., None], tmp_path: Path
) -> None:
    file = save(tmp_path / "data.npz", **arrays)
    refuses(file, f"{file}: {line}")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "No such file or directory"),
        (b"", "not a whole .npz file"),
        (b"not a zip file", "not a whole .npz file"),
        (b"\x93NUMPY\x01\x00", "not a whole .npz file"),
    ],
)
def test_a_file_that_is_no_npz_is_refused(
    content: bytes | None, cause: str, refuses: Callable[..., None], tmp_path: Path
) -> None:
    file = tmp_path / "data.npz"
    if content is not None:
        file.write_bytes(content)
    refuses(file, f"{file}: cannot be read ({cause}); name a file that OGBench has downloaded or made")


def test_options_that_do_not_fit_are_refused(refuses: Callable[..., None], tmp_path: Path) -> None:
    file = save(tmp_path / "data.npz", **good())
    refuses(file, "--environments: 0 is not positive", "--environments", "0")
    refuses(file, "--unroll-length: -5 is not positive", "--unroll-length", "-5")
    refuses(file, "--env: unknown environment 'point_u_mase'; did you mean 'point_u_maze'?", "--env", "point_u_mase")
    refuses(file, "env_options.backend: this environment has no such option", "--env-options.backend", "mjx")
    refuses(file, "--environments: 41 are more than the file's 40 trajectories; use fewer", "--environments", "41")
    refuses(file, "--environments: 20 steps in the shortest of 40 environments are too few, ", "--environments", "40")
    refuses(file, f"--out: {tmp_path} exists; name another folder, or remove it", "--out", str(tmp_path))


@pytest.mark.processes
def test_a_full_disk_leaves_nothing(mount_disk: MountDisk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = mount_disk("size=1m")
    noise = np.random.default_rng(0).random((84_000, 4), np.float32)
    terminals = np.arange(84_000) % 21 == 20
    file = save(tmp_path / "data.npz", observations=noise, actions=noise[:, :2], terminals=terminals)
    assert import_file(file, *OPTIONS, "--out", str(disk / "stream")) == 2
    expected = f"fathom: --out: {disk / 'stream'}: No space left on device; make room, or name another folder\n"
    assert capsys.readouterr().err == expected
    assert [path.name for path in disk.iterdir()] == [".stream.lock"]


# --- docs/import.md ---

STEPS_OF_OGBENCH = [  # state, action, next state: steps of its pointmaze-medium-v0, package 1.2.2
    ([4.09762716, 20.43037796], [0.9279207, 0.21058959], [4.28321123, 20.472496]),
    ([16.78066826, 1.10002041], [0.85373533, 1.0], [16.95141602, 1.30002034]),
    ([14.5397501, 4.2821045], [-1.0, -1.0], [14.3397503, 4.0821047]),
    ([10.33295727, 6.74688959], [-0.40223843, -0.96432221], [10.2836113, 6.62226391]),  # the others touch walls
    ([10.2836113, 6.62226391], [0.341465, -1.0], [10.43108749, 6.51727915]),
    ([10.0391254, 14.68610382], [-1.0, -0.64671493], [9.83912563, 14.67461586]),
    ([18.02718353, 13.28014946], [0.15285684, 1.0], [18.07383156, 13.33544731]),
]
FREE = 3


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of the environment on the page."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    (tmp_path / "documented_point.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "documented_point:PointMazeMedium"


def test_the_documented_environment_steps_as_ogbenchs_does(documented: str) -> None:
    env = make_env(documented)
    states, actions, nexts = (np.array(each, np.float32) for each in zip(*STEPS_OF_OGBENCH, strict=True))
    start = EnvState((), states, states, jnp.zeros(len(states), bool))
    after = np.asarray(jax.jit(jax.vmap(env.step))(start, actions).state)
    np.testing.assert_allclose(after[:FREE], nexts[:FREE], atol=1e-5)
    np.testing.assert_allclose(after[FREE:], nexts[FREE:], atol=0.05)
    assert np.linalg.norm(after[FREE:] - states[FREE:] - 0.2 * actions[FREE:], axis=1).min() > 0.01
    grid = GRIDS["point_big_maze"].replace("X", ".").split("/")
    assert grid == sys.modules["documented_point"].MAP
    fresh = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 200))
    for points in (fresh.state, fresh.goal):
        column, row = np.round(np.asarray(points) / 4 + 1).astype(int).T
        assert all(grid[i][j] == "." for i, j in zip(row, column, strict=True))
        assert env.cell(points).min() >= 0
        assert env.cell(points).max() < env.spec.num_cells


def test_the_documented_import_makes_the_documented_experiment(
    documented: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "pointmaze-medium-navigate-v0.npz", **dataset([1000] * 200) | {"actions": np.zeros((200_200, 2))})
    assert import_file(Path("pointmaze-medium-navigate-v0.npz"), "--env", documented) == 0
    made = "streams/pointmaze-medium-navigate-v0/experiment.yaml"
    for text in (capsys.readouterr().out, Path(made).read_text()):
        shown = text.replace(str(tmp_path), "/home/you").replace("documented_point", "ogbench_point")
        assert shown in PAGE.read_text()
