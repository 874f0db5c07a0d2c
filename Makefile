# make run: build, bake the demo template, boot it, show its words, fork it. make test: every check and test.
SHELL := /bin/bash
.PHONY: run test build lint clean
export PATH := $(PATH):$(HOME)/.cargo/bin
KILN := $(CURDIR)/target/release/kiln
export KILN_HOME ?= $(CURDIR)/.kiln

run:
	@scripts/setup run
	cargo build --release --locked -p kiln-cli
	$(KILN) build examples/demo
	$(KILN) run --rm demo -- uname -a
	@echo "the exit code of a command in the guest is kiln's: kiln run --rm demo -- sh -c 'exit 7'"
	@$(KILN) run --rm demo -- sh -c 'exit 7'; code=$$?; echo "exit code $$code"; test $$code = 7
	$(KILN) build --snapshot examples/demo
	@echo "three machines that begin where that one was captured: kiln fork -n 3 demo"
	@names=$$($(KILN) fork -q -n 3 --rm demo) || exit; trap "$(KILN) rm -f $$(echo $$names) >/dev/null" EXIT; \
	for name in $$names; do $(KILN) exec $$name -- sh -c 'echo $$(hostname) $$(cat /etc/machine-id)' || exit; done; \
	$(KILN) ps --memory

build:
	@scripts/setup run
	cargo build --release --locked -p kiln-cli

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --manifest-path fuzz/Cargo.toml --no-default-features --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	scripts/arrows
	cargo deny --log-level error check licenses bans sources

test:
	@scripts/setup test
	$(MAKE) lint
	cargo nextest run --workspace --locked --profile ci

clean:
	cargo clean
