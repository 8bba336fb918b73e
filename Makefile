# All commands of the project, the same by hand and in CI. Needs only Python 3.11 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
SUDO := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)
COMPILE := $(UV) pip compile --quiet --generate-hashes --no-annotate --custom-compile-command "make lock" --python-version 3.11
# The image's lock files: only there is CUDA. The versions of run.txt bind them, so that a cluster's nodes agree.
IMAGE := --python-platform x86_64-manylinux_2_28 --constraint requirements/run.txt

# Processes import JAX and Ray three times as fast from bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast test-newest test-all test-envs test-deploy test-chaos docs lint format bench bench-gpu lock protos viewer plotly clean

demo: $(VENV)/.run-ready
	$(BIN)/fathom matrix deploy/experiments/point_matrix.yaml --in-process --parallel 2 --out runs/demo
	$(BIN)/fathom report runs/demo

# All tests that need neither minutes nor containers. Three workers for two cores: many tests wait for other processes.
PYTEST := $(BIN)/python -m pytest
WORKERS := --numprocesses 3 --dist loadscope --no-loadscope-reorder
test: $(VENV)/.dev-ready $(VENV)/.system-ready
	$(PYTEST) $(WORKERS)

# Tests that start no process, for each save of a file.
test-fast: $(VENV)/.dev-ready $(VENV)/.system-ready
	$(PYTEST) $(WORKERS) -m 'not processes and not slow and not envs and not deploy and not chaos'

# The fast tests with the newest versions that pyproject.toml allows, which a `pip install` without our locks would take.
NEWEST := .venv-newest
test-newest: $(VENV)/.uv $(VENV)/.system-ready
	$(UV) venv --quiet --clear --python $(BIN)/python $(NEWEST)
	$(UV) pip install --quiet --python $(NEWEST) --upgrade --editable '.[dev]'
	$(UV) pip freeze --python $(NEWEST) | grep -E '^(brax|flax|grpcio|jax|jaxlib|mujoco|numpy|optax|orbax-checkpoint|protobuf|pydantic|ray)=='
	$(NEWEST)/bin/python -m pytest $(WORKERS) -m 'not processes and not slow and not envs and not deploy and not chaos'

test-all: test test-envs test-chaos test-deploy

# Compiles and steps every environment: half an hour and more on 2 cores.
test-envs: $(VENV)/.dev-ready
	$(PYTEST) -m envs

# Builds the image and runs docker-compose.yml without a GPU, Ray jobs, and two Ray nodes. Needs podman and root on a
# Debian machine, but not Docker.
test-deploy: $(VENV)/.dev-ready
	@command -v podman >/dev/null || { echo "test-deploy needs podman" >&2; exit 1; }
	@{ command -v docker-compose && command -v catatonit && command -v prometheus && command -v ip; } >/dev/null \
	  || { $(SUDO) apt-get update --quiet && \
	       $(SUDO) apt-get install --yes --quiet docker-compose catatonit prometheus iproute2; }
	$(PYTEST) -m deploy --timeout 3000

# Kills and stops every role of real runs; FAULTS=50 sets the number. A quarter of an hour on 2 cores.
test-chaos: $(VENV)/.dev-ready
	$(PYTEST) -m chaos

docs: $(VENV)/.run-ready
	$(BIN)/fathom envs --markdown > docs/environments.md
	$(BIN)/python -c 'from shared.metrics_page import metrics_page; print(metrics_page(), end="")' > docs/metrics.md

lint: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev-ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Figures are saved in runs/bench/, for `fathom bench ... --compare FILE`. QUICK=1 only checks that all of it works.
BENCH := $(BIN)/fathom bench
SAVED := runs/bench$(if $(QUICK),/quick)
bench: $(VENV)/.run-ready
ifdef QUICK
	$(MAKE) --jobs=2 --output-sync=line --no-print-directory $(QUICK_BENCHES)
else
	$(BENCH) update --depths 4 16 64 256 1024 --save $(SAVED)/update.json
	$(BENCH) update --depths 4 16 64 --against unrolled --save $(SAVED)/update-unrolled.json
	$(BENCH) rollout --with-replay --save $(SAVED)/rollout.json
	$(BENCH) replay --against-stock --save $(SAVED)/replay.json
	$(BENCH) weights --save $(SAVED)/weights.json
	$(BENCH) end-to-end --save $(SAVED)/end-to-end.json
	$(BENCH) scaling --save $(SAVED)/scaling.json
