# The commands of a developer. `just` without arguments lists them.

set shell := ["bash", "-euc"]

# Pass arguments on unchanged, with their spaces and quotes
set positional-arguments

python := ".venv/bin/python"

# List the recipes
default:
    @just --list

# Install the locked packages, once for each change of the locked files
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

# Run the service: on the simulator and an embedded Valkey, unless your settings differ
run *args: install
    @exec {{python}} -m mdservice run "$@"

# Cache the byte code, also of the tests' rewritten asserts, where the environment turns that off
export PYTHONDONTWRITEBYTECODE := ""

# The tests of single parts: no whole programs, real servers and commands of the documentation
parts := "--ignore=tests/integration --ignore=tests/simulation --ignore=tests/docs --ignore=tests/operations --dist worksteal"

# A worker for each processor; one more where tests with real sockets wait, three for each where whole programs do
workers := `python3 -c 'import os; print(os.cpu_count() or 1)'`
more := `python3 -c 'import os; print((os.cpu_count() or 1) + 1)'`
many := `python3 -c 'import os; print((os.cpu_count() or 1) * 3)'`

# Few seeds, and a tenth of the examples of each property
few := "-m 'not thorough' --hypothesis-profile=quick"

# What makes `just test` fast. Of two `-m` the last one counts; the file left out imports what takes seconds
quick := parts + " -n " + workers + " --ignore=tests/contracts --ignore=tests/http_api/test_described.py " + few + " -m 'not thorough and not sockets'"

# Compile once what each worker of pytest would compile at the same time as the others
[private]
compile: install
    #!/usr/bin/env bash
    set -euo pipefail
    if compgen -G "tests/app/__pycache__/*-pytest-*.pyc" > /dev/null; then exit 0; fi
    echo "compiling the tests (once)…" >&2
    {{python}} -m compileall -q -j 0 mdservice
    collect() { {{python}} -m pytest -n 0 -q --collect-only "$@" > /dev/null; }
    collect tests/feed tests/gateway tests/model tests/pnl tests/relay tests/simulator &
    collect {{parts}} {{"$(printf -- '--ignore=%s ' tests/feed tests/gateway tests/model tests/pnl tests/relay tests/simulator)"}}
    wait $!

# Run the fast tests: pure, or on virtual time (about a minute). With arguments: the tests that they name
test *args: compile
    {{python}} -m pytest {{ if args == "" { quick } else { "" } }} "$@"

# Run all tests but the slowest: also whole programs, real servers, the commands of the documentation
test-all *args: install
    {{python}} -m pytest "$@"

# Run all tests, also those that take tens of seconds
test-slow: install
    {{python}} -m pytest -m "slow or not slow"

# Run the tests of the single parts with branch coverage, with few seeds and examples, since coverage doubles their time; fail below the minimum in pyproject.toml
cov *args: install
    {{python}} -m coverage erase
    COVERAGE_PROCESS_START="$PWD/pyproject.toml" COVERAGE_FILE="$PWD/.coverage" {{python}} -m pytest {{parts}} -n {{more}} {{few}} "$@"
    {{python}} -m coverage combine -q
    {{python}} -m coverage report

# The same with all tests, which measures every process that they start
cov-all *args: install
    @{{just_executable()}} --set parts "" --set more 4 --set few "" cov "$@"

# Run those tests of the single parts that `just cov` has run with few seeds and examples, or not at all: now with all
test-thorough *args: install
    {{python}} -m pytest {{parts}} -n {{workers}} -m 'thorough or hypothesis' "$@"

# Run the other tests: whole programs, real servers, the simulation, the documentation, the alerts. Without coverage, which would add half to their time; the longest first
test-programs *args: install
    {{python}} -m pytest -n {{many}} --no-loadscope-reorder tests/operations tests/simulation tests/docs tests/integration "$@"

# Check style, formatting and the import rules
lint: install
    {{python}} -m ruff check .
    {{python}} -m ruff format --check .
    .venv/bin/lint-imports --no-cache

# Format, and fix what can be fixed automatically
fmt: install
    {{python}} -m ruff check --fix .
    {{python}} -m ruff format .

# Check the types
type: install
    {{python}} -m mypy

