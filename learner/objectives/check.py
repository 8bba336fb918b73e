"""Check that a user's objective does what `Objective` asks for. The check traces functions and compiles nothing."""

import inspect
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from learner.objectives.base import Objective, Trained
from shared.algorithm_config import AlgorithmConfig
from shared.envs.base import EnvSpec
from shared.network_config import NetworkConfig
from shared.own_code import explain
from shared.replay.codec import INT_COLUMNS, Columns, unpack

WINDOWS = 2  # traced windows
RANKED = (2, 3)  # leading axes of the actions that `score` gets


class Misfit(ValueError):
    """An objective cannot be trained. The message is one line: which method is wrong, and what the method must do."""


@lru_cache  # learners, console and summary make an objective many times
def make_own(kind: type[Objective], network: NetworkConfig, algorithm: AlgorithmConfig, spec: EnvSpec) -> Objective:
    """Returns the objective of the user's class `kind`. Raises Misfit."""
    missing = set(getattr(kind, "__abstractmethods__", ()))
    if "critic" in kind.PARTS and kind.score is Objective.score:
        missing.add("score")
    if missing:
        raise Misfit("lacks " + ", ".join(f"{name} ({_summary(name)})" for name in sorted(missing)))
    try:
        objective = kind(network, algorithm, spec)
        hash(objective)
        _check(objective)
    except Misfit:
        raise
    except (Exception, SystemExit) as error:
        raise Misfit(explain(error, kind)) from error
    return objective


def _summary(name: str) -> str:
    """Returns what a method of `Objective` does, in one line without a full stop."""
    return str(inspect.getdoc(getattr(Objective, name))).partition("\n")[0].rstrip(".")


def _check(objective: Objective) -> None:
    if unknown := set(objective.PARTS) - set(Objective.PARTS):
        raise Misfit(f"PARTS: {', '.join(sorted(unknown))} is none of {', '.join(Objective.PARTS)}")
    key, spec = _key(), objective.spec
    networks = jax.eval_shape(objective.init, key)
    if not isinstance(networks, tuple) or len(networks) != 2:
        raise Misfit("init: must return two values, the parameters of actor and critic")
    state, goal = _floats(spec.state_size), _floats(spec.goal_size)
    if _shapes(networks[0]) != _shapes(jax.eval_shape(objective.actor.init, key, state, goal)):
        raise Misfit("init: its first value must be parameters of the network self.actor, which collectors act with")
    trained = Trained(*networks, log_alpha=_floats())
    minibatch = _check_label(objective)
    targets = jax.eval_shape(objective.init_targets, trained.critic)
    _check_loss(objective, trained, targets, minibatch)
    if _shapes(jax.eval_shape(objective.next_targets, targets, trained.critic)) != _shapes(targets):
        raise Misfit("next_targets: must return what init_targets returns, in structure, shapes and types")
    if "critic" in objective.PARTS:
        ranked = [_floats(*RANKED, size) for size in (spec.state_size, objective.action_size, spec.goal_size)]
        score = jax.eval_shape(objective.score, trained.critic, *ranked)
        if _shapes(score) != _shapes(_floats(*RANKED)):
            raise Misfit(
                f"score: must return one number for each action, {_text(_floats(*RANKED))} here, not {_text(score)}"
            )
    if not isinstance(objective.critic_layers, int):
        raise Misfit(f"critic_layers: must be a whole number, not {objective.critic_layers!r}; is it a property?")


def _check_label(objective: Objective) -> Any:
    """Returns the shapes of a minibatch. Raises Misfit if `label` does not return labelled rows."""
    spec = objective.spec
    length = spec.episode_length
    shape = (WINDOWS, length)
    made = jax.eval_shape(lambda: Columns(jnp.zeros((*shape, spec.row_floats)), jnp.zeros((*shape, INT_COLUMNS), int)))
    rows = jax.eval_shape(partial(unpack, state_size=spec.state_size, action_size=spec.action_size), made)
    labelled = jax.eval_shape(objective.label, rows, _key())
    if not hasattr(labelled, "_asdict"):
        raise Misfit(f"label: must return a NamedTuple of arrays, not {type(labelled).__name__}")
    fields = {name: {array.shape[:2] for array in jax.tree.leaves(part)} for name, part in labelled._asdict().items()}
    leading = set().union(*fields.values())
    if leading not in ({shape}, {(WINDOWS, length - 1)}):
        found = ", ".join(f"{name} {start}" for name, starts in fields.items() for start in sorted(starts))
        raise Misfit(
            f"label: all arrays must begin with [windows, rows], {shape} or ({WINDOWS}, {length - 1}) here; "
            f"found: {found or 'none'}"
        )
    batch = objective.algorithm.batch_size
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[2:]), x.dtype), labelled)


def _check_loss(objective: Objective, trained: Trained, targets: Any, minibatch: Any) -> None:
    made = jax.eval_shape(objective.loss, trained, targets, minibatch, _key())
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[1], dict):
        raise Misfit("loss: must return two values, the sum of all losses and the metrics, a dict")
    loss, metrics = made
    for name, value in {"its first value": loss, **metrics}.items():
        if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            raise Misfit(f"loss: {name} must be a single float, not {_text(value)}")
    if missing := [f"{part}/loss" for part in objective.PARTS if f"{part}/loss" not in metrics]:
        raise Misfit(f"loss: metrics lack {', '.join(missing)}; PARTS names the parts that have a loss")


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _text(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
