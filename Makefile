# One command each; every one does its own set-up in .venv and builds what is out of date.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The Python that makes .venv: the first of these that is new enough. `make setup PYTHON=/path/to/python` names another.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
MIN_PYTHON := 3.11
MIN_CARGO := 1.88

VENV := .venv
PY := $(VENV)/bin/python
ENGINE := $(shell find server/engine -name target -prune -o \( -name '*.rs' -o -name Cargo.toml \) -print)
# Most tests wait for processes more than they compute.
TESTS_AT_ONCE ?= $(shell echo $$(($$(nproc) + 1)))
FUZZ_SECONDS ?= 60
KILLS ?= 1000
CALLS ?= 10000000
SAN_SECONDS ?= 300

# Cargo and pip build the bindings for the same interpreter.
export PYO3_PYTHON := $(CURDIR)/$(PY)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Of the editable install; it shares what the tests build, and keeps line numbers.
export SETUPTOOLS_RUST_CARGO_PROFILE := release

.PHONY: help setup build check test test-rust test-python test-deploy coverage proto proto-check lint style workflows dashboard format demo bench-engine bench-rpc bench-block soak-block soak-crash soak-rpc fuzz sanitize dist sbom version pictures site lock clean

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name what; do printf '  %-14s %s\n' "$$name" "$$what"; done

setup: $(VENV)/.deps ## Make .venv with the locked development tools

build: $(VENV)/.native ## Build the engine and install the packages in .venv, editable

check: style ## Check format, lints, types, layers and units in less than a minute
	$(PY) -m pytest -q --numprocesses=$(TESTS_AT_ONCE) tests/unit

test: test-rust test-python ## Run every test: Rust, then Python

# Optimization across crates would take longer than the tests do.
CARGO_TEST = cargo test --release --config 'profile.release.lto="off"'

test-rust: $(VENV)/.deps
	$(CARGO_TEST) --workspace
	$(CARGO_TEST) -p tmem-core --features crash-points --config profile.release.debug-assertions=true --lib --test crash_points --test coherency --test policy --test model

test-python: build
	$(PY) -m pytest --numprocesses=$(TESTS_AT_ONCE)

test-deploy: build ## Try deploy/ on the Docker engine of this machine; TMEM_ENGINE_RESTART='COMMAND' has it restarted too
	$(PY) -m pytest tests/deploy

coverage: build ## Measure what the tests reach of the Python, and of the Rust with cargo-llvm-cov; there is a floor
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest --numprocesses=$(TESTS_AT_ONCE)
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report
	if cargo llvm-cov --version 2>/dev/null; then cargo llvm-cov --workspace --summary-only; else echo 'Rust is not measured: no cargo-llvm-cov'; fi