# Measure everything that has a target (under five minutes). `quick`: compare with a plain alpaca-py handler only; `curves`: the cost by number of symbols, readers and quotes a frame; `where`: the time that each step of a quote takes; `floor`: the minimum that actors cost; `mix`: quotes, trades and bars together; `guard`: fail if something is slower than before; `repair`: the time to fill a gap; `relay`: a thousand clients of the relay; `journal`: what recording costs, replay and export; `cluster`: a write at one server and at a cluster of three; `replicas`: readers of the primary and of a replica; `page`: what an open page and a scrape of /metrics cost; `pnl`: as bench-pnl
bench *args: install
    {{python}} -m tests.bench "$@"

# Install the other programs that `just bench` compares with, each in its own environment
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

# Measure real-time P&L: the time of an answer, events per second, the time from quote or fill to stream (three minutes; `just bench-pnl quick` is shorter)
bench-pnl *args: install
    {{python}} -m tests.bench.pnl "$@"

# Run the whole service in simulated time against seeded faults: `just simulate-faults 1000 [first-seed]`
simulate-faults count="200" first="1" *args: install
    {{python}} -m tests.simulation "$@"

# Run the simulation for two minutes, always from the same seed, so that CI gives the same result for the same code
simulate-faults-ci: install
    {{python}} -m tests.simulation 100000 50001 --seconds 110

# Run the service for hours under load and faults: `just soak 2`. Memory, descriptors, threads and latency become a picture in soak-results
soak hours *args: install
    {{python}} -m tests.soak "$@"

# Kill, stop and end members of a standby group of real processes, and cut their ways to Redis and to Alpaca, at random: `just chaos 100 --members 3 --seed 1`. Prints how long each fault interrupted the events, and compares every event with the market's own record
chaos rounds="100" *args: install
    {{python}} -m tests.integration.chaos "$@"

# Change the program in many small ways, one at a time, and see whether the tests notice (an hour): `just mutants router --count 50`
mutants *args: install
    #!/usr/bin/env bash
    set -euo pipefail
    .venv/bin/uv venv -q --allow-existing --python {{python}} .venv-references/cosmic-ray
    .venv/bin/uv pip install -q --python .venv-references/cosmic-ray/bin/python cosmic-ray==8.7.0 attrs==26.1.0
    exec .venv-references/cosmic-ray/bin/python -m tests.mutants "$@"

# Search for inputs that break a reader, guided by coverage: `just fuzz [TARGET] [SECONDS]`; without a target each in turn, a minute long. Needs a wheel of atheris, which it installs in an environment of its own
fuzz *args: install
    #!/usr/bin/env bash
    set -euo pipefail
    python=.venv-references/fuzz/bin/python
    .venv/bin/uv venv -q --allow-existing --python {{python}} .venv-references/fuzz
    .venv/bin/uv pip install -q --python $python -c requirements-dev.txt -r requirements.txt atheris==3.0.0 msgpack pyarrow
    exec nice $python -m tests.fuzz "$@"

# Look up known vulnerabilities of the locked packages; says so where there is no network
audit: install
    #!/usr/bin/env bash
    set -euo pipefail
    .venv/bin/uv venv -q --allow-existing --python {{python}} .venv-references/pip-audit
    .venv/bin/uv pip install -q --python .venv-references/pip-audit/bin/python pip-audit==2.10.1
    if ! timeout 20 {{python}} -c "import httpx; httpx.get('https://api.osv.dev/', timeout=10)" 2>/dev/null; then
        echo "skipped: the database of vulnerabilities (api.osv.dev) cannot be reached" >&2
        exit 0
    fi
    .venv-references/pip-audit/bin/python -m pip_audit --no-deps --disable-pip -s osv -r requirements-dev.txt

# Build the documentation site and check it: links, names, the reference against the code
docs: site
    {{python}} -m pytest tests/docs -q
    @echo "the site: file://$PWD/site/index.html"

# Only build the site; a warning, such as a broken link, is an error
[private]
site: install
    {{python}} -m sphinx --nitpicky --fail-on-warning --keep-going --quiet --fresh-env docs site

# Build the site and show it at http://127.0.0.1:8003
docs-serve: site
    {{python}} -m http.server --bind 127.0.0.1 --directory site 8003

# Generate the parts of the reference that come from the code
docs-reference: install
    {{python}} -m docs.generate

# Record the pictures of the terminal; needs tmux
docs-pictures: install
    {{python}} -m docs.generate.terminal

# Run what CI runs: style, types, import rules, all tests, those of the parts with coverage, the site, the simulation
check: lint type cov test-thorough test-programs site simulate-faults-ci

# Lock the versions again, without the address of a registry
lock: install
    .venv/bin/uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header --extra dev pyproject.toml -o requirements-dev.txt
    .venv/bin/uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header pyproject.toml -o requirements.txt