endif

# All that is asked of a new GPU, in 40 minutes at most; the same command goes on with what is left. CUDA=12 for drivers
# before 580. With QUICK=1 it works on a CPU, too.
CUDA := 13
ifdef QUICK
bench-gpu: $(VENV)/.run-ready
	$(BENCH) gpu --quick
else
bench-gpu: $(VENV)/.cuda$(CUDA)-ready
	$(BENCH) gpu --results docs/results/gpu --page docs/benchmarks.md
endif

# The longest first; two at once, because quick figures say nothing about speed.
QUICK_BENCHES := $(addprefix quick-,end-to-end rollout update replay weights)
.PHONY: $(QUICK_BENCHES)
$(QUICK_BENCHES): quick-%:
	$(BENCH) $* --quick $(if $(filter rollout,$*),--with-replay) --save $(SAVED)/$*.json

$(VENV)/.uv: 
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "Fathom needs Python 3.11 to 3.13; name one with: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements/run.txt)"
	@touch $@

$(VENV)/.run-ready: $(VENV)/.uv requirements/run.txt pyproject.toml
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --require-hashes -r requirements/run.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.cuda%-ready: $(VENV)/.run-ready requirements/cuda%.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --require-hashes -r requirements/cuda$*.txt
	@touch $@

$(VENV)/.dev-ready: $(VENV)/.run-ready requirements/dev.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

# Needs of the tests besides Python: a browser for the report, OpenGL for bodies, and network namespaces.
$(VENV)/.system-ready: $(VENV)/.uv
	@{ command -v chromium && command -v chromedriver && command -v ip && command -v iptables && ldconfig -p | grep -E 'libOSMesa|libEGL'; } >/dev/null \
	  || { $(SUDO) apt-get update --quiet && \
	       $(SUDO) apt-get install --yes --quiet chromium chromium-driver libosmesa6 iproute2 iptables; } \
	  || { echo "Tests of pages and pictures need chromium, chromedriver, libOSMesa, ip and iptables: install them" >&2; exit 1; }
	@touch $@

lock: $(VENV)/.uv
	$(COMPILE) --universal pyproject.toml -o requirements/run.txt
	$(COMPILE) --universal pyproject.toml --extra dev -o requirements/dev.txt
	$(UV) pip compile --quiet --universal --no-annotate --no-header --python-version 3.11 pyproject.toml -c requirements/run.txt -o requirements/runtime_env.txt
	$(COMPILE) pyproject.toml --extra cuda12 $(IMAGE) -o requirements/cuda12.txt
	$(COMPILE) pyproject.toml --extra cuda13 $(IMAGE) -o requirements/cuda13.txt
	$(COMPILE) deploy/docker/tensorboard.in $(IMAGE) -o deploy/docker/tensorboard.txt
	$(COMPILE) --universal deploy/replay/server/requirements.in -o deploy/replay/server/requirements.txt

protos: $(VENV)/.dev-ready
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. shared/replay/reverb.proto

# The viewer of 3-D pages, made again after a change of its parts: brax's, with the versions that brax loads. Needs npm.
NODE := $(VENV)/npm
viewer: $(VENV)/.dev-ready
	npm install --prefix $(NODE) --no-save --silent three@0.150.1 lil-gui@0.18.0 esbuild@0.28.2
	NODE_PATH=$(NODE)/node_modules $(NODE)/node_modules/.bin/esbuild $(VENV)/lib/python3*/site-packages/brax/visualizer/js/viewer.js \
	  --bundle --minify --target=es2020 --alias:lilgui=lil-gui --global-name=brax --legal-comments=none \
	  --banner:js="/*! $$(cat NOTICE) */" --outfile=deploy/render/viewer.min.js

# The script of the report's charts, brought again after a change of plotly's version. Needs npm.
plotly: $(VENV)/.run-ready
	npm install --prefix $(NODE) --no-save --silent plotly.js-cartesian-dist-min@$$($(BIN)/python -c "import plotly.offline as o; print(o.get_plotlyjs_version())")
	cp $(NODE)/node_modules/plotly.js-cartesian-dist-min/plotly-cartesian.min.js deploy/report/plotly.min.js

clean:
	rm -rf $(VENV) .cache/tests-xla .mypy_cache .ruff_cache .pytest_cache