# Generates the protocol's Python, with its types, into a folder.
PROTOC = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m grpc_tools.protoc -I proto $(addprefix --,$(addsuffix _out=$(1),python grpc_python mypy mypy_grpc)) $(wildcard proto/tmem_proto/v1/*.proto)

proto: $(VENV)/.deps ## Generate the Python of the wire protocol from proto/tmem_proto/v1/*.proto
	$(call PROTOC,proto)

proto-check: $(VENV)/.deps
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; $(call PROTOC,"$$fresh"); \
	diff -r -x '*.proto' -x __init__.py -x __pycache__ "$$fresh/tmem_proto/v1" proto/tmem_proto/v1 || { echo 'the generated code is out of date: run make proto' >&2; exit 1; }

lint: style proto-check workflows ## Check format, types, lints, spelling and workflows; warnings are errors
	MYPYPATH=server/engine/python $(PY) -m mypy.stubtest tmem_engine._native

workflows: $(VENV)/.deps
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(VENV)/bin/zizmor --quiet --offline --persona pedantic .github

style: build
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(VENV)/bin/typos
	$(PY) -m mypy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings

dashboard: $(VENV)/.deps ## Make the Grafana dashboard's JSON of deploy/grafana/panels.yml
	$(PY) deploy/grafana/dashboard.py > deploy/grafana/dashboards/tmem.json

format: $(VENV)/.deps ## Format Python and Rust in place
	$(PY) -m ruff check --fix --silent . || true
	$(PY) -m ruff format .
	cargo fmt --all

demo: build ## Store real pages of this machine; show how dense, fast and safe that was
	$(PY) -m bench.demo

bench-engine: build ## Measure the engine against its bounds, each with its ratio
	$(PY) -m bench.engine

bench-rpc: build ## Measure the daemon and its clients against their bounds, each with its ratio
	$(PY) -m bench.rpc

bench-block: build ## Measure block devices and the SAN gateway against nbdkit and no cache, each with its ratio
	$(PY) -m bench.block

soak-crash: build ## Kill writers and servers at random KILLS times (1000) and check that nothing acknowledged is lost
	TMEM_KILLS=$(KILLS) cargo test --release -p tmem-core --test processes -- --exact --nocapture crash_soak
	TMEM_KILLS=$(KILLS) $(PY) -m pytest -q tests/block/kills

soak-block: build ## Try gateways for SAN_SECONDS (300): all around them fails, their cache is out of reach for a minute
	TMEM_SAN_SECONDS=$(SAN_SECONDS) $(PY) -m pytest -q -s tests/block/gateway/test_model.py
	TMEM_SAN_SECONDS=$(SAN_SECONDS) TMEM_OUTAGE_SECONDS=60 $(PY) -m pytest -q -s tests/block/gateway/test_network.py

soak-rpc: build ## Make CALLS (10 million) calls of every kind and check that the daemon does not grow
	CALLS=$(CALLS) $(PY) -m bench.rpc --only soak

fuzz: build ## Fuzz the engine, the block front and the wire for FUZZ_SECONDS (60) a target
	TMEM_FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test --release -p tmem-core -p tmem-nbd --test fuzz
	TMEM_FUZZ_SECONDS=$(FUZZ_SECONDS) $(PY) -m pytest -q tests/fuzz

sanitize: ## Run the core's tests under AddressSanitizer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test -p tmem-core --lib --test model --test coherency --test fuzz --target-dir target/asan --target $$(rustc -vV | sed -n 's/host: //p')

# The oldest C library that the wheel runs with: zig links with it. The C compiler stays this machine's; with zig's own
# zstd reads a fifth slower.
GLIBC := 2.28
RELEASE := $(VENV)/release

dist: build $(RELEASE)/.deps ## Build wheel and source distribution for this processor into dist/, install and try both
	rm -rf dist build $(RELEASE)/made
	host=$$(rustc -vV | sed -n 's/host: //p'); \
	PATH="$(CURDIR)/$(RELEASE)/bin:$$PATH" CARGO=cargo-zigbuild CARGO_BUILD_TARGET="$$host.$(GLIBC)" \
	CARGO_TARGET_DIR="$(CURDIR)/target" SETUPTOOLS_RUST_CARGO_PROFILE=dist \
	    env "CC_$${host//-/_}=cc" $(RELEASE)/bin/python -m build --no-isolation --outdir $(RELEASE)/made .
	PATH="$(CURDIR)/$(RELEASE)/bin:$$PATH" auditwheel repair --wheel-dir dist $(RELEASE)/made/*.whl
	mv $(RELEASE)/made/*.tar.gz dist
	$(RELEASE)/bin/twine check --strict dist/*
	TMEM_DIST=dist $(PY) -m pytest -q tests/integration/packaging/test_distribution.py

sbom: $(RELEASE)/.deps ## List what an installation is made of, Python and Rust, as CycloneDX in sbom/; needs cargo-cyclonedx
	rm -rf sbom $(RELEASE)/installed
	mkdir sbom
	$(PY) -m venv --without-pip $(RELEASE)/installed
	$(PY) -m pip --python $(RELEASE)/installed/bin/python install --quiet --require-hashes -r requirements.lock
	TMEM_PURE=1 $(PY) -m pip --python $(RELEASE)/installed/bin/python install --quiet --no-deps .
	$(RELEASE)/bin/cyclonedx-py environment --output-reproducible --output-file sbom/python.cdx.json $(RELEASE)/installed/bin/python
	cargo cyclonedx --quiet --manifest-path server/engine/python/Cargo.toml --no-build-deps --format json --spec-version 1.5 --override-filename rust.cdx
	mv server/engine/python/rust.cdx.json sbom
	rm -rf build server/engine/*/rust.cdx.json

version: ## Print the version
	@sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml

pictures: $(VENV)/.deps ## Draw the pictures of README and the documents
	$(PY) -m docs.pictures.draw

SITE := $(VENV)/site

site: $(SITE)/.deps ## Build the documents as a site, build/site, that loads nothing from elsewhere
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict
	@! grep -rnoE '(<(script|img|link)[^>]* (src|href)="|url\(.?)(https?:)?//[^"]*' build/site --include='*.html' --include='*.css'

# What runs is of the same versions as what was tested.
PIP_COMPILE = $(VENV)/lock/bin/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

# `make lock UPGRADE=` adds what is new and moves nothing else.
UPGRADE ?= --upgrade

lock: $(VENV)/.deps ## Renew the locks, newest versions with hashes: of development, of it what runs, and of releases
	$(PY) -m venv --clear $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet pip-tools
	$(PIP_COMPILE) $(UPGRADE) --extra dev --output-file requirements-dev.lock pyproject.toml
	$(PIP_COMPILE) --rebuild --constraint requirements-dev.lock --output-file requirements.lock pyproject.toml
	$(PIP_COMPILE) $(UPGRADE) --constraint requirements-dev.lock --output-file requirements-release.lock requirements-release.in
	$(PIP_COMPILE) $(UPGRADE) --output-file docs/requirements.lock docs/requirements.in

$(SITE)/.deps: docs/requirements.lock $(VENV)/.deps
	$(PY) -m venv --clear $(SITE)
	$(SITE)/bin/pip install --quiet --require-hashes -r docs/requirements.lock
	@touch $@

# Large, and for releases alone: zig is a compiler of its own.
$(RELEASE)/.deps: requirements-release.lock $(VENV)/.deps
	$(PY) -m venv --clear $(RELEASE)
	$(RELEASE)/bin/pip install --quiet --require-hashes -r requirements-release.lock
	@touch $@

clean: ## Remove .venv and everything built
	rm -rf $(VENV) target build dist sbom .coverage* *.so *.egg-info client/*.egg-info

$(VENV)/.deps: requirements-dev.lock
	@$(call need_native_tools)
	@for python in $(PYTHON); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MIN_PYTHON)".split("."))))' 2>/dev/null && break; python=; \
	done; \
	if [ -z "$$python" ]; then echo "tmem needs Python $(MIN_PYTHON) or later; none of these is: $(PYTHON)" >&2; exit 1; fi; \
	echo "setting up $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV) || { echo "tmem needs the venv module of $$python (on Debian: apt install python3-venv)" >&2; exit 1; }
	$(PY) -m pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.native: $(VENV)/.deps pyproject.toml setup.py Cargo.toml $(ENGINE) $(wildcard Cargo.lock)
	@$(call need_native_tools)
	$(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# Fails with a sentence where a C compiler or a new enough cargo is missing.
define need_native_tools
command -v cc >/dev/null || { echo "tmem needs a C compiler, cc (on Debian: apt install build-essential)" >&2; exit 1; }; \
have=$$(cargo --version 2>/dev/null | cut -d' ' -f2) || true; \
if [ -z "$$have" ]; then ! command -v cargo >/dev/null || cargo --version; echo "tmem needs cargo $(MIN_CARGO) or later, and there is none; rustup installs one" >&2; exit 1; fi; \
if [ "$$(printf '%s\n' $(MIN_CARGO) "$$have" | sort -V | head -1)" != $(MIN_CARGO) ]; then echo "tmem needs cargo $(MIN_CARGO) or later; this one is $$have" >&2; exit 1; fi
endef
