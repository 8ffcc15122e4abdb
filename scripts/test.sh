#!/usr/bin/env bash
# Sets up the checkout and runs all tests, on all cores; arguments go to pytest.
source "$(dirname "$0")/setup.sh"
export OMP_WAIT_POLICY=PASSIVE # threads that wait leave the cores to other processes
python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
