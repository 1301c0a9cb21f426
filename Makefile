# The README's two commands: `make demo` runs the main job, `make test` the suite, both in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := results/demo

# Slow by nature: what `make test` leaves out, and its properties on 20 times as many examples, drawn anew each time.
PROPERTIES := $(addprefix tests/,flows/test_invariants.py flows/models flows/steady flows/ensembles \
	landscapes/krylov landscapes/noise landscapes/toys)
PYTEST = $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8

.PHONY: demo test soak wheel check bench tables clean

$(VENV)/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,bench]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m scripts.compare rosenbrock --h 0.002 --steps 80 --rtol 1e-8 --threads 1 --out $(OUT)/rosenbrock
	$(BIN)/python -m scripts.compare quadratic --h 0.9 --steps 12 --rtol 1e-6 --threads 1 --out $(OUT)/quadratic-0.9
	$(BIN)/python -m scripts.compare quadratic --h 1.05 --steps 12 --rtol 1e-6 --threads 1 --out $(OUT)/quadratic-1.05
	$(BIN)/python -m scripts.compare barrier-valley --h 0.0985 --steps 24 --flows gradient modified-2 modified-3 \
		--threads 1 --out $(OUT)/barrier-valley
	$(BIN)/python -m scripts.compare net --architecture shwartz-ziv --steps 12 --flows gradient modified-2 modified-3 \
		--dtype float32 --threads 1 --out $(OUT)/shwartz-ziv
	$(BIN)/python -m scripts.compare net --architecture resnet-20 --data digits --width 0.125 --steps 2 \
		--dtype float32 --threads 1 --out $(OUT)/resnet-20
	$(BIN)/python -m scripts.compare net --architecture lenet --data digits --examples 300 --h 0.2 --steps 8 \
		--descent sgd --sampling subset --batch-size 20 --runs 3 --coupled --flows gradient sde-1 sde-2 \
		--dtype float32 --threads 1 --out $(OUT)/sde
	$(BIN)/python -m scripts.principal_flow quadratics --threads 1 --out $(OUT)/principal-flow
	$(BIN)/python -m scripts.modified_equation --method euler --order 4 --out $(OUT)/modified-equation
	$(BIN)/python -m scripts.orders rosenbrock --b 5 --flows gradient modified-2 modified-3 modified-4 --threads 1 \
		--out $(OUT)/orders
	$(BIN)/python -m scripts.gallery --out $(OUT)/gallery.png
	$(BIN)/python -m scripts.compare net --architecture lenet --data digits --examples 300 --h 0.6 --steps 16 \
		--descent gd sgd --rtol 1e-4 --atol 1e-6 --krylov 12 --krylov-tolerance 1e-4 --dtype float32 --threads 1 --out $(OUT)/cnn

test: $(VENV)/installed
	$(PYTEST)

soak: $(VENV)/installed
	$(PYTEST) -m soak --durations 15
	THALWEG_HYPOTHESIS=soak $(PYTEST) -m 'hypothesis and not soak' --durations 15 $(PROPERTIES)

wheel: $(VENV)/installed
	$(BIN)/python -m pytest -m wheel tests/test_wheel.py

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

tables: $(VENV)/installed
	$(BIN)/python -m flows.catalogue README.md docs/models.md

bench: $(VENV)/installed
	$(BIN)/python -m scripts.benchmark

clean:
	rm -rf $(VENV) results build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
