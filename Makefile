# Every target does its own set-up, in .venvs/ and, as root, by apt-get.
#
#   make test LABELS="db_pool" DJANGO=6.1 DATABASE=postgresql

LABELS =
DJANGO =
DATABASE =
LEG =
REQUIRE_ALL =
DEMO_OPTIONS =
BENCH_OPTIONS =
UPSTREAM_OPTIONS =

test_options = \
	$(foreach version,$(DJANGO),--django=$(version)) \
	$(foreach database,$(DATABASE),--database=$(database)) \
	$(foreach leg,$(LEG),--leg=$(leg)) \
	$(if $(REQUIRE_ALL),--require-all)

bench_environment = $(or $(firstword $(DJANGO:%=bench-%)),bench-6.1)

.PHONY: test upstream upstream-quick demo bench bench-quick lint patches check-patches
.PHONY: clean

test:
	@scripts/setup.sh
	@python3 scripts/test_matrix.py $(test_options) $(LABELS)

# Django's own test suite, with and without the pool.
upstream:
	@scripts/setup.sh gis
	@python3 scripts/upstream_matrix.py $(UPSTREAM_OPTIONS)

upstream-quick:
	@scripts/setup.sh
	@python3 scripts/upstream_matrix.py --quick $(UPSTREAM_OPTIONS)

demo:
	@scripts/setup.sh python
	@python3 example/bootstrap.py $(DEMO_OPTIONS)

# Writes docs/benchmarks.md.
bench:
	@scripts/setup.sh bench
	@python=$$(python3 scripts/environments.py $(bench_environment)) && \
		"$$python" benchmarks/run.py $(BENCH_OPTIONS)

# Only shows that it works.
bench-quick:
	@scripts/setup.sh bench
	@python=$$(python3 scripts/environments.py $(bench_environment)) && \
		"$$python" benchmarks/run.py --quick --output .cache/benchmarks \
		$(BENCH_OPTIONS)

lint:
	@python=$$(python3 scripts/environments.py lint) && \
		"$$python" -m black --check --quiet --diff . && \
		"$$python" -m isort --check-only --quiet --diff . && \
		"$$python" -m flake8 . && \
		"$$python" -m mypy

patches:
	@python=$$(python3 scripts/environments.py lint) && \
		"$$python" scripts/make_patches.py

check-patches:
	@python=$$(python3 scripts/environments.py lint) && \
		"$$python" scripts/make_patches.py --check

clean:
	rm -rf .venvs .cache .tox build dist *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
