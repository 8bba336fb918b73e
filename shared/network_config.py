"""Sizes and switches of a learner's networks."""

from typing import Literal, NamedTuple

from pydantic import ValidationInfo, field_validator

from shared.values import Depth, Frozen, Size

BLOCK_DEPTH = 4  # hidden Dense layers in one residual block
PLAIN_DEPTHS = 1, 2  # hidden Dense layers of networks without residual blocks


class TrunkSize(NamedTuple):
    depth: int
    width: int


class NetworkConfig(Frozen):
    """Sizes of one learner's networks: its actor and the parts of its critic."""

    depth: Depth = 4
    """Hidden Dense layers of actor and critic, in residual blocks of 4 behind a stem layer, which is not counted.
    Networks of depth 1 and 2 are plain: this number of hidden layers in all, without a residual path."""
    width: Size = 256
    actor_depth: Depth | None = None
    """The actor's depth; none: `depth`."""
    actor_width: Size | None = None
    critic_depth: Depth | None = None
    """Depth from which the critic's parts follow, such as that of each of contrastive RL's encoders; none: `depth`."""
    critic_width: Size | None = None
    representation_size: Size = 64
    layer_norm: bool = True
    hyperspherical: bool = False
    """Hyperspherical normalisation (SimbaV2, arXiv 2502.15280) in place of layer norm: hidden activations, and the
    columns of hidden kernels after every gradient step, have norm 1. Observations are not normalised."""
    residual: bool = True
    activation: Literal["swish", "relu"] = "swish"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of the networks' products. tf32: where a GPU has it, factors are rounded to 10 bits (the reference's
    products there, and JAX's default). bfloat16: hidden layers. Parameters, residual connections and all losses are
    float32."""

    @field_validator("depth", "actor_depth", "critic_depth")
    @classmethod
    def _whole_blocks(cls, depth: int | None) -> int | None:
        if depth is None or depth in PLAIN_DEPTHS or (depth > 0 and depth % BLOCK_DEPTH == 0):
            return depth
        below = depth // BLOCK_DEPTH * BLOCK_DEPTH
        nearest = f"{below} or {below + BLOCK_DEPTH}" if below > 0 else f"1, 2 or {BLOCK_DEPTH}"
        raise ValueError(
            f"depth {depth} is not a positive multiple of {BLOCK_DEPTH} (residual blocks hold {BLOCK_DEPTH} layers), "
            f"nor 1 or 2 (plain networks); use {nearest}"
        )

    @field_validator("hyperspherical")
    @classmethod
    def _one_normalisation(cls, hyperspherical: bool, info: ValidationInfo) -> bool:
        if hyperspherical and not info.data.get("layer_norm", True):
            raise ValueError("it stands in the place of layer norm; leave layer_norm out")
        return hyperspherical

    @property
    def actor_trunk(self) -> TrunkSize:
        return TrunkSize(self.actor_depth or self.depth, self.actor_width or self.width)

    @property
    def critic_trunk(self) -> TrunkSize:
        return TrunkSize(self.critic_depth or self.depth, self.critic_width or self.width)

    @property
    def network(self) -> "NetworkConfig":
        """The sizes alone."""
        return NetworkConfig(**{name: getattr(self, name) for name in NetworkConfig.model_fields})
