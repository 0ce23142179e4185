# Two commands for everyone, demo and test; the others are for development.
# PYTHON=... chooses the interpreter, ARGS=... is passed on to pytest: -m quick takes a minute, and
# -n 0 runs all in one process.
.PHONY: help demo test lint typing bench docs serve clean
.NOTPARALLEL:

RUN = sh scripts/without_settings.sh .venv/bin/python

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | expand -t 10

demo: ## execute the quickstart notebook and show what it consumed
	@sh scripts/setup_venv.sh demo
	@$(RUN) -m scripts.demo

test: ## run all tests; ARGS="-m quick" those that take a minute
	@sh scripts/setup_venv.sh test
	@$(RUN) -m pytest -n auto --dist worksteal $(ARGS)

lint: ## check style, import rules, structure, docstrings, spelling, scripts, workflows, notebooks
	@sh scripts/setup_venv.sh dev
	@$(RUN) -m nox -s lint

typing: ## check types, also of an application against the built wheel
	@sh scripts/setup_venv.sh dev
	@$(RUN) -m nox -s typing

bench: ## measure everything beside its peers and write the documentation's table
	@sh scripts/setup_venv.sh dev
	@$(RUN) -m nox -s bench -- $(ARGS)

docs: ## build the documentation into site/
	@sh scripts/setup_venv.sh dev
	@$(RUN) -m nox -s docs

serve: ## show the documentation at a local address and rebuild it on changes
	@sh scripts/setup_venv.sh dev
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs serve

clean: ## remove build results and caches, keep .venv
	rm -rf build dist site .nox .hypothesis .import_linter_cache .mypy_cache .pytest_cache \
	    .ruff_cache .coverage .coverage.* htmlcov
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
