# make demo · make compare · make check · make test · make lint; each makes .venv on its first call and only then.
PYTHON ?= python3
BIN = .venv/bin
# Huge pages for large arrays: fewer page faults on a CPU (glibc; ignored elsewhere).
export GLIBC_TUNABLES = glibc.malloc.hugetlb=1

demo: .venv/installed
	$(BIN)/python -m experiments.compare --config configs/demo.py --workdir runs/demo

compare: .venv/installed
	$(BIN)/python -m experiments.compare --config configs/demo.py:compare --workdir runs/compare

check: .venv/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

test: .venv/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.venv/installed: setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# torch by its exact number: a range would fetch the build with gigabytes of GPU libraries.
.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

.PHONY: demo compare check test lint
