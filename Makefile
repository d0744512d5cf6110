# Needs Python 3.11 or newer and make. `make run` and `make test` install what else they need.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# Hashes of all files of a version: one lock for every processor and every Python that is supported.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
	--custom-compile-command 'make lock' --output-file
INSTALL := apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq

# The oldest PostgreSQL that is supported, and where Debian's packages put it.
POSTGRESQL_15 ?= /usr/lib/postgresql/15/bin

.PHONY: help run demo test test-postgresql-15 test-pgbouncer test-nginx battery dba check audit lock format spec bench clean clean-data

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "make %-19s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: .venv/service ## serve on WATCHPOST_BIND, with an embedded PostgreSQL unless WATCHPOST_DATABASE_URL is set
	@trap "" HUP; exec $(BIN)/python -m app.dev.serve

demo: .venv/tests ## play one laptop against a running service, or one of its own
	@exec $(BIN)/python -m tests.demo

test: .venv/tests ## all tests, on throwaway databases
	$(BIN)/pytest

test-postgresql-15: .venv/tests ## all tests on PostgreSQL 15; as root it installs Debian's package
	@# Debian's package would start a cluster of its own; nobody here needs one.
	@test -x $(POSTGRESQL_15)/postgres || { [ "$$(id -u)" = 0 ] && mkdir -p /etc/postgresql-common/createcluster.d && \
		echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/watchpost.conf && \
		$(INSTALL) postgresql-15; } >&2 || \
		{ echo 'PostgreSQL 15 is missing: apt-get install postgresql-15, or name its programs: make $@ POSTGRESQL_15=FOLDER' >&2; exit 1; }
	WATCHPOST_POSTGRESQL_PROGRAMS=$(POSTGRESQL_15) $(BIN)/pytest

test-pgbouncer: .venv/tests ## the tests over HTTP through PgBouncer; as root it installs Debian's package
	@PATH="$$PATH:/usr/sbin" command -v pgbouncer >/dev/null || { [ "$$(id -u)" = 0 ] && $(INSTALL) pgbouncer; } >&2 || \
		{ echo 'PgBouncer is missing: apt-get install pgbouncer' >&2; exit 1; }
	$(BIN)/pytest --pgbouncer

test-nginx: .venv/tests ## the example of docs/deployment.md on nginx; as root it installs Debian's package
	@PATH="$$PATH:/usr/sbin" command -v nginx >/dev/null || { [ "$$(id -u)" = 0 ] && $(INSTALL) nginx-light; } >&2 || \
		{ echo 'nginx is missing: apt-get install nginx-light' >&2; exit 1; }
	$(BIN)/pytest tests/server/test_nginx.py

battery: .venv/tests ## faults and attacks under load, about an hour; options in BATTERY
	@exec $(BIN)/python -m tests.resilience $(BATTERY)

dba: .venv/tests ## print the report for a DBA, from a filled throwaway database
	@exec $(BIN)/python -m tests.dba

check: .venv/tests ## lint, types, SQL, generated documents, locked versions
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/sqlfluff lint --disable-progress-bar sql migrations
	$(BIN)/squawk --config .squawk.toml $(filter-out %.rollback.sql,$(wildcard migrations/*.sql))
	$(BIN)/flask --app wsgi spec --check
	$(BIN)/python -m tests.supply check

audit: .venv/tests ## check the locked packages for known vulnerabilities
	$(BIN)/python -m tests.supply audit

lock: .venv/tests ## lock the newest versions that the requirements files allow, with hashes
	$(LOCK) config/requirements.lock requirements.txt
	$(LOCK) tests/requirements.lock --constraint config/requirements.lock tests/requirements.txt

format: .venv/tests ## mend what the linter can mend, and format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

spec: .venv/service ## write docs/openapi.yaml and docs/configuration.md from the code
	$(BIN)/flask --app wsgi spec

bench: .venv/bench ## measure against pgbench and a FastAPI peer; needs wrk; options in BENCH
	@exec $(BIN)/python -m tests.bench $(BENCH)

clean: ## remove what can be made again; data stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

clean-data: ## remove the embedded database and the signing keys, after a question; not while a service runs
	@$(PYTHON) -m app.dev.clean_data

.venv/service: config/requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	@# Debian keeps what venv needs in a package of its own.
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && $(INSTALL) python3-venv; } >&2 || \
		{ echo 'Python lacks venv: apt-get install python3-venv' >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(PIP) --require-hashes --requirement config/requirements.lock
	@touch $@

.venv/tests: tests/requirements.lock .venv/service
	@# docs/first-post.md is run by a test and needs these.
	@command -v curl >/dev/null && command -v openssl >/dev/null || { [ "$$(id -u)" = 0 ] && $(INSTALL) curl openssl; } >&2 || \
		{ echo 'curl or openssl is missing: apt-get install curl openssl' >&2; exit 1; }
	$(PIP) --require-hashes --requirement tests/requirements.lock
	@touch $@

.venv/bench: tests/bench/requirements.txt .venv/tests
	$(PIP) --requirement tests/bench/requirements.txt
	@touch $@
