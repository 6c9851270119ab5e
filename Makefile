# Every target sets up .venv by itself, from Python 3.11 or newer, make and git.
PYTHON ?= python3
DEVICE ?= cpu
BIN := .venv/bin
OK := .venv/.ok

export JUPYTER_PREFER_ENV_PATH := 1  # the python3 kernel is .venv's, whatever else is installed

.PHONY: help demo test slow bench notebooks docs lint clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 18

$(OK): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("knowloc needs Python 3.11 or newer, and this is %d.%d: make PYTHON=python3.11 TARGET" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(OK)  ## locate ten facts in SmolLM2, test the claim, write report/
	$(BIN)/knowloc demo

test: $(OK)  ## pytest, then every notebook; fails if either does
	@$(BIN)/python -m pytest -q tests; tests=$$?; \
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test nbs --n-workers 2 --timing; notebooks=$$?; \
	if [ $$tests$$notebooks = 00 ]; then echo "pytest passed, notebooks passed"; \
	else echo "failed: pytest exited with $$tests, notebooks with $$notebooks"; exit 1; fi

slow: $(OK)  ## the tests that take minutes
	$(BIN)/python -m pytest -q --slow -m slow tests

bench: $(OK)  ## what must be fast, beside a plain loop
	$(BIN)/python benchmarks/bench.py

notebooks: $(OK)  ## export, run every notebook in place, refresh README.md (DEVICE=cuda to use a GPU)
	$(BIN)/nbdev-export
	KNOWLOC_DEVICE=$(DEVICE) $(BIN)/python tools/notebooks.py
	$(BIN)/nbdev-clean
	$(BIN)/python tools/docs.py --readme

docs: $(OK)  ## build the site in _docs/ and check every internal link
	$(BIN)/python tools/docs.py

lint: $(OK)  ## ruff
	$(BIN)/ruff check .

clean:  ## remove what the other targets wrote, .venv excepted
	rm -rf _proc _docs build dist report *.egg-info .pytest_cache .ruff_cache .hypothesis nbs/nbdev.yml
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
