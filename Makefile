# Every command of the project; `make` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

help: ## List the commands
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# With empty caches on two cores uv took 49 and 50 s, pip 104 and 131 s; both compile and check the hashes of the lock.
# uv does not read pip's configuration, so it is given pip's index and certificate. Where that is not enough, pip installs.
AS_UV_SETTINGS := sort -r | sed -n -e 's/^[^=]*\.index-url=/export UV_DEFAULT_INDEX=/p' -e 's/^[^=]*\.cert=/export SSL_CERT_FILE=/p'

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -m venv .venv
	@echo "Installing the packages of requirements.lock into .venv (7 GB): a minute with uv, two to five with pip ..."
	@awk '/^[^ ]/ { keep = /^uv==/ } keep' requirements.lock > .venv/uv.lock
	@{ $(PIP) install --quiet --require-hashes -r .venv/uv.lock && eval "$$($(PIP) config list | $(AS_UV_SETTINGS))" && \
	   $(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock; } || \
	 { echo "uv could not install them; pip does ..." && $(PIP) install --quiet --no-deps --require-hashes -r requirements.lock; }
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

setup: .venv/.installed ## Create .venv from requirements.lock and install starlab into it

demo: setup ## Generate people, train the STAR model on them, evaluate, record, report (about 5 minutes, no GPU)
	@$(BIN)/starlab demo

check: setup ## Format, lint, types, import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=tests/benchmarks $(BIN)/mypy tests/benchmarks
	PYTHONPATH=.typing $(BIN)/lint-imports

# Two processes that share no file of tests, no Ray, no port and no folder. If one dies, the run fails and ends, and what it had not
# begun is not run: with a new process in its place, pytest-xdist waits for ever where no test is left.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0 -o faulthandler_timeout=1900

test: setup ray-token ## All tests but the slowest, in two processes
	$(BIN)/python -m pytest $(PARALLEL)

test-all: setup ray-token ## All tests but those of many minutes: also faults and whole trainings that quicker tests cover
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow_fault and not slowest"
	$(BIN)/python -m pytest -m "slow_fault and not slowest"

ray-token: setup # Where Ray has no token for local clusters yet, two processes that start at once would make two
	@$(BIN)/ray get-auth-token --generate > /dev/null

test-faults: setup ## Every fault of docs/reliability.md (an hour; measures go to runs/faults.json)
	$(BIN)/python -m pytest tests/faults tests/platform/runs/test_checkpoint.py tests/platform/runs/test_checkpoint_writer.py \
	  tests/platform/runs/test_lease.py tests/platform/worker/test_watchdog.py tests/platform/recipe/test_loss_guard.py tests/platform/test_trainer.py \
	  tests/pipelines/test_fault_table.py tests/platform/search/test_lost_node.py -m "slow_fault or not slow_fault"

bench-train: setup ## Measure what a training costs besides its arithmetic (minutes; wants a quiet machine)
	$(BIN)/python tests/benchmarks/bench_train.py

bench-model: setup ## Measure the model's parts against their limits (minutes; wants a quiet machine)
	$(BIN)/python tests/benchmarks/bench_model.py

bench-gpu: setup ## Measure correctness, speed and every improvement on one GPU (at most 9 minutes)
	$(BIN)/python tests/benchmarks/bench_gpu.py

bench-data: setup ## Measure stores and the stream against their limits and other loaders (a quarter of an hour)
	$(BIN)/python tests/benchmarks/bench_data.py
	$(BIN)/python tests/benchmarks/bench_peers.py

bench-quick: setup ## Measure the ratios that must not get worse; fails if one does (three minutes)
	$(BIN)/python tests/benchmarks/bench_quick.py

bench-compare: setup ## Measure the statistics of `starlab compare` and its speed (ten minutes)
	$(BIN)/python tests/benchmarks/bench_statistics.py
	$(BIN)/python tests/benchmarks/bench_compare.py

bench-cluster: setup ## Measure where the time from submit to the first step goes, and how many runs a tracking server bears (ten minutes)
	$(BIN)/python tests/benchmarks/bench_submit.py
	$(BIN)/python tests/benchmarks/bench_many_runs.py

bench-search: setup ## Does TPE + ASHA find the grid's best cell with a third of its steps? (an hour the first time)
	$(BIN)/python tests/benchmarks/bench_search.py

wheel: setup ## Build dist/starlab-*.whl
	$(BIN)/python -m build --wheel --no-isolation

lock: setup ## Resolve requirements.lock for the ranges of pyproject.toml; pins that still fit stay
	$(BIN)/uv pip compile pyproject.toml --extra dev --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --output-file requirements.lock

format: setup ## Rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: help setup demo check test test-all ray-token test-faults bench-cluster bench-search bench-compare bench-data bench-gpu bench-model bench-quick bench-train wheel lock format
