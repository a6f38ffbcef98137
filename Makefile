# One profile and one feature set everywhere: what lint, test and demo build, they share.
ALL := --workspace --all-features
STACK := deploy/local/stack

# Builds need no database: sqlx reads .sqlx, which `make lint` checks and `make sqlx` renews.
export SQLX_OFFLINE := true

.DEFAULT_GOAL := help
.PHONY: help demo up down build test calls console oncall bench drill lint deny fmt docs sqlx dashboards clean-local

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## play a conversation and a call against a real Synapse and show what arrived; leaves nothing running
	@$(STACK) demo

up: build ## start Postgres, Synapse, api and worker; addresses and secrets go to .local/stack.env
	@$(STACK) up

down: ## stop what `make up` started; its data stays
	@$(STACK) down

build: ## build the programs: api, worker, outboxctl
	cargo build $(ALL) --bins

# With TEST_ARGS somebody looks for certain tests only.
test: ## run every test, on servers of its own, `calls`, `console` and `oncall`; with TEST_ARGS only those that cargo test then runs
	$(if $(TEST_ARGS),,@$(STACK) calls --prepare)
	$(if $(TEST_ARGS),,@$(STACK) oncall --prepare)
	cargo test $(ALL) --no-run
	$(STACK) test -- cargo test $(ALL) $(TEST_ARGS)
	$(if $(TEST_ARGS),,@$(STACK) calls)
	$(if $(TEST_ARGS),,@$(STACK) console)
	$(if $(TEST_ARGS),,@$(STACK) oncall)

calls: build ## let a real browser and a real Matrix client call each other; CALLS_ARGS: --only N
	@$(STACK) calls $(CALLS_ARGS)

console: build ## drive the operators' console in a real browser; CONSOLE_ARGS="--pictures DIR" keeps pictures of its pages
	@$(STACK) console $(CONSOLE_ARGS)

oncall: build ## let a real Prometheus watch a stack: every metric, every panel, no alert in health, the right ones in trouble
	@$(STACK) oncall

bench: ## measure writes, drain, latency and claims beside their limits; BENCH_ARGS: --quick, --only drain
	cargo build --release $(ALL) --bins
	cargo bench $(ALL) --bench outbox --no-run
	$(STACK) test --no-synapse --durable -- cargo bench $(ALL) --bench outbox -- $(BENCH_ARGS)

drill: ## break everything while clients write, and compare; DRILL=crash|outage|…|all SEED= OPERATIONS= KILLS=
	cargo test $(ALL) --test it --bench drill --no-run
	$(STACK) test --no-synapse --durable -- cargo bench --profile dev $(ALL) --bench drill

lint: ## check format, lints, offline query data, dependencies, scripts, alerts and dashboards
	cargo fmt --all --check
	deploy/local/dependencies.py
	python3 -c 'import sys; [compile(open(name).read(), name, "exec") for name in sys.argv[1:]]' $(STACK) deploy/local/*.py deploy/local/policy/*.py dashboards/*.py dashboards/source/*.py
	deploy/local/dashboards.py
	$(STACK) schema -- deploy/local/offline_data.py check

deny: ## check advisories, licences and sources of all dependencies (needs cargo-deny)
	@command -v cargo-deny >/dev/null || { echo 'cargo-deny is missing: cargo install --locked cargo-deny'; exit 1; }
	cargo deny $(ALL) check

fmt: ## format the Rust code
	cargo fmt --all

docs: ## renew the tables of metrics in worker/OPERATING.md from the code
	RENEW_DOCS=1 cargo test $(ALL) --lib metric::docs

dashboards: ## write dashboards/*.json from dashboards/source
	dashboards/build.py

sqlx: ## renew .sqlx, the offline data of the queries, from the migrations
	$(STACK) schema -- deploy/local/offline_data.py write

clean-local: ## stop the local stack; delete its data, its Synapse and its Node modules
	@$(STACK) clean
	rm -rf .local deploy/local/node_modules
