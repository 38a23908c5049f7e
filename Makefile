# longreel: `make demo` trains a small video model and samples from it, `make test` tests everything.
# Both set up the machine first (scripts/setup.sh) and need only git, make, a Rust toolchain and Python 3.

CARGO ?= cargo
LONGREEL = target/release/longreel
DEMO = runs/demo# as in configs/demo.toml
MPI = $(shell command -v mpicc >/dev/null && echo --features mpi)# where there is one, tests start ranks as processes too
PEERS ?= $(HOME)/.cache/longreel-peers

.PHONY: help demo million test lint faults fuzz check-cuda gpu-bundle gpu-rehearsal setup build golden bench bench-peers-setup clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## learn eight scenes of a film by heart on two ranks, sample each, measure; minutes on two cores, the first build apart
	rm -rf $(DEMO)
	$(LONGREEL) train configs/demo.toml
	$(LONGREEL) sample $(DEMO) --label hoop --count 1 -o $(DEMO)/hoop.mp4
	$(LONGREEL) sample $(DEMO) -o $(DEMO)/samples.png
	$(LONGREEL) report $(DEMO) -o $(DEMO)/report.html
	benches/quality.py $(DEMO) --count 16 --json $(DEMO)/quality.json
	@echo
	@echo "one scene, from noise      $(DEMO)/hoop.mp4"
	@echo "all eight, a sheet         $(DEMO)/samples.png"
	@echo "how they came about, a page $(DEMO)/report.html, or: $(LONGREEL) watch $(DEMO)"
	@test -s $(DEMO)/hoop.mp4 -a -s $(DEMO)/samples.png -a -s $(DEMO)/report.html

million: build datasets/film/bbb.mp4 ## a whole training step on 1,051,200 tokens of 720p film: hours of attention on two cores
	mkdir -p runs
	$(LONGREEL) plan configs/million.toml
	$(LONGREEL) train configs/million.toml $(if $(wildcard runs/million/checkpoints),--resume)

datasets/film/bbb.mp4: | setup
	datasets/make.py film

test: setup ## all tests: unit, integration, documentation, and that the examples build; ranks as threads and under mpirun
	@scripts/setup-browser.sh
	$(CARGO) test --release --locked $(MPI)
	CARGO="$(CARGO)" scripts/test-older-cpus.sh $(MPI)
	CARGO="$(CARGO)" scripts/test-features.sh

faults: setup ## kills, full disks, damaged files, hostile hubs, dead ranks: FAULTS="--minutes 10 --seed 1" (docs/reliability.md)
	$(CARGO) build --release --locked $(MPI)
	$(CARGO) test --release --locked $(MPI) --no-run
	tests/faults/run.py $(FAULTS)

fuzz: setup ## fuzz targets of the parsers, a minute each (scripts/fuzz.sh); needs cargo-fuzz
	scripts/fuzz.sh

lint: setup ## formatting, clippy, width of lines, shell and Python scripts; warnings are errors (scripts/lint.sh)
	CARGO="$(CARGO)" scripts/lint.sh $(MPI)

check-cuda: setup ## compile the CUDA kernels for every GPU and judge the result, without a GPU: nvcc comes from PyPI, 300 MB
	scripts/check-cuda.sh

gpu-bundle: setup ## a folder to take to a machine with a GPU: longreel, its GPU tests, and run.sh, which checks, measures and reports
	scripts/gpu-bundle.sh

gpu-rehearsal: setup ## the bundle's GPU tests and run.sh without a GPU: on an emulated driver; builds the bundle first, a quarter of an hour
	scripts/gpu-rehearsal.sh

setup: ## install what is missing (apt, on Debian), check Rust and Python; quiet when all is there
	@scripts/setup.sh

build: setup
	$(CARGO) build --release --locked

golden: ## rewrite the golden files with diffusers (needs bench-peers-setup)
	$(PEERS)/bin/python tests/golden/make.py write tests/golden

bench: build ## against PyTorch, diffusers and DeepSpeed on this CPU, in turn: hours on an idle machine; sets the peers up if missing
	@test -x $(PEERS)/bin/torchrun || benches/peers/setup.sh $(PEERS)
	@mkdir -p runs
	benches/compare.py --peers $(PEERS) --json runs/compare.json

bench-peers-setup: ## PyTorch, diffusers and DeepSpeed to measure against: 5 GB under ~/.cache
	benches/peers/setup.sh $(PEERS)

clean: ## remove what was built; runs/ stays
	$(CARGO) clean
