# Every target does its own set-up, in .venvs/ and, as root, by apt-get.
#
#   make test LABELS="db_pool" DJANGO=6.1 DATABASE=postgresql

LABELS =
DJANGO =
DATABASE =
REQUIRE_ALL =
DEMO_OPTIONS =
BENCH_OPTIONS =

test_options = \
	$(foreach version,$(DJANGO),--django=$(version)) \
	$(foreach database,$(DATABASE),--database=$(database)) \
	$(if $(REQUIRE_ALL),--require-all)

# The environment for all that needs just one Django.
main_environment = $(or $(firstword $(DJANGO:%=django-%)),django-6.1)

.PHONY: test demo bench lint clean

test:
	@scripts/setup.sh
	@python3 scripts/test_matrix.py $(test_options) $(LABELS)

demo:
	@scripts/setup.sh python
	@python3 example/bootstrap.py $(DEMO_OPTIONS)

bench:
	@scripts/setup.sh
	@python=$$(python3 scripts/environments.py $(main_environment)) && \
		"$$python" benchmarks/checkout.py $(BENCH_OPTIONS)

lint:
	@python=$$(python3 scripts/environments.py lint) && \
		"$$python" -m black --check --quiet --diff . && \
		"$$python" -m isort --check-only --quiet --diff . && \
		"$$python" -m flake8 . && \
		"$$python" -m mypy

clean:
	rm -rf .venvs .tox build dist *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
