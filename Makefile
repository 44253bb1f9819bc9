# Two commands matter: `make demo` and `make test`. Each sets up what it needs.
SHELL := /bin/bash
BIN := .venv/bin
UV := .tools/bin/uv
KUBERNETES := $(shell [ "$$(id -u)" = 0 ] && [ -n "$$TILTYARD_TEST_KUBECONFIG$$TILTYARD_KUBE_ASSETS" ] && echo ,kubernetes,docker-registry)
RUNSC := $(shell { [ -n "$$TILTYARD_RUNSC" ] || PATH="$$PATH:/usr/local/bin" command -v runsc; } >/dev/null 2>&1 && echo ,runsc)
REQUIRE := $(shell [ "$$(id -u)" = 0 ] && echo docker,bwrap,libseccomp,root,go || echo docker,bwrap,libseccomp,go)$(RUNSC)$(KUBERNETES)

.PHONY: help setup engine images local gvisor fmt check test test-kubernetes demo demo-local bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: build/environment engine images $(if $(RUNSC),gvisor) ## engine, base images, environment, agent; gVisor where it is to be had

engine:
	@sandbox_images/engine

images: build/environment | engine
	@sandbox_images/build

gvisor: | images
	@sandbox_images/gvisor

build/environment: requirements.lock requirements-build.lock pyproject.toml hatch_build.py $(wildcard sandbox_images/agent/*.go sandbox_images/probe/*.go sandbox_images/probe/*.s)
	@sandbox_images/environment

fmt: build/environment ## format and mend what can be mended
	$(BIN)/ruff format . && $(BIN)/ruff check --fix . && $(BIN)/python -m tests.integrity.table

check: build/environment ## format, lint, types, architecture
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/pytest -q tests/test_architecture.py

test: setup ## everything this machine can run
	@[ "$$(id -u)" != 0 ] || sandbox_images/local
	@[ -z "$$TILTYARD_KUBE_ASSETS" ] || sandbox_images/kubernetes
	TILTYARD_REQUIRE=$(REQUIRE) $(BIN)/pytest

test-kubernetes: setup ## pods on a real cluster: TILTYARD_TEST_KUBECONFIG, else kind, else the folder TILTYARD_KUBE_ASSETS
	@[ -z "$$TILTYARD_KUBE_ASSETS" ] || sandbox_images/kubernetes
	TILTYARD_REQUIRE=kubernetes $(BIN)/pytest tests/kubernetes

local: build/environment
	@sandbox_images/local

demo-local: local ## the same on a machine without an engine; see docs/local.md
	@$(BIN)/tiltyard demo --backend local --deployment demo-local

demo: setup ## real rollouts over the RFT wire, graded
	@$(BIN)/tiltyard demo

bench: setup ## the budgets of docs/performance.md, as ratios
	$(BIN)/python -m benchmarks

clean: ## remove what the project made: boxes, mounts, environment
	@if [ -x $(BIN)/tiltyard ]; then $(BIN)/tiltyard sweep --all; fi
	rm -rf .venv .tools build dist demo sandbox_images/agent/bin sandbox_images/probe/bin
