export PYTHONDONTWRITEBYTECODE :=  # whatever the environment says: what is compiled once starts in half the time
PYTHON ?= python3
BIN := .venv/bin
LOCK := $(CURDIR)/$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --custom-compile-command "make lock"
INSTALL := $(BIN)/uv pip install --require-hashes --python $(BIN)/python
TEMPLATE := {{cookiecutter.project_slug}}
WORKER := build/my-worker
POINTS := sync async batch images

.DEFAULT_GOAL := help
.PHONY: help demo test test-library test-template test-sdk fuzz simulate mutants lint wheel settings table bench image peers loops scale soak lock upgrade clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(WORKER)  ## Bake a worker and run its main job: local test, then production with a stream
	@$(MAKE) --no-print-directory -C $(WORKER) demo

test: lint test-library test-template  ## Everything: lint, the library, every bake, every image (if Docker runs)

# The test files of a folder. Those that take longest begin first; the others run beside them. Each is named: of a folder
# and a file in it, pytest takes the folder alone, in the order of the alphabet.
long_first = $(2:%=tests/test_%.py) $(filter-out $(2:%=tests/test_%.py),$(patsubst $(1)%,%,$(wildcard $(1)tests/test_*.py)))

test-template: $(BIN)/.ready-dev  ## The template's tests: every bake, its image, its updates; ARGS="tests/test_bake.py" runs some
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder \
		$(or $(ARGS),$(call long_first,,image baked first_hour cruft foreign))

test-library: $(BIN)/.ready-dev  ## The library's tests, from its source; ARGS="tests/test_pool.py" runs some
	cd library && ../$(BIN)/python -m pytest --numprocesses 4 --dist loadscope --no-loadscope-reorder \
		$(or $(ARGS),$(call long_first,library/,promises simulation local_workers faults map_batch map client demo bucket))

simulate: $(BIN)/.ready-dev  ## Run the worker through schedules that nobody thought of, for SECONDS=60; SEED=1 shows one; PLANTED=1 plants defects
	cd library && ../$(BIN)/python -m tests.simulation $(if $(PLANTED),--planted) $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))

fuzz: $(BIN)/.ready-dev  ## Make bytes from outside wrong at random, for SECONDS=600
	@cd library && end=$$(( $$(date +%s) + $(or $(SECONDS),600) )) && while [ $$(date +%s) -lt $$end ]; do \
		FUZZ_TIMES=5 ../$(BIN)/python -m pytest tests/test_fuzz.py $(ARGS) || exit 1; done

# Not as $(MAKE), which --dry-run would follow into a worker that is not baked.
test-sdk: $(WORKER)  ## Bake a worker and run its tests with the oldest to the newest SDK; SDK="1.12.0 2.0.0rc2" names others
	@cd $(WORKER) && make test-sdk

# Without what mutmut needs beside libcst for its own runner, some of which .venv has in other versions.
mutants: $(BIN)/.ready-dev  ## Break the worker's side in one place at a time; which breaks does no test notice? FILES="…" SAMPLE=100 SEED=1
	@$(BIN)/uv pip install --quiet --no-deps --target build/mutmut --requirement benchmarks/mutants/requirements.txt
	@PYTHONPATH=$(CURDIR)/build/mutmut nice $(BIN)/python benchmarks/mutants/mutants.py

lint: $(BIN)/.ready-dev
	$(BIN)/ruff check --config pyproject.toml .
	$(BIN)/ruff format --config pyproject.toml --check .
	$(BIN)/mypy
	cd library && ../$(BIN)/mypy

wheel: $(BIN)/.ready  ## Build the library into the template's vendor/, and have every lock file name it
	rm -rf build/wheel "$(TEMPLATE)/vendor" && mkdir "$(TEMPLATE)/vendor"
	$(BIN)/uv build --quiet --wheel --out-dir build/wheel library
	cp build/wheel/*.whl "$(TEMPLATE)/vendor/"
	cd build/wheel && ls *.whl | sed -E 's/^aggregating_worker-([^-]+)-.*/aggregating-worker==\1/' > "$(CURDIR)/$(TEMPLATE)/vendor/version.txt"
	@$(MAKE) --no-print-directory lock

settings: $(BIN)/.ready-dev  ## Write the library's settings into .env.example, the Hub's form and docs/settings.md
	@$(BIN)/python benchmarks/settings.py

