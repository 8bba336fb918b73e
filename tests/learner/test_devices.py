"""Learner on several devices: equal to the same learner on one device, but for rounding."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from learner.devices import share_out
from shared.replay.codec import Columns

DEVICES = 4
# Runs in its own process: JAX fixes the number of CPU devices when it starts.
SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import jax
import numpy as np
from conftest import Line
from learner.devices import make_layout, share_out
from learner.learner import Learner
from learner.objectives.registry import make_objective
from learner.state import init_state
from learner.update import make_gradients, make_steps
from shared.plan import make_plan

assert len(jax.local_devices()) == {devices}
experiment = Line.experiment(algorithm={{"batch_size": 16, "windows_per_update": 32, "minibatches_per_update": 2}})
plan = make_plan(experiment, Line.spec)
windows = Line.windows(0, rows=plan.window_rows)

def close(one, other):
    for x, y in zip(jax.tree.leaves(jax.device_get(one)), jax.tree.leaves(jax.device_get(other)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())

objective = make_objective(experiment, "active", Line.spec)
state = jax.jit(init_state, static_argnums=0)(objective, jax.random.key(0))
steps = make_steps(objective, windows, plan, jax.random.key(1))
minibatch, key = steps.minibatch(steps.order[0]), steps.keys[0]
gradients = make_gradients(objective)
layout = make_layout()
shared_out = jax.device_put(minibatch, layout.split)
assert len(shared_out.state.sharding.device_set) == {devices}
on_all = jax.jit(gradients, in_shardings=(layout.replicated, layout.split, layout.replicated))
close(on_all(jax.device_put(state, layout.replicated), shared_out, key), jax.jit(gradients)(state, minibatch, key))
compiled = on_all.lower(state, shared_out, key).compile().as_text()
assert "all-gather" in compiled and "all-reduce" in compiled  # negatives of the whole minibatch, one gradient

whole = Learner(experiment, plan, Line.spec, "active")
alone = Learner(experiment, plan, Line.spec, "active", devices=tuple(jax.local_devices()[:1]))
whole.prepare()
compiled = []
jax.monitoring.register_event_duration_secs_listener(lambda event, _, **details: compiled.append((event, details)))
metrics = whole.update(share_out(windows))
assert not [found for found in compiled if "update_step" in str(found)], compiled
expected = alone.update(windows)
assert [found for found in compiled if "update_step" in str(found)]  # for one device
assert len(jax.tree.leaves(whole.state.actor)[0].sharding.device_set) == {devices}
for name, value in expected.items():
    if name != "update_seconds":
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
whole.resume(alone.state)
whole.update(share_out(windows))
assert whole.updates == 2

try:
    Learner(experiment, plan, Line.spec, "active", devices=tuple(jax.local_devices()[:3]))
except ValueError as error:
    print(error)
"""


@pytest.mark.processes
def test_four_devices_make_the_same_update_as_one() -> None:
    # A device that waits for the others occupies a thread, and may wait in several places at once. By default there
    # are as many threads as cores, so with more devices than cores the devices sometimes wait forever.
    flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_cpu_enable_concurrency_optimized_scheduler=false"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "NPROC": str(2 * DEVICES)}
    script = SCRIPT.format(folder=str(Path(__file__).parent), devices=DEVICES)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == (
        "algorithm.batch_size: 16 cannot be divided evenly among a learner's 3 devices; "
        "use 18, or give the learner fewer devices"
    )


def test_share_out_copies_windows() -> None:
    """The sampler decodes the next batch into the same arrays."""
    columns = Columns(np.zeros((4, 64, 16), np.float32), np.zeros((4, 64, 4), np.int32))
    shared_out = share_out(columns)
    for column in columns:
        column += 1
    assert not any(np.asarray(column).any() for column in shared_out)
