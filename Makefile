PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-cpus fuzz kill lint clean

demo: $(READY)  ## train a small ViT supernet on scikit-learn's digits, search it, write the Pareto set
	$(BIN)/qnas profile --detect --name this-machine --out demo
	OMP_NUM_THREADS=1 $(BIN)/qnas train --config examples/digits-vit/train.toml  # too small a model for more
	$(BIN)/qnas tune --config examples/digits-vit/tune.toml
	@echo "The result is in demo/digits: report.html, pareto.json and pareto/*/model.onnx"

test: $(READY)  ## run the suite, in two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-cpus: $(READY)  ## run the suite under each kind of OpenBLAS kernels that this CPU has
	$(BIN)/python tests/cpus.py

fuzz: $(READY)  ## damaged and forged files of every kind, for five minutes
	$(BIN)/python -m benchmarks.robustness.fuzz --minutes 5

kill: $(READY)  ## kill each command twenty times; nothing may be lost
	$(BIN)/python -m benchmarks.robustness.kill --kills 20

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,demo]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist
