# `make demo` and `make test` do all set-up themselves. See README.md.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# uv does not read PIP_FIND_LINKS, PIP_INDEX_URL and PIP_EXTRA_INDEX_URL by itself.
LINKS := $(foreach l,$(PIP_FIND_LINKS),--find-links $(l))
INDEX := $(if $(PIP_INDEX_URL),--index-url $(PIP_INDEX_URL)) $(foreach i,$(PIP_EXTRA_INDEX_URL),--extra-index-url $(i))
UV_INSTALL := $(BIN)/uv pip install $(LINKS) $(INDEX)
UV := $(UV_INSTALL) --python $(BIN)/python
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup system demo test test-full bench-rig bench-rig-full bench-scheduler check check-sglang format clean

help:
	@echo "make demo        set up, then serve and check a batch of agent sessions on real engines"
	@echo "make test        set up, then all quick tests and the core on real engines (< 40 minutes)"
	@echo "make test-full   everything else too, in resumable parts"
	@echo "make bench-rig   two-network benchmark: 1P1D and 1P2D, < 50 minutes, needs root"
	@echo "make bench-rig-full   all of it 3 times; goes on where it was stopped"
	@echo "make bench-scheduler   placements a second at 1,152 engines, and the planning step; 2 minutes"
	@echo "make check       ruff, mypy"
	@echo "make check-sglang VERSION=x   what would break with another release of SGLang"
	@echo "make setup       only the set-up: system packages and $(VENV)"

setup: $(READY)

# Missing system packages are installed where we may; otherwise the command is printed. A compiler
# and headers: SGLang compiles the hash of its page keys on the machine that serves.
system:
	@missing=""; \
	ldconfig -p 2>/dev/null | grep -q 'libibverbs\.so\.1' || missing="$$missing libibverbs1"; \
	ldconfig -p 2>/dev/null | grep -q 'libnuma\.so\.1' || missing="$$missing libnuma1"; \
	ldconfig -p 2>/dev/null | grep -q 'libcurl\.so\.4' || missing="$$missing libcurl4"; \
	{ command -v ip && command -v tc; } >/dev/null || missing="$$missing iproute2"; \
	command -v c++ >/dev/null || missing="$$missing g++"; \
	echo '#include <openssl/sha.h>' | c++ -E -x c++ - >/dev/null 2>&1 || missing="$$missing libssl-dev"; \
	[ -n "$(PYTHON)" ] || missing="$$missing python3"; \
	"$(or $(PYTHON),false)" -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	"$(or $(PYTHON),false)" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null \
	  || missing="$$missing python3-dev"; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ]; then sudo=""; elif command -v sudo >/dev/null; then sudo="sudo"; \
	else echo "missing system packages; as root: apt-get install -y$$missing" >&2; exit 1; fi; \
	echo "installing system packages:$$missing"; \
	$$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing

$(READY): requirements-cpu.txt requirements-dev.txt pyproject.toml | system
	@python="$(PYTHON)"; [ -n "$$python" ] || python=python3; \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11, 3.12 or 3.13 is needed; set PYTHON=..." >&2; exit 1; }; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	@# torch with its dependencies: a CUDA build needs them, a CPU build has few.
	$(UV) "$$(grep '^torch==' requirements-cpu.txt)"
	$(UV) --no-deps -r requirements-cpu.txt -r requirements-dev.txt
	$(UV) --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/python -m benchmarks.replay.demo --out out/demo

# CPU work of one engine must not be spread over threads that other engines need.
test test-full part-%: export OMP_NUM_THREADS = 1

# Integration tests run in two goes, so that at most four engines are up at a time: first the files
# that start stacks of their own, then those that share one.
ALONE := $(addprefix tests/integration/,test_abort_and_flush.py test_cold_restart.py test_mla.py test_odd_surroundings.py test_second_path.py test_second_path_faults.py)
SHARED := $(filter-out $(ALONE),$(wildcard tests/integration/test_*.py))

test: setup
	$(PYTEST) -q -m "not full" tests/unit tests/contract --floor 1000
	$(PYTEST) -q -m "not full" $(ALONE) --floor 17
	$(PYTEST) -q -m "not full" $(SHARED) --floor 30

# Each part ends within 45 minutes and leaves a stamp; a second call goes on with what is missing.
# A new commit starts over.
COMMIT := $(shell git rev-parse --short HEAD 2>/dev/null || echo none)
PARTS := unit own-stacks aborts faults shared-stack rig
STAMPS := $(PARTS:%=out/test-full/$(COMMIT)/%)

.PHONY: $(PARTS:%=part-%)
test-full: $(STAMPS)
	@echo "all parts have passed: $(PARTS)"

out/test-full/$(COMMIT)/%: | setup
	@mkdir -p $(@D)
	$(MAKE) part-$*
	@touch $@

part-unit: setup
	$(PYTEST) -q tests/unit tests/contract --floor 1000

part-own-stacks: setup
	$(PYTEST) -q $(filter-out %_faults.py %_flush.py,$(ALONE)) --floor 9

part-aborts: setup
	$(PYTEST) -q tests/integration/test_abort_and_flush.py --floor 8

part-faults: setup
	$(PYTEST) -q tests/integration/test_second_path_faults.py --floor 12

part-shared-stack: setup
	$(PYTEST) -q $(SHARED) --floor 30

part-rig: setup
	$(BIN)/python -m benchmarks.rig run --topology 1P1D --arm split --runs 1 --out out/test-full/rig --fresh

bench-rig: setup
	$(BIN)/python -m benchmarks.rig run --preset standard --out out/rig $(RIG)

bench-scheduler: setup
	$(BIN)/python -m benchmarks.scheduler --out out/scheduler

bench-rig-full: setup
	$(BIN)/python -m benchmarks.rig run --preset full --out out/rig $(RIG)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Another release beside: an environment that has only SGLang of its own and shares all the rest.
RELEASE := out/sglang/$(VERSION)
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
check-sglang: setup
	@[ -n "$(VERSION)" ] || { echo "which release? make check-sglang VERSION=0.5.24" >&2; exit 2; }
	[ -x $(RELEASE)/bin/python ] || $(BIN)/python -m venv --without-pip $(RELEASE)
	@echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > "$$($(RELEASE)/bin/python $(SITE))/shared.pth"
	$(UV_INSTALL) --python $(RELEASE)/bin/python --quiet --no-deps sglang==$(VERSION)
	$(RELEASE)/bin/python tests/contract/check_release.py $(VERSION)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf out .run build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
