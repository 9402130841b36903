# Two commands matter: `make demo` and `make test`. Each builds .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := train,offline,cluster,federated,dev

.PHONY: .venv demo test lint docs web check clean

.venv: .venv/installed

# uv resolves and links in a minute what takes pip ten; it lives inside the environment and needs nothing else.
# Bytecode is compiled here: where Python may not write it (PYTHONDONTWRITEBYTECODE), every start would take twice as long.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

# The whole method on built-in phantoms: offline, seven minutes on two cores.
demo: .venv
	$(BIN)/tskd demo --out out/demo

# One thread a worker: two torch processes of two threads each on two cores are ten times slower, not twice. Three workers
# on two cores: one or the other waits for processes that it has started.
test: .venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# The documentation as a site in docs/_build; a warning is an error.
docs: .venv
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build

# What `tskd export --web` copies: onnxruntime for browsers, by the digests of package-lock.json. Needs npm and a network;
# a wheel that is built afterwards has it inside.
web:
	npm ci --prefix tskd/web --ignore-scripts --no-audit --no-fund

lint: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --verbose

check: lint test

clean:
	rm -rf .venv out build *.egg-info
