# Everything that this project can do from the command line. "make" alone lists it.

SHELL := /bin/bash
GO ?= go
# The major versions of Postgres that test-pg takes.
PG ?= 16 17 18
# How long each fuzz target runs, and how long and from which seed the simulation runs.
FUZZTIME ?= 2m
SECONDS ?= 60
SEED ?= $(shell date +%s)
# How the bridges of the simulation capture: poll or wal.
CAPTURE ?= poll
COMPOSE = $(shell if docker compose version >/dev/null 2>&1; then echo docker compose; else echo docker-compose; fi)

.DEFAULT_GOAL := help
.PHONY: help demo test nightly test-pg fuzz check fmt docs sim mutants bench bench-edge up down deps stack-test stack-test-cluster

help: ## show this list
	@echo 'Usage: make TARGET [VARIABLE=value ...]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: deps ## run Postgres, bridge, edge and a writer, and show rows arrive (DEMO_SECONDS=20: end after 20 s)
	@mkdir -p .cache && $(GO) build -o .cache/demo ./internal/demo
	@exec .cache/demo

test: deps ## run all tests but the slow ones; takes minutes
	scripts/test.sh

nightly: deps ## run what takes long: race detector everywhere, fuzzing, simulations, Postgres versions, mutants, stacks
	scripts/nightly.sh

test-pg: deps ## run the tests that depend most on Postgres against each version in PG (16 17 18), installing it
	scripts/test-pg.sh $(PG)

fuzz: deps ## run each fuzz target for FUZZTIME (2m)
	scripts/fuzz.sh $(FUZZTIME)

check: ## check format and import rules, run vet and staticcheck, look for known vulnerabilities
	scripts/check.sh

fmt: ## format all Go files
	$(GO) run mvdan.cc/gofumpt@v0.12.0 -w $$(git ls-files -co --exclude-standard '*.go')

docs: ## write the tables of docs/settings.md from the programs, and the numbers of README.md from the bench
	$(GO) test -p 1 -count 1 -run 'TestSettings_|TestReadme_' ./cmd/bridge ./cmd/httpedge ./bench -update

sim: deps ## run the simulation with faults: SECONDS (60), SEED (the time), CAPTURE (poll; or wal)
	$(GO) test ./internal/simtest -run TestSim -count=1 -timeout 0 -v -args -shipped -capture=$(CAPTURE) -seconds=$(SECONDS) -seed=$(SEED)

mutants: deps ## break each mechanism, and see its test fail (CHANGED=REV: only what changed since that revision)
	$(GO) run ./internal/mutants $(if $(CHANGED),-changed $(CHANGED))

bench: deps ## measure speed and memory of bridge and edge (bench/main.go says how; bench/RESULTS.md has the last results)
	$(GO) run ./bench

bench-edge: deps ## measure the edge beside nginx (install nginx for that)
	$(GO) run ./bench -only=12,13,14,15,16

stack-test: ## start the docker-compose stack, kill each of its processes, and see it heal
	scripts/stack/test.sh Single

stack-test-cluster: ## the same with the profile cluster: three NATS servers, two bridges, two edges, nginx
	scripts/stack/test.sh Cluster

up: ## start the docker-compose stack with its sample writer; rows at http://127.0.0.1:8080/products
	$(COMPOSE) --profile demo up --build -d

down: ## stop the docker-compose stack and remove its data
	$(COMPOSE) --profile demo down --volumes

deps: ## install what the tests need, if it is missing (Debian packages)
	@scripts/deps.sh
