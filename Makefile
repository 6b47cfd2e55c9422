# make demo: from a fresh clone to the score table. make test: lint, types, tests. make ui: the graph.
# make test-slow: the tests that take long. make test-ray: those on a Ray cluster of two nodes, all on this machine.
# make test-vllm: those that need vLLM, with its CPU build (x86-64 Linux).
SUITS := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
# The first of these that runs and is recent enough (some are shims that only print advice).
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do $$p $(SUITS) && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
export DAGSTER_HOME ?= $(CURDIR)/dagster_home
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow test-ray test-vllm lint types ui setup lock clean
demo: $(READY)
	@$(BIN)/cs336 demo

ui: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cs336 ui

test: lint types
	$(BIN)/python -m pytest -n 2

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 -m slow

# Ray lies beside the environment, not in it: a folder more on the path, so that nothing else ever runs with it.
test-ray: $(VENV)-ray/ready
	@PYTHONPATH=$(abspath $(VENV)-ray) $(BIN)/python -c "import ray"
	PYTHONPATH=$(abspath $(VENV)-ray) $(BIN)/python -m pytest -m ray

# So does vLLM, which looks into every loaded module, and stumbles over some that other tests load.
test-vllm: $(VENV)-vllm/ready
	@PYTHONPATH=$(abspath $(VENV)-vllm) $(BIN)/python -c "import vllm"  # or every test would be skipped
	PYTHONPATH=$(abspath $(VENV)-vllm) HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1 \
	  $(BIN)/python -m pytest -m vllm $(shell grep -rl --include=test_*.py mark.vllm tests)

$(VENV)-ray/ready $(VENV)-vllm/ready: $(VENV)-%/ready: $(READY) requirements-%.lock
	@rm -rf $(@D)
	@$(BIN)/python -m pip install -qq --no-deps --target $(@D) -r requirements-$*.lock
	@touch $@

lint: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(READY)
	$(BIN)/mypy

setup: $(READY)

# The lock pins every package; `pip check` would object to a torch build other than the one pinned.
$(READY): requirements.lock pyproject.toml
	$(if $(shell $(or $(PYTHON),false) $(SUITS) && echo yes),,$(error Python 3.11 to 3.13 is needed; set PYTHON=/path/to/python3.12 (it is "$(PYTHON)")))
	@echo "installing the locked packages into $(VENV) (a minute or two; PyTorch is the large one)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq -r requirements.lock
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

# Pin what is installed now. The local part of a version, such as torch's +cpu, is another machine's affair.
lock:
	@{ echo "# Every package that the project is developed and tested with; made with \`make lock\`."; \
	$(BIN)/python -m pip freeze --exclude-editable --exclude cs336 --all | grep -vE '^pip=' | sed -e 's/+[a-z0-9.]*$$//' -e "s/^triton==.*/&; sys_platform == 'linux' and platform_machine == 'x86_64'/"; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean:
	rm -rf artifacts dagster_home/storage dagster_home/history dagster_home/schedules dagster_home/logs
