# Everything runs from .venv, and each target does its own set-up.
PYTHON ?= python3
RUN = .venv/bin/python
# About 1% of pulumi_oci's half a million lines is ever imported.  So pip compiles nothing (--no-compile), and Python
# compiles what it imports, once; without .pyc files it would do so at every start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test quick test-vm lint venv packages bootstrap golden dist bench bench-engine bench-commands bench-change bench-large clean

help:
	@echo "make demo       the article's POD on this machine: real program, real rules, real packets"
	@echo "make test       all tests, linters included"
	@echo "make quick      the fast tests, less than a minute on two processors: no packets, no Pulumi engine, no type check, no test of 0.2 s or more"
	@echo "make test-vm    NAT VM1 booted by real cloud-init and systemd, as on Ubuntu and on Oracle Linux (root; 4 minutes)"
	@echo "make lint       ruff and mypy --strict"
	@echo "make bootstrap  rebuild cloud-init/user-data.b64 from its sources (replaces the NAT VMs at the next up)"
	@echo "make golden     rewrite the golden files; then read the diff"
	@echo "make dist       sdist and wheel, into dist/"
	@echo "make bench      what a POD costs a packet, compared with plain routing: bench/results.md, its plot, bench/noise.md (8 minutes)"
	@echo "make bench-engine  preview and up of full PODs, compared with a bare program: bench/engine.md (15 minutes)"
	@echo "make bench-commands  every command on a full POD, compared with starting Python: bench/commands.md"
	@echo "make bench-large  a POD of 20 customers who overlap, with 1,000 hosts, from stack file to packets: bench/large.md"
	@echo "make bench-change  1,000 edits of mappings under hundreds of flows: bench/change.md (10 minutes)"

demo: packages venv
	@$(RUN) -m nat_pod lab demo dev

test: packages venv
	@tools/all-tests

quick: venv
	@tools/quick

test-vm: packages venv
	@tools/vm-root >/dev/null
	@$(RUN) -m pytest tests/vm

lint: venv
	@.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy

bootstrap: venv
	@$(RUN) -m nat_pod.plan.bootstrap

golden: venv
	@$(RUN) -m pytest -q --update-golden

dist: venv
	@tools/build

bench: packages venv
	@$(RUN) -m bench.dataplane
	@$(RUN) -m bench.plot
	@$(RUN) -m bench.noise

bench-engine: venv
	@PATH="$$(.ci/pulumi/install):$$PATH" $(RUN) -m bench.engine
	@PATH="$$(.ci/pulumi/install):$$PATH" $(RUN) -m bench.engine_routed

bench-commands: venv
	@$(RUN) -m bench.commands

bench-large: packages venv
	@PATH="$$(.ci/pulumi/install):$$PATH" $(RUN) -m bench.large

bench-change: packages venv
	@$(RUN) -m bench.change

venv: .venv/ready

.venv/ready: pyproject.toml | packages
	@echo "making .venv (pulumi, pulumi-oci, netaddr and the development tools; half a minute)"
	@test -x $(RUN) || $(PYTHON) -m venv .venv
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -e ".[dev]"
	@touch $@

packages:
	@tools/system-packages

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
