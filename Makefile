# make demo, make test, make bench: each sets up .venv by itself, from requirements.lock.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PROJECTS := core plugins/reference plugins/paddle plugins/onnxruntime plugins/openvino plugins/ascend plugins/qualcomm plugins/tensorrt
# Of npu/qualcomm the plugin alone: its SDK (98.6 MB) is for who wants it, `.venv/bin/pip install onnxruntime-qnn==2.7.0`.
NODE_ADAPTERS := cpu/onnxruntime cpu/openvino cpu/reference
# For the checks of gpu/tensorrt without a GPU, beside .venv's own packages: they are loaded by its tests alone.
BINDINGS := tensorrt-10 tensorrt-11 cuda
DOWNLOAD := 460 MB
DISK     := 1.6 GB

# NVIDIA's GPUs have an environment of their own: onnxruntime-gpu takes the import name of onnxruntime.
GPU_VENV := .venv-gpu
GPU_BIN  := $(GPU_VENV)/bin
GPU_READY := $(GPU_VENV)/.ready
GPU_PROJECTS := core plugins/reference plugins/paddle plugins/onnxruntime $(wildcard plugins/tensorrt)
GPU_DOWNLOAD := 1.5 GB
GPU_DISK     := 4 GB

# Tests and the demo start hundreds of interpreters: each would compile all of the core again where this is set.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test long lint bench precision memory isolation auto nodes light conformance schema test-gpu bench-gpu clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python -m examples.demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long"

# The tests that take ten seconds or more each, beside all others.
long: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy core/paddock $(filter-out %.egg-info,$(wildcard plugins/*/paddock_*)) examples benchmarks
	$(BIN)/mypy --exclude 'conftest\.py$$' core/tests tests $(wildcard plugins/*/tests)

bench: $(READY)
	$(BIN)/python -m benchmarks.overhead

# Error, time and size in fp32, bf16, fp16 and int8, for five models on each CPU adapter, beside the backends' own ways.
precision: $(READY)
	$(BIN)/python -m benchmarks.precision

# Layouts on MiniMalloc's instances and on real graphs, what runtimes take beside what was planned, and that nothing grows.
memory: $(READY)
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.layouts
	$(BIN)/python -m benchmarks.footprint
	$(BIN)/python -m benchmarks.growth

# What a process of its own costs a request, and how soon one that is killed is back.
isolation: $(READY)
	$(BIN)/python -m benchmarks.isolation

# "auto" on ten models, beside each fixed adapter and an exhaustive search: an hour, on a machine with nothing else to do.
auto: $(READY)
	$(BIN)/python -m benchmarks.auto --pairs --resume

# ONNX's own backend node tests on every CPU adapter that is fed ONNX: what runs natively, helped, not, or wrong.
nodes: $(READY)
	$(BIN)/python -m paddock.testing $(NODE_ADAPTERS:%=--adapter %) --chain cpu/onnxruntime,cpu/reference

# The nine real networks that ship with onnx, with random weights, on the same adapters.
light: $(READY)
	$(BIN)/python -m paddock.testing.light $(NODE_ADAPTERS:%=--adapter %) --chain cpu/onnxruntime,cpu/reference

# Every adapter of these plugins, held to all that it declares; FORM=full adds sizes, runs and ONNX's own node tests.
FORM ?= quick
conformance: $(READY)
	PADDOCK_CONFORMANCE=$(FORM) $(BIN)/python -m pytest -n 2 --dist loadscope $(wildcard plugins/*/tests/test_*_conformance.py)

# What needs an NVIDIA GPU, skipped with the reason where there is none; and what NVIDIA's libraries say without one.
test-gpu: $(GPU_READY)
	$(GPU_BIN)/python -m pytest tests/test_gpu.py tests/test_gpu_benchmark.py \
		$(wildcard plugins/onnxruntime/tests/test_cuda_*.py plugins/tensorrt/tests)

# Ratios against the native APIs, latency by batch, and that nothing is left on the device; the reason where there is no GPU.
bench-gpu: $(GPU_READY)
	$(GPU_BIN)/python -m benchmarks.gpu

schema: $(READY)
	$(BIN)/paddock schema > adapters_json/hardware_config.schema.json

$(READY): requirements.lock $(PROJECTS:%=%/pyproject.toml) core/setup.py $(wildcard core/paddock/planning/*.cpp) $(BINDINGS:%=plugins/tensorrt/tests/%.txt)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit("Paddock needs Python 3.11 or 3.12, %s is %d.%d: run make PYTHON=python3.11" % (sys.executable, *v))'
	@echo "Setting up $(VENV) with $$($(PYTHON) --version): downloads about $(DOWNLOAD) once (PaddlePaddle, OpenVINO, ONNX Runtime), takes $(DISK) of disk."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(PROJECTS:%=--editable %)
	@for set in $(BINDINGS); do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/bindings/$$set \
			--requirement plugins/tensorrt/tests/$$set.txt || echo "$$set is not to be had: tests that need it will be skipped"; \
	done
	@touch $@

$(GPU_READY): requirements-gpu.lock $(GPU_PROJECTS:%=%/pyproject.toml) core/setup.py $(wildcard core/paddock/planning/*.cpp)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit("Paddock needs Python 3.11 or 3.12, %s is %d.%d: run make PYTHON=python3.11" % (sys.executable, *v))'
	@echo "Setting up $(GPU_VENV) with $$($(PYTHON) --version): downloads about $(GPU_DOWNLOAD) once (ONNX Runtime for CUDA, CUDA's libraries, PaddlePaddle), takes $(GPU_DISK) of disk."
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-gpu.lock
	$(GPU_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(GPU_PROJECTS:%=--editable %)
	@touch $@

clean:
	rm -rf $(VENV) $(GPU_VENV) out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -o -name '*.egg-info' | xargs rm -rf
