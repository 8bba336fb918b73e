"""What `fathom bench` does. Each part's imports come late: most need neither Ray nor Reverb."""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deploy.bench.saved import check_save, compare, describe_machine, differences, load, save
from deploy.output import complain, print_rows, show
from deploy.record import RunFailed
from deploy.replay_server.provision import ProvisionError
from shared.config import ConfigError
from shared.replay.errors import ReplayError

EXIT_FAILED = 1

Result = dict[str, Any]
Measure = Callable[[], Result]


class Outputs(NamedTuple):
    """Where a result goes besides the console; `as_json`: there as one object."""

    as_json: bool = False
    save: Path | None = None
    compare: Path | None = None


def bench(name: str, measure: Measure, outputs: Outputs) -> int:
    """Measures and shows, saves and compares what came out. Files that cannot serve are refused before, if possible."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell made us ignore Ctrl-C
    if outputs.save:
        check_save(outputs.save)
    before = load(outputs.compare, name) if outputs.compare else None
    try:
        result = measure()
    except (RunFailed, ReplayError, ProvisionError) as error:  # one line each, with cause and remedy
        complain(str(error))
        return EXIT_FAILED
    if outputs.save is None and before is None:
        _show(result, outputs.as_json)
        return 0
    machine = describe_machine(result.get("device"))
    if outputs.save:
        save(outputs.save, name, machine, result)
    if outputs.compare is None or before is None:
        _show(result, outputs.as_json)
        return 0
    try:
        unlike = differences(outputs.compare, before["machine"], machine)
        rows = compare(outputs.compare, before["result"], result)
    except ConfigError:  # which must not cost the measurement
        _show(result, outputs.as_json)
        raise
    if outputs.as_json:
        print(json.dumps({**result, "compared": rows}))
    else:
        _show(result, as_json=False)
        print_rows(rows)
    if unlike:
        _warn(f"--compare: {outputs.compare} is from another machine: {'; '.join(unlike)}")
    return 0


def _show(result: Result, as_json: bool) -> None:
    """As `show`; a row of many figures is a column, and figures of the whole come below."""
    if as_json or "rows" not in result:
        show(result, as_json)
        return
    (first, *names), rows = result["rows"][0], result["rows"]
    print_rows([{first: name} | {str(row[first]): row[name] for row in rows} for name in names])
    whole = {name: value for name, value in result.items() if name not in ("rows", "details")}
    if whole:
        show(whole, as_json=False)


def _warn(text: str) -> None:
    print(f"fathom: {text}", file=sys.stderr)


def update(
    depths: Sequence[int],
    batch: int,
    width: int,
    precision: str,
    against: str | None,
    repeats: int,
    seconds: float,
) -> Result:
    from deploy.bench.update import bench_update

    _check_repeats(repeats)
    return bench_update(list(depths), batch, width, precision, against, repeats, seconds)


def rollout(env_id: str, num_envs: int, depth: int, width: int, repeats: int, with_replay: bool) -> Result:
    from deploy.bench.rollout import bench_rollout
    from deploy.commands import named_env

    env = named_env(env_id)
    _check_repeats(repeats)
    return bench_rollout(env_id, env, num_envs, depth, width, with_replay, repeats)


def replay(against_stock: bool, repeats: int, unrolls: int, batches: int) -> Result:
    from deploy.bench.replay import bench_replay

    _check_repeats(repeats)
    return bench_replay(against_stock, repeats, unrolls, batches, say=_say)


def weights(depth: int, width: int, repeats: int) -> Result:
    from deploy.commands import prepare_jax

    _check_repeats(repeats)
    prepare_jax(cpu_only=True)  # a GPU is the two processes' own
    from deploy.bench.weights import bench_weights

    return bench_weights(depth, width, repeats, _say)


def end_to_end(experiment: Path | None, repeats: int, quick: bool) -> Result:
    from deploy.bench.end_to_end import bench_end_to_end

    _check_repeats(repeats)
    return bench_end_to_end(experiment, quick, repeats, _say)


def scaling(
    collectors: Sequence[int],
    learners: Sequence[int],
    seconds: float,
    environments: int,
    state_size: int,
    action_size: int,
    samples_per_insert: float,
) -> Result:
    from deploy.bench.scaling import bench_scaling

    return bench_scaling(
        collectors,
        learners,
        seconds=seconds,
        environments=environments,
        state_size=state_size,
        action_size=action_size,
        samples_per_insert=samples_per_insert,
        say=_say,
    )


def _check_repeats(repeats: int) -> None:
    if repeats < 1:
        raise ConfigError(f"--repeats: {repeats} is not positive; use at least 1")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
