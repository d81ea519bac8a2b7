# make demo: fresh clone -> environment, embedded data, continued pretraining from weights/nano, out/demo/{samples.png,report.json}
# make test: fresh clone -> environment, lint, layer contracts, the test suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := out/demo
LOCK := requirements/$(shell $(PYTHON) -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")').txt
FONTS := fontconfig fonts-noto-color-emoji fonts-lxgw-wenkai fonts-noto-cjk
export JAX_PLATFORMS ?= cpu

.PHONY: demo test test-all lint env env-all fonts clean

demo: env fonts
	$(BIN)/python -m seedream_jax.recipe --config experiments/recipes/demo.py --workdir $(DEMO)

test: env fonts lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not heavy"

# The heavy ones too: parity with PyTorch, exports, compilation for TPUs.
test-all: env-all fonts lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

env: $(VENV)/.installed

$(VENV)/.installed: setup.py $(LOCK)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "seedream_jax needs Python >= 3.11, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(LOCK) -e '.[ocr,dev]'
	touch $@

env-all: $(VENV)/.installed-all

$(VENV)/.installed-all: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(LOCK) -e '.[ocr,dev,torch,plan]'
	touch $@

# Debian's font packages, installed when root; otherwise the message says what to install or which flag to give.
fonts: env
	@$(BIN)/python -m data_pipelines.posters.fonts >/dev/null 2>&1 || \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(FONTS) >/dev/null; fi
	@$(BIN)/python -m data_pipelines.posters.fonts

clean:
	rm -rf $(VENV) out
