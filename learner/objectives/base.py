"""Interface of objectives: what the update, which is written once, needs to know of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from learner.optimisers import Optimisers, make_optimisers
from shared.algorithm_config import AlgorithmConfig
from shared.envs.base import EnvSpec
from shared.network_config import NetworkConfig
from shared.networks import Actor, make_actor, parameter_count
from shared.types import Array, Metrics, Params, Rows


class Trained(NamedTuple):
    """Everything that a gradient step changes, or the gradient of it.

    `critic`: any pytree; `()` without a critic. `log_alpha` `[]`: log of the entropy coefficient.
    """

    actor: Params
    critic: Any
    log_alpha: Array


@dataclass(frozen=True)
class Objective(ABC):
    """Aim of one learner: networks, labels, losses. Equal values are one objective; its update is compiled once.

    Attributes:
        network: sizes of the learner's networks.
        algorithm: the learner's constants.
        spec: sizes of the environment.
    """

    network: NetworkConfig
    algorithm: AlgorithmConfig
    spec: EnvSpec

    PARTS: ClassVar[tuple[str, ...]] = ("actor", "critic", "alpha")
    """Parts of `Trained` that have a loss, which is the metric `<part>/loss`."""
    NEEDS_ENDS: ClassVar[bool] = False
    """True if labels depend on how episodes end, which old recordings do not say."""

    @abstractmethod
    def init(self, key: Array) -> tuple[Params, Any]:
        """Returns initial parameters of actor and critic. `key` is consumed."""

    @abstractmethod
    def label(self, rows: Rows, key: Array) -> Any:
        """Returns what minibatches hold: a NamedTuple of arrays `[B, R, ...]` for `rows` `[B, W, ...]`.

        R is the number of rows of a window that can be trained on, W or W - 1. `key` is consumed.
        """

    @abstractmethod
    def loss(self, trained: Trained, targets: Any, minibatch: Any, key: Array) -> tuple[jax.Array, Metrics]:
        """Returns the sum of the losses of all parts, each with a gradient for its own parameters alone.

        `minibatch`: entries of `label`'s arrays, `[B, ...]`. The critic in the actor's loss is the one before this
        step. The metrics hold `<part>/loss` for each part. `key` is consumed.
        """

    def score(self, critic: Any, state: Array, action: Array, goal: Array) -> jax.Array:
        """Returns `[...]`, by which actions `[..., H * A]` in a state are ranked: larger is better.

        An objective with a critic defines it. Raises TypeError for one without; `best_of` is refused before that.
        """
        raise TypeError(f"{type(self).__name__}.score: nothing ranks actions; define it if there is a critic")

    @property
    @abstractmethod
    def critic_layers(self) -> int:
        """Sum of the depths of the trunks between the critic's inputs and its heads; 0 without a critic."""

    def init_targets(self, critic: Any) -> Any:
        """Returns the target networks of a new learner: any pytree, by default none."""
        return ()

    def next_targets(self, targets: Any, critic: Any) -> Any:
        """Returns the target networks after a gradient step that led to `critic`."""
        return targets

    @cached_property
    def actor(self) -> Actor:
        return make_actor(self.network, self.spec, self.algorithm.chunk)

    @cached_property
    def optimisers(self) -> Optimisers:
        return make_optimisers(self.algorithm)

    @property
    def action_size(self) -> int:
        """Numbers that a policy decides at once: those of all actions of a chunk."""
        return self.algorithm.chunk * self.spec.action_size

    @property
    def target_entropy(self) -> float:
        return self.algorithm.target_entropy_per_action * self.action_size

    @property
    def watched(self) -> tuple[str, ...]:
        """Quantities that must be finite, or the gradient step is skipped; a norm is finite if all its gradient is."""
        networks = [part for part in self.PARTS if part != "alpha"]
        return (
            *(f"{part}/loss" for part in self.PARTS),
            *(f"{part}/gradient_norm" for part in networks),
            "alpha/gradient",
        )

    def step_flops(self, batch: int) -> float:
        """Returns the multiplications and additions in matrix products of one gradient step on `batch` rows.

        A network costs 2 B for each kernel entry forwards, and as much again for its inputs' gradient and for its
        kernels' gradient. The critic runs a second time on the actor's own actions, without the kernels' gradient.
        """
        actor, critic = self.shapes()
        return 2.0 * batch * (3 * kernel_entries(actor) + 5 * kernel_entries(critic))

    @lru_cache  # noqa: B019 - equal values share it; the console, the run directory and the summary ask for the same
    def shapes(self) -> tuple[Params, Any]:
        """Returns the shapes of the parameters of actor and critic."""
        return jax.eval_shape(self.init, jax.random.key(0))

    @property
    def size(self) -> int:
        """Number of parameters of actor and critic together."""
        return parameter_count(self.shapes())

    @property
    def targets_size(self) -> int:
        """Number of parameters of the target networks."""
        return parameter_count(jax.eval_shape(self.init_targets, self.shapes()[1]))


def kernel_entries(params: Params) -> int:
    """Returns the number of entries of all kernels."""
    leaves: list[tuple[Any, Any]] = jax.tree_util.tree_flatten_with_path(params)[0]
    return sum(leaf.size for path, leaf in leaves if getattr(path[-1], "key", "") == "kernel")


def zeros_of(*sizes: int) -> list[jax.Array]:
    """Returns a vector of zeros of each size: inputs with which networks are initialised."""
    return [jnp.zeros(size) for size in sizes]
