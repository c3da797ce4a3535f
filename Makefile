# mailbell's Makefile. `make run` and `make test` are all that a newcomer needs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
BIN := bin/mailbell
PKGS ?= ./...

# Tools are pinned here and run straight from their module.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
DEADCODE := golang.org/x/tools/cmd/deadcode@v0.51.0
PROTOC_GEN_GO := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
PROTOC_GEN_GO_GRPC := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION) -X github.com/mailbell/mailbell/internal/ops.linkedCommit=$(COMMIT)

# TESTFLAGS is for one's own use: make test TESTFLAGS='-run Dovecot -v' PKGS=./cmd/...
TESTFLAGS ?=
TEST_TIMEOUT ?= 15m
# Where tests keep pictures of the pages that they looked at.
export TEST_SCREENSHOTS ?= $(CURDIR)/test-output

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: build
build: ## Build bin/mailbell
	@mkdir -p bin
	$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/mailbell

.PHONY: run
run: build ## Everything in one process, with the demo page (RUNFLAGS='--http 127.0.0.1:8480 …')
	@exec $(BIN) run $(RUNFLAGS)

.PHONY: test
test: deps build web-check roundcube-check ## Install what the tests need, then run all of them
	$(GO) test -race -shuffle=on -timeout $(TEST_TIMEOUT) $(TESTFLAGS) $(PKGS)
	cd deploy/check && $(GO) test ./...
	@if [ -z "$(TESTFLAGS)" ] && [ "$(PKGS)" = ./... ]; then $(MAKE) --no-print-directory scale; fi

.PHONY: scale
scale: ## The notifier at its stated sizes, which the race detector would not let be: memory, churn, takeover, allocations
	MAILBELL_MEMORY=15000 MAILBELL_CHURN=50000 MAILBELL_TAKEOVER=10000 $(GO) test -count=1 -timeout 5m \
	  -run '^(TestMemoryPerConnection|TestChurn|TestTakeoverUnderLoad|TestUpgradeAllocations)$$' ./notifier

.PHONY: deps
deps: ## Install what the tests need: Debian packages, Kafka, npm modules
	@bash .ci/packages
	@if [ -f deploy/kafka/fetch.sh ]; then bash deploy/kafka/fetch.sh >/dev/null; fi
	$(GO) mod download

.PHONY: web-check
web-check: ## Check the types of the browser client, run its tests
	@if [ -f web/package.json ]; then cd web && npm ci --silent --no-audit --no-fund --no-progress && npm run --silent check && npm test --silent; fi

.PHONY: roundcube-client
roundcube-client: ## Copy the browser client into the folder of the Roundcube plugin
	cp web/mailbell.js deploy/roundcube/mailbell/mailbell.js

.PHONY: roundcube-check
roundcube-check: ## Check the PHP of the Roundcube plugin, run its unit tests
	@for f in $$(git ls-files 'deploy/roundcube/*.php' 'deploy/roundcube/*.inc' 'deploy/roundcube/*.dist'); do \
	  said=$$(php -l "$$f" 2>&1) || { echo "$$said"; exit 1; }; \
	done
	@phpcs --standard=deploy/roundcube/phpcs.xml
	@php deploy/roundcube/test/unit.php >/dev/null || php deploy/roundcube/test/unit.php
	@node --test deploy/roundcube/test/ >/dev/null || node --test deploy/roundcube/test/

.PHONY: short
short: ## The tests that need nothing but Go
	$(GO) test -race -shuffle=on -short -timeout 5m $(TESTFLAGS) $(PKGS)

CHAOS_SEED ?= 2026

.PHONY: chaos
chaos: deps build ## 30 minutes of faults on this machine, and a ledger that must balance; the report goes to docs/chaos.json
	$(BIN) bench chaos --minutes 30 --seed $(CHAOS_SEED) --rate 150 --every 3500ms --verbose --json >docs/chaos.json.new
	mv docs/chaos.json.new docs/chaos.json

.PHONY: check
check: lint test ## Everything that CI checks

.PHONY: lint
lint: fmt-check vet staticcheck roundcube-check ## Format, vet, staticcheck, module files, shell scripts, PHP
	$(GO) mod tidy -diff
	cd bench/compare-servers && $(GO) vet ./...
	@for f in $$(git ls-files '*.sh' .ci); do bash -n "$$f"; done

.PHONY: fmt
fmt: ## Format the Go code
	gofmt -s -w $$(git ls-files '*.go')

.PHONY: fmt-check
fmt-check:
	@bad=$$(gofmt -s -l $$(git ls-files '*.go')); \
	if [ -n "$$bad" ]; then echo "not formatted (make fmt):"; echo "$$bad"; exit 1; fi

.PHONY: vet
vet:
	$(GO) vet $(PKGS)

.PHONY: staticcheck
staticcheck:
	$(GO) run $(STATICCHECK) $(PKGS)

.PHONY: deadcode
deadcode: ## Functions that nothing reaches (a hint, not a verdict)
	$(GO) run $(DEADCODE) -test ./...

.PHONY: generate
generate: ## Generate the link's code from schema/link/link.proto (needs protoc)
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	GOBIN=$$dir $(GO) install $(PROTOC_GEN_GO); \
	GOBIN=$$dir $(GO) install $(PROTOC_GEN_GO_GRPC); \
	PATH="$$dir:$$PATH" protoc -I . --go_out=. --go_opt=paths=source_relative \
	  --go-grpc_out=. --go-grpc_opt=paths=source_relative schema/link/link.proto

.PHONY: compare-servers
compare-servers: build ## Memory per connection of other libraries' servers beside ours
	cd bench/compare-servers && $(GO) build -o ../../bin/compare-servers .
	$(BIN) bench ladder --rivals bin/compare-servers $(LADDERFLAGS)

.PHONY: clean
clean: ## Remove what make made (not your mailbell-data)
	rm -rf bin test-output web/node_modules deploy/kafka/target
