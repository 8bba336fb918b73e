"""Faults that the tests must notice: small, plausible edits of the product, each with the tests that should fail.

`test_faults.py` checks that every fault still applies; `run.py` applies the faults one at a time and prints which test
noticed each fault.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """Replacement of `old`, which `file` contains once, by `new`. `tests`: expected failures, relative to `tests/`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def area(self) -> str:
        return self.name.partition(": ")[0]


FAULTS = (
    # --- losses ---
    Fault(
        "losses: InfoNCE without its partition function",
        "learner/losses.py",
        "mean_over(jax.nn.logsumexp(energy, axis=1) - jnp.diagonal(energy), valid)",
        "mean_over(-jnp.diagonal(energy), valid)",
        ("learner/test_losses.py",),
    ),
    Fault(
        "losses: positives from the matmul",
        "learner/losses.py",
        "return jnp.where(jnp.eye(matrix.shape[0], dtype=bool), PAIR_ENERGIES[name](phi, psi)[:, None], matrix)",
        "return matrix",
        ("learner/test_losses.py",),
    ),
    Fault(
        "losses: binary NCE averages its negatives over all pairs",
        "learner/losses.py",
        "jnp.sum(not_real) / (batch * (batch - 1))",
        "jnp.sum(not_real) / (batch * batch)",
        ("learner/test_losses.py",),
    ),
    Fault(
        "losses: entropy target with the wrong sign",
        "learner/losses.py",
        "jax.lax.stop_gradient(-log_prob - target_entropy)",
        "jax.lax.stop_gradient(-log_prob + target_entropy)",
        ("learner/test_losses.py", "learner/test_update.py"),
    ),
    Fault(
        "losses: the actor loss trains the critic, too",
        "learner/objectives/contrastive.py",
        "fixed = jax.lax.stop_gradient(critic.state_action)",
        "fixed = critic.state_action",
        ("learner/test_update.py", "learner/test_contrastive_path.py"),
    ),
    Fault(
        "losses: a layer norm's gradient without its mean",
        "shared/networks.py",
        "d_x = reciprocal * (d_normal - jnp.mean(d_normal, axis=-1, keepdims=True) - normal * projection)",
        "d_x = reciprocal * (d_normal - normal * projection)",
        ("shared/test_networks.py",),
    ),
    # --- the update ---
    Fault(
        "update: the same key for every gradient step",
        "learner/update.py",
        "return Steps(labelled, order, jax.random.split(steps_key, plan.minibatches_per_update), key)",
        "return Steps(labelled, order, jnp.stack([steps_key] * plan.minibatches_per_update), key)",
        ("learner/test_update.py", "learner/test_guard.py"),
    ),
    Fault(
        "update: the learner's key is not advanced",
        "learner/update.py",
        "return state._replace(key=steps.key, updates=state.updates + 1), metrics",
        "return state._replace(updates=state.updates + 1), metrics",
        ("learner/test_update.py", "learner/test_learner.py"),
    ),
    Fault(
        "update: means over finite steps are not rescaled",
        "learner/update.py",
        "scale = len(finite) / jnp.sum(finite)",
        "scale = 1.0",
        ("learner/test_update.py", "learner/test_guard.py"),
    ),
    # --- relabelling ---
    Fault(
        "relabel: goals cross the end of an episode",
        "learner/relabel.py",
        "episode[:, 1:] != episode[:, :-1]",
        "episode[:, 1:] < episode[:, :-1]",
        ("learner/test_relabel.py",),
    ),
    Fault(
        "relabel: the next row is never the goal",
        "learner/relabel.py",
        "offset = 1 + jnp.floor(",
        "offset = 2 + jnp.floor(",
        ("learner/test_relabel.py",),
    ),
    Fault(
        "relabel: the last of T starts of a crop is never drawn",
        "learner/relabel.py",
        "(rows.episode.shape[0],), 0, max_offset + 1)",
        "(rows.episode.shape[0],), 0, max_offset)",
        ("learner/test_relabel.py",),
    ),
    Fault(
        "relabel: goals use the square of the discount",
        "learner/relabel.py",
        "log_discount = jnp.log(discount)",
        "log_discount = 2 * jnp.log(discount)",
        ("learner/test_relabel.py",),
    ),
    # --- rollout and collector ---
    Fault(
        "rollout: episodes are truncated one step late",
        "collector/rollout.py",
        "state.episode_step + 1 >= spec.episode_length",
        "state.episode_step >= spec.episode_length",
        ("collector",),
    ),
    Fault(
        "rollout: the state after the step is stored with its action",
        "collector/rollout.py",
        "                state=state.env.state,\n                action=action,",
        "                state=after.state,\n                action=action,",
        ("collector",),
    ),
    Fault(
        "collector: the chunk of a broken environment is kept",
        "collector/collector.py",
        "columns = _void(columns, jnp.any(made.broken, axis=0))",
        "columns = _void(columns, jnp.all(made.broken, axis=0))",
        ("collector",),
    ),
    Fault(
        "collector: a broken environment does not end the run",
        "collector/collector.py",
        "            if not self.done:\n                self._check(collected)\n",
        "",
        ("collector", "deploy/run/test_broken_env.py"),
    ),
    Fault(
        "collector: windows lost to restarts count as lost to breaks",
        "collector/breaks.py",
        "incarnations = max(position.windows.number + 2 - position.unrolls, 1)",
        "incarnations = 1",
        ("collector/test_breaks.py",),
    ),
    Fault(
        "evaluator: later episodes count as well",
        "collector/evaluator.py",
        "first = ended == 0",
        "first = ended >= 0",
        ("collector",),
    ),
    # --- the limiter's arithmetic and the plan ---
    Fault(
        "limiter: prefill may be below the error buffer",
        "shared/plan.py",
        "max(prefill_unrolls * environments, math.ceil(error_buffer / samples_per_insert))",
        "prefill_unrolls * environments",
        ("shared/test_plan.py",),
    ),
    Fault(
        "limiter: an error buffer of one unroll",
        "shared/plan.py",
        "error_buffer = 2 * math.ceil(environments * samples_per_insert) + 2 * algorithm.windows_per_update",
        "error_buffer = math.ceil(environments * samples_per_insert) + algorithm.windows_per_update",
        ("shared/test_plan.py",),
    ),
    Fault(
        "limiter: a window has one chunk too few",
        "shared/plan.py",
        "chunks = math.ceil((window + steps - 1) / steps)",
        "chunks = math.ceil(window / steps)",
        ("shared/test_plan.py",),
    ),
    Fault(
        "limiter: earlier samples are not counted",
        "deploy/replay/server/process.py",
        "middle = (self.min_size_to_sample - self.inserted) * ratio + self.sampled",
        "middle = (self.min_size_to_sample - self.inserted) * ratio",
        ("deploy/replay/server/test_process.py",),
    ),
    Fault(
        "limiter: free pace limits every learner",
        "deploy/replay/service.py",
        'return experiment.replay.pace == "lockstep" or learner == ACTIVE',
        "return True",
        ("deploy/replay/test_service.py",),
    ),
    # --- insert client ---
    Fault(
        "insert: the chunk before the window is not kept",
        "shared/replay/insert.py",
        "np.maximum(len(keys) - run, 1)[:, None]",
        "np.maximum(len(keys) - run, 2)[:, None]",
        ("shared/replay",),
    ),
    Fault(
        "insert: one message too many in flight",
        "shared/replay/insert.py",
        "MESSAGES_IN_FLIGHT = 2",
        "MESSAGES_IN_FLIGHT = 3",
        ("shared/replay",),
    ),
    Fault(
        "insert: an unroll is done when the first table has confirmed it",
        "shared/replay/insert.py",
        "and not self._in_flight[0].unconfirmed:",
        "and len(set(self._in_flight[0].unconfirmed.values())) < len(self._tables):",
        ("shared/replay",),
    ),
    Fault(
        "insert: windows span a gap in the numbers of unrolls",
        "shared/replay/windows.py",
        "before = self.run if number == self.number + 1 else np.zeros_like(self.run)",
        "before = self.run",
        ("shared/replay", "shared/test_shard.py"),
    ),
    Fault(
        "insert: a message without a chunk is sent",
        "shared/replay/insert.py",
        '        if not there.size:\n            return b""\n',
        "",
        ("shared/replay/test_clients.py", "deploy/run/test_broken_env.py"),
    ),
    Fault(
        "insert: two sources use the same keys",
        "shared/replay/insert.py",
        "return keys.astype(np.uint64) + np.uint64(self.source << _SOURCE_BITS)",
        "return keys.astype(np.uint64)",
        ("shared/replay",),
    ),
    Fault(
        "insert: the wait for a dead server never ends",
        "shared/replay/insert.py",
        "            if not self._closed:\n                self._error = error\n",
        "            if self._closed:\n                self._error = error\n",
        ("shared/replay",),
    ),
    # --- sample client ---
    Fault(
        "sample: all windows of a partial batch are requested again",
        "shared/replay/sample.py",
        "stream.ask(self._num_windows - (self._filled if number == 0 else 0))",
        "stream.ask(self._num_windows)",
        ("shared/replay",),
    ),
    Fault(
        "sample: a slice's offset is ignored",
        "shared/replay/wire.py",
        "out[...] = whole[piece.offset : piece.offset + piece.length]",
        "out[...] = whole[: piece.length]",
        ("shared/replay",),
    ),
    Fault(
        "sample: three batches are requested at a time",
        "shared/replay/sample.py",
        "REQUESTS_OUTSTANDING = 2",
        "REQUESTS_OUTSTANDING = 3",
        ("shared/replay/test_queues.py",),
    ),
    Fault(
        "sample: batches that were decoded before a server died are lost",
        "shared/replay/reconnecting.py",
        "                    self._left = self._sampler.leave()\n",
        "                    self._sampler.leave()\n",
        ("shared/replay/test_reconnecting.py",),
    ),
    Fault(
        "sample: a batch is put on the device without a copy",
        "learner/devices.py",
        "columns = jax.tree.map(np.array, columns)",
        "columns = jax.tree.map(np.asarray, columns)",
        ("learner",),
    ),
    Fault(
        "refill: a new server gets one unroll too few",
        "shared/replay/reconnecting.py",
        "self._refill_from = max(newest - self._plan.stored_unrolls + 1, 0)",
        "self._refill_from = max(newest - self._plan.stored_unrolls + 2, 0)",
        ("shared/replay",),
    ),
    # --- supervision ---
    Fault(
        "supervision: one restart more than the limit allows",
        "deploy/run/supervisor.py",
        "if len(restarts) >= allowed:",
        "if len(restarts) > allowed:",
        (
            "deploy/run/test_supervisor.py",
            "deploy/run/test_launch.py::test_without_restarts_a_fault_ends_the_run_and_the_error_names_the_role",
        ),
    ),
    Fault(
        "supervision: a hanging role is not restarted",
        "deploy/run/stall.py",
        "    if hanging:\n",
        "    if len(hanging) > 1:\n",
        ("deploy/run/test_supervisor.py",),
    ),
    Fault(
        "supervision: a role that does not answer is not noticed",
        "deploy/run/supervisor.py",
        "if now - watched.answered > self._limits.heartbeat_seconds:",
        "if now - watched.answered > 1000 * self._limits.heartbeat_seconds:",
        (
            "deploy/run/test_supervisor.py",
            "deploy/run/test_launch.py::test_without_restarts_a_fault_ends_the_run_and_the_error_names_the_role",
        ),
    ),
    Fault(
        "supervision: a collector's next incarnation gets no replay server",
        "deploy/run/supervisor.py",
        "        self._replay.attach(role, self._roles[role].actor)\n",
        "",
        (
            "deploy/run/test_supervisor.py",
            "deploy/run/test_launch.py::test_a_run_outlives_a_hang_and_the_deaths_of_a_collector_a_learner_and_the_replay_server",
        ),
    ),
    Fault(
        "supervision: a killed driver leaves its processes",
        "deploy/scheduling/reaper.py",
        "            process.kill()\n",
        "            process.is_running()\n",
        ("deploy/run/test_launch.py::test_nothing_outlives_a_killed_driver",),
    ),
    Fault(
        "supervision: a waiting role ends the run while the disk is full",
        "deploy/run/stall.py",
        'return report.waiting_for in ("", DISK_SPACE) or report.idle_seconds <= limit_s',
        'return report.waiting_for == "" or report.idle_seconds <= limit_s',
        ("deploy/run/test_supervisor.py",),
    ),
    # --- snapshots and resuming ---
    Fault(
        "snapshots: sources do not wait for the learners' parts",
        "deploy/run/snapshot_taker.py",
        "if not snapshots.sealed(run_dir, updates, learner_roles(self._record.experiment)):\n            return False",
        "if updates > min(self._record.updates(name) for name in self._learners):\n            return False",
        ("deploy/run/test_snapshot_taker.py",),
    ),
    Fault(
        "snapshots: checksums are not compared",
        "deploy/recovery/snapshots.py",
        "        if _sha256(folder / name) != expected:\n",
        "        if not _sha256(folder / name):\n",
        ("deploy/recovery/test_resume.py",),
    ),
    Fault(
        "snapshots: the oldest are kept instead of the newest",
        "deploy/recovery/snapshots.py",
        "newest = sorted(whole)[-keep:]",
        "newest = sorted(whole)[:keep]",
        ("deploy/recovery/test_resume.py",),
    ),
    Fault(
        "snapshots: metrics rows after the snapshot stay",
        "shared/metrics.py",
        'row.get("index", -1) > marker[REWOUND_TO]',
        "False",
        ("deploy/recovery/test_resume.py",),
    ),
    Fault(
        "snapshots: a resumed collector draws new environments",
        "collector/collector.py",
        "        self.state = jax.device_put(state)\n",
        "        jax.device_put(state)\n",
        ("deploy/recovery/test_resume.py",),
    ),
    Fault(
        "snapshots: the ring is filled from one unroll too late",
        "deploy/run/in_process.py",
        "first = max(source.position.windows.number - 2 * self._plan.stored_unrolls, 0)",
        "first = max(source.position.windows.number - self._plan.stored_unrolls + 3, 0)",
        ("deploy/recovery/test_resume.py",),
    ),
    Fault(
        "snapshots: a run resumes with another batch size",
        "deploy/recovery/resume.py",
        'HARMLESS = ("supervision",',
        'HARMLESS = ("algorithm", "supervision",',
        ("deploy/recovery/test_resume.py",),
    ),
    # --- streams ---
    Fault(
        "streams: an incomplete part counts as finished",
        "shared/stream/salvage.py",
        "    left.unlink()\n",
        "    left.rename(folder / part_name(first))\n",
        ("shared/test_shard.py", "shared/test_stream.py"),
    ),
    Fault(
        "streams: a flipped byte is read",
        "shared/stream/read.py",
        "if hashlib.sha256(data).hexdigest() != part.sha256:",
        "if not part.sha256:",
        ("shared/test_stream.py",),
    ),
    Fault(
        "streams: a tail loses the unroll that replay still holds",
        "shared/stream/write.py",
        "while parts and parts[gone].unrolls <= spare:",
        "while parts and parts[gone].unrolls <= spare + 1:",
        ("shared/test_shard.py",),
    ),
    Fault(
        "streams: two writers may open one shard",
        "shared/stream/files.py",
        "        lock.acquire(timeout=wait_s)\n",
        "        pass\n",
        ("shared/test_shard.py", "shared/test_stream.py"),
    ),
    Fault(
        "streams: the stream of another environment is accepted",
        "shared/stream/read.py",
        "if (asked := getattr(wanted, field)) != (recorded := getattr(held, field))",
        "if (asked := getattr(wanted, field)) is (recorded := getattr(held, field)) is None",
        ("shared/test_stream.py",),
    ),
    # --- matrix ---
    Fault(
        "matrix: a passive learner has the collector learner's seed",
        "deploy/matrix/expand.py",
        '{**network, "depth": each, "seed": 1}',
        '{**network, "depth": each, "seed": 0}',
        ("deploy/matrix",),
    ),
    Fault(
        "matrix: a failed run counts as done",
        "deploy/run/child.py",
        "    if status == 0:\n",
        "    if status in (0, 1):\n",
        ("deploy/run/test_child.py", "deploy/matrix"),
    ),
    Fault(
        "matrix: a done run with other settings counts as this run",
        "deploy/matrix/folder.py",
        "return held is not None and _is_finished(run_dir) and not changed_results(held, run.experiment)",
        "return held is not None and _is_finished(run_dir)",
        ("deploy/matrix",),
    ),
    Fault(
        "matrix: collector learners are cells",
        "deploy/matrix/results.py",
        "(active if name == ACTIVE else cells).append(",
        "cells.append(",
        ("deploy/matrix", "deploy/report"),
    ),
    Fault(
        "matrix: one running run is left out of the capacity check",
        "deploy/matrix/capacity.py",
        "runs = enumerate((wanted, *running))",
        "runs = enumerate((wanted, *running[1:]))",
        ("deploy/matrix",),
    ),
    # --- report ---
    Fault(
        "report: differences pair unequal seeds",
        "deploy/report/statistics.py",
        "return paired_difference(ours[common], theirs[common]) if",
        "return paired_difference(ours[common], np.sort(theirs[common])) if",
        ("deploy/report",),
    ),
    Fault(
        "report: an interval covers 90 % instead of 95 %",
        "deploy/report/statistics.py",
        "ENDS = (0.025, 0.975)",
        "ENDS = (0.05, 0.95)",
        ("deploy/report",),
    ),
    Fault(
        "report: the gain by exploring is computed over learner depths",
        "deploy/report/analyse.py",
        "wanted.append((EXPLORING, meaning, final[-1].mean(axis=0), final[0].mean(axis=0)))",
        "wanted.append((EXPLORING, meaning, final[:, -1].mean(axis=0), final[:, 0].mean(axis=0)))",
        ("deploy/report",),
    ),
    Fault(
        "report: the largest step is always critical",
        "deploy/report/statistics.py",
        "if intervals[largest].low > max(1.0, *others) else None",
        "if intervals[largest].low > 0 else None",
        ("deploy/report",),
    ),
    Fault(
        "report: wall clock includes the time between a run's incarnations",
        "deploy/run/summary.py",
        'started, elapsed = resumed["time"], resumed["seconds"]',
        'elapsed = resumed["seconds"]',
        ("deploy/run/test_summary.py",),
    ),
    Fault(
        "report: coverage has the rows of one collector at a time",
        "deploy/report/read.py",
        "        newest[index] = row\n",
        "        newest = {index: row}\n",
        ("deploy/report/test_read.py",),
    ),
    Fault(
        "report: a learner without its last evaluation counts as whole",
        "deploy/report/read.py",
        'if curve[-1]["updates"] < planned:',
        "if False:",
        ("deploy/report/test_read.py",),
    ),
    # --- configuration ---
    Fault(
        "configuration: a duplicate key is accepted",
        "shared/strict_yaml.py",
        "if (key.tag, key.value) in seen:",
        "if (key.tag, key.value, key) in seen:",
        ("deploy/cli/test_malformed.py", "shared/test_config.py"),
    ),
    Fault(
        "configuration: 010 is read as 8",
        "shared/strict_yaml.py",
        'if kind in ("int", "float") and not (',
        'if kind == "float" and not (',
        ("deploy/cli/test_malformed.py",),
    ),
    Fault(
        "configuration: a depth of half a block is accepted",
        "shared/network_config.py",
        "if depth is None or depth in PLAIN_DEPTHS or (depth > 0 and depth % BLOCK_DEPTH == 0):",
        "if depth is None or depth > 0:",
        ("deploy/cli/test_malformed.py", "shared/test_config.py"),
    ),
    Fault(
        "configuration: an unknown key is ignored",
        "shared/values.py",
        'extra="forbid"',
        'extra="ignore"',
        ("deploy/cli/test_malformed.py", "shared/test_config.py"),
    ),
    Fault(
        "configuration: true is accepted as a number",
        "shared/values.py",
        "    if isinstance(value, bool):\n",
        "    if isinstance(value, bytes):\n",
        ("deploy/cli/test_malformed.py", "shared/test_config.py"),
    ),
    Fault(
        "configuration: an option that is not given is set to its default",
        "deploy/cli/overrides.py",
        "                values[name] = present\n",
        "                values[name] = info.default\n",
        ("deploy/cli/test_malformed.py", "deploy/scheduling/test_placement.py"),
    ),
    # --- networks, policies, replay without a server ---
    Fault(
        "networks: a block has no residual connection",
        "shared/networks.py",
        "if not self.residual:",
        "if True:",
        ("shared/test_networks.py",),
    ),
    Fault(
        "policy: log probabilities are not corrected for the tanh",
        "shared/policy.py",
        "return action, jnp.sum(gaussian - jnp.log(1 - action**2 + 1e-6), axis=-1)",
        "return action, jnp.sum(gaussian, axis=-1)",
        ("shared/test_policy.py",),
    ),
    Fault(
        "ring: the oldest windows are never sampled",
        "shared/replay/ring.py",
        "complete = self._complete[:, chunks - 1 :]  # those",
        "complete = self._complete[:, chunks:]  # those",
        ("shared/replay",),
    ),
    # --- placement and metrics ---
    Fault(
        "placement: a role takes only half of its share of a GPU",
        "deploy/scheduling/placement.py",
        "            self.gpus[gpu] -= share\n",
        "            self.gpus[gpu] -= share / 2\n",
        ("deploy/scheduling/test_placement.py",),
    ),
    Fault(
        "metrics: a wait within another one counts twice",
        "shared/metrics.py",
        "self._waits[what] += max(seconds - self._waited_within, 0.0)",
        "self._waits[what] += seconds",
        ("shared/test_metrics.py",),
    ),
    Fault(
        "metrics: rates include the first update",
        "deploy/run/summary.py",
        '_mean(_without_compilation(rows), "update_seconds")',
        '_mean(rows, "update_seconds")',
        ("deploy/run/test_summary.py",),
    ),
    Fault(
        "metrics: half a line stays in the file",
        "shared/files.py",
        "if not _ends_with_line(path):",
        "if False:",
        ("shared/test_files.py",),
    ),
    Fault(
        "metrics: half a row on a full disk is no error",
        "shared/files.py",
        "        while rest:  # a second",
        "        if rest:  # a second",
        ("shared/test_files.py",),
    ),
)
