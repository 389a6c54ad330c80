export PYTHONDONTWRITEBYTECODE :=  # whatever the environment says: what is compiled once starts in half the time
PYTHON ?= python3
BIN := .venv/bin
LOCK := $(CURDIR)/$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --custom-compile-command "make lock"
INSTALL := $(BIN)/uv pip install --require-hashes --python $(BIN)/python
WORKER := build/my-worker
POINTS := sync async batch images

.DEFAULT_GOAL := help
.PHONY: help demo test test-sdk lint table bench image scale lock upgrade clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(WORKER)  ## Bake a worker and run its main job: local test, then production with a stream
	@$(MAKE) --no-print-directory -C $(WORKER) demo

test: $(BIN)/.ready-dev lint  ## Lint, then every bake, every suite, every image (if Docker runs), and the README's table
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# Not as $(MAKE), which --dry-run would follow into a worker that is not baked.
test-sdk: $(WORKER)  ## Bake a worker and run its tests with the oldest to the newest SDK; SDK="1.12.0 2.0.0rc2" names others
	@cd $(WORKER) && make test-sdk

lint: $(BIN)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

table: $(WORKER)  ## Write the table of documented patterns into the README
	@$(MAKE) --no-print-directory -C $(WORKER) .venv/bin/.ready-dev
	@cd $(WORKER) && PYTHONPATH=. .venv/bin/python $(CURDIR)/benchmarks/patterns.py $(CHECK)

lock: $(BIN)/.ready  ## Write every lock file from its pyproject.toml; what is locked stays
	$(LOCK) $(UPGRADE) pyproject.toml --output-file requirements.txt
	$(LOCK) $(UPGRADE) pyproject.toml --group dev --constraints requirements.txt --output-file requirements-dev.txt
	for point in $(POINTS); do \
		$(BIN)/cookiecutter . --no-input --overwrite-if-exists --output-dir build/$$point starting_point=$$point && \
		cd build/$$point/my-worker && \
		$(LOCK) $(UPGRADE) pyproject.toml --output-file requirements.txt && \
		cp requirements.txt "$(CURDIR)/{{cookiecutter.project_slug}}/starting_points/$$point/" && \
		cd "$(CURDIR)" || exit 1; \
	done
	cd build/sync/my-worker && \
		$(LOCK) $(UPGRADE) --group run $(POINTS:%=--constraints ../../%/my-worker/requirements.txt) \
			--output-file requirements-run.txt && \
		$(LOCK) $(UPGRADE) --group dev $(POINTS:%=--constraints ../../%/my-worker/requirements.txt) \
			--constraints requirements-run.txt --output-file requirements-dev.txt && \
		cp requirements-run.txt requirements-dev.txt "$(CURDIR)/{{cookiecutter.project_slug}}/"

upgrade:  ## Move all that is locked to what is newest
	@$(MAKE) --no-print-directory lock UPGRADE=--upgrade

bench: $(WORKER) $(BIN)/.ready-dev  ## Measure the documented handlers and this worker; write the README's table and chart
	@$(MAKE) --no-print-directory -C $(WORKER) .venv/bin/.ready-dev
	@PYTHONPATH=$(WORKER) $(BIN)/python benchmarks/speed.py $(WORKER) $(ARGS)

image: $(WORKER) $(BIN)/.ready-dev  ## Build the image; write into the README what is in it and how soon it starts
	@$(MAKE) --no-print-directory -C $(WORKER) .venv/bin/.ready-dev
	@PYTHONPATH=$(WORKER) $(BIN)/python benchmarks/image.py $(WORKER)

scale: $(WORKER) $(BIN)/.ready-dev  ## Measure map and small jobs over 1 to 8 workers; write the table in the baked docs/scaling.md, and a chart
	@$(MAKE) --no-print-directory -C $(WORKER) .venv/bin/.ready-dev
	@PYTHONPATH=$(WORKER) $(BIN)/python benchmarks/scale.py $(WORKER) $(ARGS)

clean:  ## Remove what these commands made
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache

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

$(BIN)/.ready-dev: $(BIN)/.ready requirements-dev.txt
	@echo "Installing what the tests and the benchmarks need ..."
	@$(INSTALL) --compile-bytecode --requirement requirements-dev.txt
	@touch $@
