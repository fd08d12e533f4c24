# What a person does with nerite's source. Each rule says what it makes; the
# slow products (guest kernel, machine) are cached by digest below
# ${XDG_CACHE_HOME:-~/.cache}/nerite and cost nothing the second time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

TARGET := target
STAGE := $(TARGET)/stage
TRIPLE := x86_64-unknown-linux-gnu
DESTDIR ?=
PREFIX ?= /usr/local

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

.PHONY: demo
demo: stage ## Run busybox and Debian in nerite's machines, and show what happens
	@tests/machine/run --timeout 900 -- /opt/payload/share/nerite/demo

.PHONY: test
test: lint unit fuzz integration ## Run every test: unit, fuzz, integration in the machine

.PHONY: lint
lint: dependencies ## Check format and lints
	@cargo fmt --all --check
	cargo clippy --quiet --all-targets -- -D warnings
	cargo clippy --quiet -p agent -p tests -p conformance -p fuzz --all-targets -- -D warnings

.PHONY: unit
unit: dependencies ## Run the tests that need no virtual machine
	@cargo test --quiet
	cargo test --quiet -p protocol --features rpc
	cargo test --quiet -p agent
	cargo test --quiet -p fuzz

.PHONY: fuzz
fuzz: dependencies ## Fuzz each guest-facing parser for FUZZ_SECONDS (60) from its corpus
	@tests/fuzz/run $${FUZZ_SECONDS:-60}

.PHONY: integration
integration: stage ## Run the integration tests in the machine
	@cargo test --quiet --release -p tests --no-run
	tests/integration

.PHONY: test-full
test-full: stage ## Run also what is known to be wrong
	@cargo test --quiet --release -p tests --no-run
	tests/integration --include-ignored

.PHONY: bench
bench: stage ## Measure on the reference machine; rewrites tests/bench/results
	@tests/bench/run

.PHONY: machine
machine: dependencies ## Build the Debian 13 test machine
	@tests/machine/build

.PHONY: dependencies
dependencies:
	@tests/machine/dependencies

.PHONY: kernel
kernel: dependencies ## Build the guest kernel
	@cargo build --quiet --release -p guest-kernel
	mkdir -p $(STAGE)/lib/nerite
	$(TARGET)/release/guest-kernel build --output $(STAGE)/lib/nerite/vmlinux

# Alone, so that no other member's features reach it; static, so that the OS
# layer needs no library; fixed address, which is 4 % smaller.
.PHONY: agent
agent: dependencies ## Build the guest's agent
	@RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' \
	    cargo build --quiet -p agent --profile guest --target $(TRIPLE)

.PHONY: stage
stage: kernel agent ## Build everything into target/stage, laid out as installed
	@cargo build --quiet --release
	install -Dm755 $(TARGET)/release/nerite $(STAGE)/bin/nerite
	install -Dm755 $(TARGET)/release/containerd-shim-nerite-v2 -t $(STAGE)/bin
	install -Dm755 $(TARGET)/release/nerite-vmm $(STAGE)/lib/nerite/nerite-vmm
	install -Dm755 $(TARGET)/release/nerite-fs $(STAGE)/lib/nerite/nerite-fs
	$(TARGET)/release/rootfs-builder os --agent $(TARGET)/$(TRIPLE)/guest/nerite-agent \
	    --output $(STAGE)/lib/nerite/os.erofs
	install -Dm755 tests/demo $(STAGE)/share/nerite/demo
	$(STAGE)/bin/nerite generate --man $(STAGE)/share/man/man1 --completions $(TARGET)/completions

.PHONY: install
install: stage ## Install below DESTDIR and PREFIX (/usr/local)
	@root=$(DESTDIR)$(PREFIX)
	install -Dm755 $(STAGE)/bin/nerite $(STAGE)/bin/containerd-shim-nerite-v2 -t $$root/bin
	install -Dm755 $(STAGE)/lib/nerite/nerite-vmm $(STAGE)/lib/nerite/nerite-fs -t $$root/lib/nerite
	install -m644 $(STAGE)/lib/nerite/vmlinux $(STAGE)/lib/nerite/os.erofs $$root/lib/nerite/
	install -d $$root/share/man/man1
	install -m644 $(STAGE)/share/man/man1/*.1 $$root/share/man/man1/
	install -Dm644 $(TARGET)/completions/nerite.bash $$root/share/bash-completion/completions/nerite
	install -Dm644 $(TARGET)/completions/_nerite $$root/share/zsh/site-functions/_nerite
	install -Dm644 $(TARGET)/completions/nerite.fish $$root/share/fish/vendor_completions.d/nerite.fish
	echo "installed in $$root; try: $$root/bin/nerite check"

.PHONY: clean
clean: ## Remove what was built here; the cache stays
	@cargo clean --quiet