table: $(BIN)/.ready-dev  ## Write the table of documented patterns into the README
	@$(BIN)/python benchmarks/patterns.py $(CHECK)

# A worker's own `make lock`, for each starting point; what is for tests and checks is locked once for all of them.
lock: $(BIN)/.ready  ## Write every lock file from its pyproject.toml; what is locked stays
	$(LOCK) $(UPGRADE) pyproject.toml --output-file requirements.txt
	$(LOCK) $(UPGRADE) pyproject.toml --group dev library/pyproject.toml --all-extras --group library/pyproject.toml:dev \
		--constraints requirements.txt --output-file requirements-dev.txt
	for point in $(POINTS); do \
		$(BIN)/cookiecutter . --no-input --overwrite-if-exists --output-dir build/$$point starting_point=$$point && \
		cd build/$$point/my-worker && \
		$(LOCK) $(UPGRADE) pyproject.toml --find-links vendor --emit-find-links --constraints vendor/version.txt \
			--upgrade-package aggregating-worker --output-file requirements.txt && \
		cp requirements.txt "$(CURDIR)/$(TEMPLATE)/starting_points/$$point/" && \
		cd "$(CURDIR)" || exit 1; \
	done
	cd build/sync/my-worker && \
		sed -n 's/^\([a-z].*==.*\) \\$$/\1/p' $(POINTS:%=../../%/my-worker/requirements.txt) | sort -u > ../constraints.txt && \
		$(LOCK) $(UPGRADE) requirements-run.in --find-links vendor --emit-find-links --constraints ../constraints.txt \
			--upgrade-package aggregating-worker --output-file requirements-run.txt && \
		$(LOCK) $(UPGRADE) requirements-dev.in --constraints requirements-run.txt --output-file requirements-dev.txt && \
		cp requirements-run.txt requirements-dev.txt "$(CURDIR)/$(TEMPLATE)/"

upgrade:  ## Move all that is locked to what is newest
	@$(MAKE) --no-print-directory lock UPGRADE=--upgrade

bench: $(BIN)/.ready-dev  ## Measure the documented handlers and this worker; write the README's table and chart
	@$(BIN)/python benchmarks/speed.py $(ARGS)

image: $(WORKER) $(BIN)/.ready-dev  ## Build the image; write into docs/image.md what is in it and how soon it starts
	@$(MAKE) --no-print-directory -C $(WORKER) .venv/bin/.ready
	@$(BIN)/python benchmarks/image.py $(WORKER)

scale: $(BIN)/.ready-dev  ## Measure map and small jobs over 1 to 8 workers; write the table in docs/scaling.md, and a chart
	@$(BIN)/python benchmarks/scale.py $(ARGS)

peers: $(BIN)/.ready-dev  ## Measure mosec and LitServe beside this worker, on the same work; write the table in docs/scaling.md
	@$(BIN)/uv venv --quiet --allow-existing build/peers
	@$(BIN)/uv pip install --quiet --python build/peers/bin/python --requirement benchmarks/peers/requirements.txt
	@$(BIN)/python benchmarks/peers.py build/peers/bin/python

soak: $(BIN)/.ready-dev  ## Everything at once, for SECONDS=3600: what is lost, and what grows; write it into docs/faults.md
	@$(BIN)/python benchmarks/soak.py $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

loops: $(BIN)/.ready-dev  ## Measure the worker on uvloop and on asyncio; write the table in docs/decisions/asyncio-alone.md
	@$(BIN)/python benchmarks/loops.py

clean:  ## Remove what these commands made
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache library/.pytest_cache library/.hypothesis

# Baked anew each time, into the same folder: what is installed there stays. ANSWERS=starting_point=batch for another.
.PHONY: $(WORKER)
$(WORKER): $(BIN)/.ready
	@$(BIN)/cookiecutter . --no-input --overwrite-if-exists --output-dir build $(ANSWERS)

$(BIN)/.ready: requirements.txt
	@echo "Installing cookiecutter into .venv ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.txt > .venv/uv.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/uv.txt
	@$(INSTALL) --quiet --requirement requirements.txt
	@touch $@

$(BIN)/.ready-dev: $(BIN)/.ready requirements-dev.txt library/pyproject.toml
	@echo "Installing the library, and what the tests and the benchmarks need ..."
	@$(INSTALL) --compile-bytecode --requirement requirements-dev.txt
	@$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python --editable library
	@touch $@
