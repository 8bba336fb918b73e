import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared import checkpoint
from tests.trees import assert_equal


def state(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
        "nested": (jnp.asarray(rng.integers(9, size=2), jnp.int32), {"log_alpha": jnp.float32(np.pi + seed)}),
        "key": jax.random.key(seed),
    }


def test_a_state_is_restored_equal_to_the_bit(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a" / "b", state(3))
    restored = checkpoint.load(tmp_path / "a" / "b", like=state(0))
    assert_equal(restored, state(3))
    assert not any(leaf.committed for leaf in jax.tree.leaves(restored) if isinstance(leaf, jax.Array))
    assert jax.random.normal(restored["key"]) == jax.random.normal(jax.random.key(3))


def test_shapes_are_enough_to_load(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a", state(3))
    assert_equal(checkpoint.load(tmp_path / "a", like=jax.eval_shape(lambda: state(0))), state(3))


def test_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a", state(1))
    checkpoint.save(tmp_path / "a", state(2))
    assert_equal(checkpoint.load(tmp_path / "a", like=state(0)), state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_relative_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.save(Path("a"), state(1))
    assert_equal(checkpoint.load(Path("a"), like=state(0)), state(1))


@pytest.mark.parametrize("name", ["[x]", "[/b]", "a*", "a?", "a**b", "[", "a b:'c'$d"])
def test_folders_may_have_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name / "checkpoints"
    for seed in (1, 2):
        checkpoint.save(folder / "a", state(seed))
        assert_equal(checkpoint.load(folder / "a", like=state(0)), state(seed))
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none: no checkpoint here; the run ended before it was written"):
        checkpoint.load(tmp_path / "none", like=state(0))


@pytest.mark.processes
@pytest.mark.parametrize("options", ["size=1m", "size=1m,nr_inodes=2"])
def test_a_full_disk_is_an_os_error_at_once(
    options: str, mount_disk: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    disk = mount_disk(options)
    (disk / "file").touch()
    random = np.random.default_rng(0).normal(size=(1000, 1000))
    with pytest.raises(OSError, match="No space left on device") as error:
        checkpoint.save(disk / "a", {"random": random})
    assert error.value.errno == errno.ENOSPC
    assert capfd.readouterr() == ("", "")
