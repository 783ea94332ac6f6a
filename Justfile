# Everything a developer runs. `just` alone lists it.

set shell := ["bash", "-euc"]

# Arguments are passed on as they were given, with their spaces and quotes
set positional-arguments

python := ".venv/bin/python"

# List the recipes
default:
    @just --list

# Install what the locked files say, once for each change of them
[private]
install:
    #!/usr/bin/env bash
    set -euo pipefail
    stamp=.venv/.installed
    if [ ! -x .venv/bin/uv ]; then python3 -m venv .venv && .venv/bin/pip install -q uv; fi
    want=$(sha256sum requirements-dev.txt pyproject.toml | sha256sum)
    if [ "$(cat $stamp 2>/dev/null)" != "$want" ]; then
        echo "installing the locked packages (once, about a minute on a slow line)…" >&2
        .venv/bin/uv pip install -q --python .venv/bin/python -r requirements-dev.txt
        .venv/bin/uv pip install -q --python .venv/bin/python --no-deps -e .
        echo "$want" > $stamp
    fi

# Run the service: on the simulator and an embedded Valkey, unless settings say otherwise
run *args: install
    @exec {{python}} -m mdservice run "$@"

# What `just test` leaves out: whole programs, real servers, the documentation's commands
not_quick := "--ignore=tests/integration --ignore=tests/contracts --ignore=tests/simulation --ignore=tests/docs"

# Run the tests that are pure or on virtual time (about a minute), or those that the arguments name
test *args: install
    {{python}} -m pytest {{ if args == "" { not_quick + " -m 'not thorough'" } else { "" } }} "$@"

# Run all tests but the slowest: also whole programs, real servers, the documentation's commands
test-all *args: install
    {{python}} -m pytest "$@"

# Run the tests that take tens of seconds too
test-slow: install
    {{python}} -m pytest -m "slow or not slow"

# `just test-all` with branch coverage of every process; fails below the floor in pyproject.toml
cov *args: install
    {{python}} -m coverage erase
    COVERAGE_PROCESS_START="$PWD/pyproject.toml" COVERAGE_FILE="$PWD/.coverage" {{just_executable()}} test-all "$@"
    {{python}} -m coverage combine -q
    {{python}} -m coverage report

# Check style, formatting and the import rules
lint: install
    {{python}} -m ruff check .
    {{python}} -m ruff format --check .
    .venv/bin/lint-imports --no-cache

# Format, and fix what can be fixed
fmt: install
    {{python}} -m ruff check --fix .
    {{python}} -m ruff format .

# Check the types
type: install
    {{python}} -m mypy

# Measure all that has a target (under five minutes); `quick`: against a plain alpaca-py handler alone, `curves`: how the cost grows with symbols, readers and frames, `where`: where the time of a quote goes, `floor`: what actors cost at least, `guard`: fail where something has become slower, `repair`: how soon a gap is filled
bench *args: install
    {{python}} -m tests.bench "$@"

# Install what `just bench` compares with besides A, each in an environment of its own
bench-references: install
    #!/usr/bin/env bash
    set -euo pipefail
    add() {
        local folder=.venv-references/$1
        shift
        .venv/bin/uv venv -q --allow-existing --python {{python}} "$folder"
        .venv/bin/uv pip install -q --python "$folder/bin/python" "$@"
    }
    add nautilus_trader nautilus_trader==1.221.0 msgspec==0.22.0 uvloop==0.22.1
    add cryptofeed "cryptofeed[redis]==2.4.1" redis==8.1.0 websockets==17.4 msgspec==0.22.0 uvloop==0.23.0

# Measure real-time P&L: one answer, events per second, from quote to stream (a minute; `just bench-pnl quick` is shorter)
bench-pnl *args: install
    {{python}} -m tests.bench.pnl "$@"

# Run the whole service in simulated time against seeded faults: `just simulate-faults 1000 [first-seed]`
simulate-faults count="200" first="1" *args: install
    {{python}} -m tests.simulation "$@"

# The simulation for two minutes, from a seed of its own, so that CI tells the same of the same code
simulate-faults-ci: install
    {{python}} -m tests.simulation 100000 50001 --seconds 110

# Build the documentation's site, and check it: links, names, the reference against the code
docs: site
    {{python}} -m pytest tests/docs -q
    @echo "the site: file://$PWD/site/index.html"

# Only build the site; a warning is an error, such as a link or an anchor that leads nowhere
[private]
site: install
    {{python}} -m sphinx --nitpicky --fail-on-warning --keep-going --quiet --fresh-env docs site

# Build the site and show it at http://127.0.0.1:8003
docs-serve: site
    {{python}} -m http.server --bind 127.0.0.1 --directory site 8003

# Write the parts of the reference that come from the code anew
docs-reference: install
    {{python}} -m docs.generate

# Record anew how the program looks in a terminal; needs tmux
docs-pictures: install
    {{python}} -m docs.generate.terminal

# What CI runs: style, types, import rules, tests with coverage, the site, the simulation
check: lint type cov site simulate-faults-ci

# Write the locked versions anew, without any registry's address
lock: install
    .venv/bin/uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header --extra dev pyproject.toml -o requirements-dev.txt
    .venv/bin/uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header pyproject.toml -o requirements.txt
