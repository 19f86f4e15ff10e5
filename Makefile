# Thin names over nox (noxfile.py), which keeps an environment for each job under .venv/nox. The first use of any
# target sets up all that it needs. ARGS is passed on: make test ARGS="-k presence".

NOX = .venv/bin/nox --session
MORE = $(if $(ARGS),-- $(ARGS))

.PHONY: help run test broken lint format docs fuzz autobahn bench bench-full build check-wheel clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# -P: what is installed, which has the core. exec: a SIGTERM to make reaches the demo, not a shell around it.
run: .venv/run  ## Start the chat demo with a node and a private Redis, and say where to open it
	@exec .venv/bin/python -P -m freeim.demo $(ARGS)

.venv/run: .venv/ready setup.py $(wildcard freeim/*.p* freeim/*/*.py freeim/lua/*.lua freeim/demo/static/*)
	.venv/bin/python -m pip install --quiet ".[demo]"
	@touch $@

test: .venv/ready  ## Build the wheels and test them, on each Python and each Redis that is here; fuzz them for a moment
	@$(NOX) test $(if $(ARGS),,sanitize) $(MORE)

broken: .venv/ready  ## Break lines of the code and see the tests of the promises fail, for an hour (ARGS="-j 2 -k resume")
	@$(NOX) broken $(MORE)

lint: .venv/ready  ## Check style, types, stubs and workflows
	@$(NOX) lint

format: .venv/ready  ## Let ruff write the style that lint asks for
	@$(NOX) format

docs: .venv/ready  ## Write the pages that are made from the code
	@$(NOX) docs

fuzz: .venv/ready  ## Repeat the property tests from other seeds and fuzz, for five minutes each (ARGS=seconds)
	@$(NOX) fuzz $(MORE)

autobahn: .venv/ready  ## Run the Autobahn testsuite against a node (needs a Python 2.7)
	@$(NOX) autobahn

bench: .venv/ready  ## Measure nodes and the helper against a bare send loop (ARGS="--quick", ARGS="fanout storm")
	@$(NOX) bench $(MORE)

bench-full: .venv/ready  ## Measure more, with 50,000 connections and ten minutes of everything at once
	@$(NOX) bench -- --full $(ARGS)

build: .venv/ready  ## Build the sdist, a wheel and the pure wheel into dist/
	@$(NOX) build

check-wheel: .venv/ready  ## Build, then look at the files as an index and other systems would
	@$(NOX) check_wheel

clean:  ## Remove everything that the targets above made
	rm -rf .venv build dist *.egg-info freeim/*.so .mypy_cache .pytest_cache .ruff_cache

.venv/ready: pyproject.toml tools/find-python
	python=$$(tools/find-python) && "$$python" -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv/bin/python -m pip install --quiet --upgrade --group dev
	@touch $@
