# Sourced by the other scripts: makes .venv in the checkout and puts its commands on the PATH.
# Installs only when there is something new to install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
version=$("$python" --version) || {
    echo "there is no Python at '$python': set PYTHON to Python 3.11 or newer." >&2
    exit 2
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "padim needs Python 3.11 or newer; $python is $version. Set PYTHON to another one." >&2
    exit 2
}
wanted="$version $(cat pyproject.toml scripts/requirements.txt | cksum)"
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    [ "$(.venv/bin/python --version 2>/dev/null)" = "$version" ] || "$python" -m venv --clear .venv
    echo "installing about 5 GB into .venv, which takes a few minutes" >&2
    .venv/bin/python -m pip install --quiet --require-hashes --requirement scripts/requirements.txt
    .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
    echo "$wanted" >.venv/installed
fi
export PATH="$PWD/.venv/bin:$PATH"
