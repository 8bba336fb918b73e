"""Updates of the distributed learner, compared with the updates of an in-process learner on the same windows."""

import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np

from collector.collector import Collector
from deploy.replay.service import table_spec
from learner.acting import collecting_policy
from learner.devices import share_out
from learner.learner import Learner
from shared.config import ACTIVE
from shared.config_file import load_experiment
from shared.envs.registry import make_env
from shared.metrics import Reporter
from shared.params import Policy
from shared.plan import make_plan
from shared.replay.codec import Columns
from shared.replay.info import server_info
from shared.replay.insert import Inserter
from shared.replay.sample import Sampler
from shared.types import CONTINUES

# Sizes that other tests compile, too.
EXPERIMENT = """
env: point_u_maze
env_options: {episode_length: 20}
collector: {depth: 4, width: 8, environments: 4, unroll_length: 5}
algorithm: {batch_size: 16, windows_per_update: 8, minibatches_per_update: 4}
replay: {steps_per_environment: 60, prefill_steps: 30}
budget: {env_steps: 480}
"""


def test_a_learner_fed_by_the_server_makes_the_same_updates_as_in_process(start_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT)
    experiment = load_experiment(path)
    env = make_env(experiment.env, experiment.env_options)
    plan = make_plan(experiment, env.spec)
    _, address = start_server(table_spec(experiment, plan, ACTIVE, "run/active"))

    distributed = Learner(experiment, plan, env.spec, ACTIVE)
    inserter = Inserter(address, ["run/active"], plan.chunks_per_window, plan.environments, timeout_s=20)
    sampler = Sampler(
        address,
        "run/active",
        plan.windows_per_update,
        plan.window_rows,
        env.spec.row_floats,
        share_out,
        timeout_s=20,
        max_windows=plan.updates * plan.windows_per_update,
    )
    collector = Collector(experiment, plan, env, index=0, policy=collecting_policy(experiment, env.spec))
    stored: list[Columns] = []

    def insert(number: int, columns: Columns) -> None:
        stored.append(columns)
        inserter.insert(columns, number)

    sampled: list[Columns] = []

    def sample() -> Columns:
        windows = sampler.sample()[0]
        sampled.append(Columns(*map(np.array, windows)))
        return windows

    first = Policy(0, jax.tree.map(np.array, distributed.state.actor))
    collecting = threading.Thread(
        target=collector.run,
        args=(lambda above: first if above < 0 else None, insert, lambda: inserter.room, Reporter(), lambda: False),
        daemon=True,
    )
    collecting.start()
    distributed.run(
        sample,
        lambda: server_info(address).tables["run/active"].inserted,
        lambda policy: None,
        lambda policy: None,
        lambda: None,
        Reporter(),
        lambda: False,
    )
    collecting.join(60)
    assert not collecting.is_alive()
    inserter.flush(20)
    inserter.close()
    sampler.close()

    in_process = Learner(experiment, plan, env.spec, ACTIVE)
    for windows in sampled:
        in_process.update(windows)
    assert distributed.updates == in_process.updates == plan.updates > 3
    for ours, theirs in zip(jax.tree.leaves(distributed.state), jax.tree.leaves(in_process.state), strict=True):
        np.testing.assert_array_equal(_plain(ours), _plain(theirs))
    _assert_windows_were_stored(sampled, stored)


def _assert_windows_were_stored(sampled: list[Columns], stored: list[Columns]) -> None:
    """Asserts that every sampled window equals, to the bit, consecutive steps of exactly one environment."""
    floats = np.concatenate([columns.floats for columns in stored], axis=1)
    ints = np.concatenate([columns.ints for columns in stored], axis=1)
    for batch in sampled:
        for window_floats, window_ints in zip(*batch, strict=True):
            start = window_ints[0, 1]  # the step column
            rows = slice(start, start + len(window_ints))
            matches = [
                np.array_equal(window_floats, floats[n, rows]) and np.array_equal(window_ints, ints[n, rows])
                for n in range(len(floats))
            ]
            assert sum(matches) == 1
    ends = ints[..., 3] != CONTINUES
    assert ends.any()  # so that the windows held ends, and the points in which episodes ended
    assert (np.any(floats[..., -2:] != 0, axis=-1) == ends).all()


def _plain(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
