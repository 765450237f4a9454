# `make` lists what there is. Everything is a line or a script: nothing here needs reading to be used.

SHELL := bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PREFIX ?= $(HOME)/.local
KAFKA ?= embedded

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: setup
setup: ## Install whatever is missing: packages, libtorch, Postgres, Kafka, photographs, linters, Helm
	@scripts/setup.sh

.PHONY: libtorch
libtorch: ## Lay out libtorch in .deps (CUDA=1: the full CUDA build, 2.5 GB to download)
	@scripts/setup.sh pip
	@if [[ -n "$$LIBTORCH" ]]; then echo "note: LIBTORCH=$$LIBTORCH is set, so builds use that one"; fi
	@before=$$(cat .deps/libtorch/flavour 2>/dev/null || true); \
	python3 scripts/libtorch.py $(if $(filter-out 0,$(CUDA)),--cuda) .deps/libtorch; \
	if [[ -d target && "$$before" != "$$(cat .deps/libtorch/flavour)" ]]; then cargo clean --quiet --package torch-sys; fi

.PHONY: demo
demo: ## Score photographs through Kafka, S3 and Postgres (PHOTOS=DIR: your own; KAFKA=apache: a real broker)
	@scripts/setup.sh build postgres $(if $(PHOTOS),,photos) $(if $(filter apache,$(KAFKA)),kafka)
	@cargo run --bin roc4mllm -- demo --kafka $(KAFKA) $(if $(PHOTOS),--photos "$(PHOTOS)") $(ARGS)

.PHONY: demo-serve
demo-serve: ## The demo, kept running at http://127.0.0.1:8080/ (page, labelling, scoring API) until Ctrl-C
	@$(MAKE) demo ARGS="--serve --pace 5 --listen 127.0.0.1:8080 $(ARGS)"

.PHONY: test
test: setup ## Lint, then run every test (ALLOW_SKIP=1: skipped tests are no failure)
	@scripts/lint.sh
	@scripts/test.sh
	@python3 scripts/chart_test.py

.PHONY: chart-test
chart-test: ## Test the Helm chart: render, validate, change each value, fire each alert (ONLY=word: checks so named)
	@scripts/setup.sh build postgres chart
	@cargo build --locked --quiet --bin roc4mllm
	@python3 scripts/chart_test.py $(ONLY)

.PHONY: chart-docs
chart-docs: ## Write the chart's schema and its table of values anew, after a change of values.yaml
	@scripts/setup.sh chart
	@python3 scripts/chart_docs.py

.PHONY: page-test
page-test: ## Drive the page in a headless Chromium, and the scoring API with schemathesis (SCREENSHOTS=1: write docs/images)
	@scripts/setup.sh build postgres photos web
	@ROC4MLLM_SCREENSHOTS="$(if $(filter 1,$(SCREENSHOTS)),$(CURDIR)/docs/images)" \
		cargo test --locked --test page_browser --test worker -- --nocapture browser page:: scoring_api::

.PHONY: chaos
chaos: ## Break everything once, and look for what was lost or doubled (ROWS=1,8 SEEDS=3 BREAK=RULE LANES=2)
	@scripts/setup.sh build postgres kafka pgbouncer
	@ROC4MLLM_CHAOS="$(or $(ROWS),all)" ROC4MLLM_CHAOS_SEEDS="$(SEEDS)" ROC4MLLM_CHAOS_BREAK="$(BREAK)" \
		ROC4MLLM_CHAOS_LANES="$(LANES)" cargo test --locked --quiet --test chaos

.PHONY: soak
soak: ## Load for MINUTES=10 with a fault every 20 s, and memory over time (BACKLOG=1: memory with 20,000 records waiting)
	@scripts/setup.sh build postgres kafka
	@ROC4MLLM_SOAK="$(if $(filter 1,$(BACKLOG)),backlog,$(or $(MINUTES),10))" cargo test --locked --quiet --test chaos

.PHONY: lint
lint: ## Formatting, clippy, licences, unused dependencies, scripts
	@scripts/setup.sh build tools
	@scripts/lint.sh

.PHONY: fmt
fmt: ## Format the code
	@cargo fmt

.PHONY: bench
bench: ## Measure, and write target/bench/results.json
	@scripts/setup.sh build postgres kafka bench
	@rm -f target/bench/results.json
	@cargo bench --locked

.PHONY: fuzz
fuzz: ## Fuzz what reads strangers' bytes, a minute each (FUZZ_SECONDS=n, TARGET=name, MERGE=1: keep what was found)
	@scripts/setup.sh build
	@MERGE=$(MERGE) scripts/fuzz.sh $(or $(FUZZ_SECONDS),60) $(TARGET)

.PHONY: demo-model
demo-model: ## Train a small model of its own on photographs made worse in known ways (SEED=1)
	@scripts/setup.sh build photos
	@SEED=$(or $(SEED),1) scripts/demo-model.sh

.PHONY: install
install: ## Install an optimised build with its libraries (PREFIX=DIR, ~/.local by default)
	@scripts/setup.sh build
	@scripts/install.sh "$(PREFIX)" $(or $(PROFILE),release) "$(FEATURES)"

.PHONY: image
image: ## Build the container image (FLAVOUR=cuda; RUST_IMAGE=, BASE_IMAGE=: pinned by digest)
	@RUST_IMAGE="$(RUST_IMAGE)" BASE_IMAGE="$(BASE_IMAGE)" scripts/image.sh $(or $(FLAVOUR),cpu)

.PHONY: sbom
sbom: ## List what is in the image as CycloneDX JSON, in target/sbom (FLAVOUR=cuda)
	@scripts/setup.sh pip
	@python3 scripts/sbom.py $(or $(FLAVOUR),cpu)

.PHONY: clean-deps
clean-deps: ## Remove what setup downloaded (not apt's packages)
	rm -rf .deps
