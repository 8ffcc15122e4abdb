#!/usr/bin/env bash
# Sets up the checkout and runs all tests, on all cores; arguments go to pytest.
source "$(dirname "$0")/setup.sh"
python -m pytest -n auto --dist loadfile "$@"
