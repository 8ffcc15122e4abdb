#!/usr/bin/env bash
# Sets up the checkout and runs all tests, on all cores; arguments go to pytest.
source "$(dirname "$0")/setup.sh"
export OMP_WAIT_POLICY=PASSIVE # threads that wait leave the cores to other processes
# The long files come first, so that no process is left alone with one of them at the end.
order="testpaths=tests/real tests/faults tests/commands tests/examples tests/cuda tests/unit"
python -m pytest -n auto --dist loadfile --no-loadscope-reorder -o "$order" "$@"
