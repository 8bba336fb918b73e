"""The images of docker-compose.yml, built by podman, and a checkout that belongs to another user."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OWNER = 12345  # uid of the checkout's owner, who does not run the tests
BASE = "docker.io/library/python:3.11-slim-bookworm"
READABLE_BASE = "localhost/fathom-base"
PROMETHEUS = "docker.io/prom/prometheus:v3.5.0"
BUILD = ["podman", "build", "--isolation=chroot", "--format=docker", "--layers=false", "--quiet"]
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
SMALL = """
envs: [point_u_maze]
collector_depths: [4]
learner_depths: [4]
seeds: [0, 1]
experiment:
  collector: {width: 64, environments: 64, unroll_length: 50}
  algorithm: {batch_size: 256, windows_per_update: 64, minibatches_per_update: 48}
  replay: {steps_per_environment: 5000, prefill_steps: 250}
  budget: {env_steps: 48_000}
"""


def run(*command: str | Path, **options: object) -> str:
    """Returns the command's output. Fails the test with the command's errors."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Builds fathom:cpu without layers, because podman's vfs stores each layer with a copy of all layers below."""
    for tool in ("podman", "prometheus", "catatonit"):
        assert shutil.which(tool), f"{tool} is missing: apt-get install {tool}"
    assert subprocess.run(["podman", "image", "exists", BASE]).returncode == 0, f"no image {BASE}"
    _make_readable_base(tmp_path_factory.mktemp("base"))
    cache = Path(os.environ.get("UV_CACHE_DIR") or "~/.cache/uv").expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    dockerfile = ROOT / "deploy/docker/Dockerfile"
    command = [*BUILD, f"--build-arg=BASE={READABLE_BASE}", f"--volume={cache}:/root/.cache/uv"]
    run(*command, "-f", dockerfile, "-t", "fathom:cpu", ROOT, timeout=1500)
    run("podman", "image", "prune", "--force")
    return "fathom:cpu"


def _make_readable_base(folder: Path) -> None:
    """Makes a copy of `BASE` whose / all users may read. debootstrap may have left / readable for root alone."""
    container = run("podman", "create", BASE, "true").strip()
    run("bash", "-c", f"podman export {container} | tar -x -C {folder}")
    run("podman", "rm", container)
    folder.chmod(0o755)
    environment = [f"--change=ENV {name}={CERTIFICATES}" for name in ("SSL_CERT_FILE", "PIP_CERT")]
    archive = folder.with_suffix(".tar")
    run("tar", "-C", folder, "-cf", archive, ".")
    shutil.rmtree(folder)
    run("podman", "import", "--quiet", *environment, archive, READABLE_BASE)
    archive.unlink()


@pytest.fixture(scope="session")
def prometheus(image: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Makes an image of Debian's Prometheus, in place of the image that Compose would download."""
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copy(str(shutil.which("prometheus")), folder / "prometheus")
    lines = ["COPY prometheus /bin/prometheus", "RUN install -d -o nobody /prometheus", "USER nobody"]
    lines += ['ENTRYPOINT ["/bin/prometheus"]']
    (folder / "Dockerfile").write_text("\n".join([f"FROM {READABLE_BASE}", *lines]) + "\n")
    run(*BUILD, "-t", PROMETHEUS, folder)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Copies the project for `OWNER`, with a small matrix among the experiments."""
    folder = tmp_path_factory.mktemp("checkout") / "fathom"
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "deploy/experiments/small.yaml").write_text(SMALL)
    run("chown", "-R", f"{OWNER}:{OWNER}", folder)
    yield folder
    shutil.rmtree(folder)
