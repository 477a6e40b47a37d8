#!/usr/bin/env bash
# Install Polygraft from this checkout, without development tools, into a virtual environment.
#   scripts/docker/install.sh PREFIX [SITE_PACKAGES]
# PREFIX         where the environment is made; it must not exist yet
# SITE_PACKAGES  take the dependencies from this installed folder instead of downloading them (tests)
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 PREFIX [SITE_PACKAGES]" >&2; exit 2; }
prefix=$1
site_packages=${2:-}
[ ! -e "$prefix" ] || { echo "$0: $prefix exists" >&2; exit 2; }
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
# Why a copy: building writes *.egg-info and build/ beside the sources.
mkdir "$build/source"
(cd "$checkout" && tar --create --exclude=./.git --exclude='./.venv*' --exclude='*.egg-info' --exclude=__pycache__ .) |
    tar --extract --directory "$build/source"

"${PYTHON:-python3}" -m venv "$prefix"
export PIP_DISABLE_PIP_VERSION_CHECK=1
install=("$prefix/bin/python" -m pip install --quiet --no-cache-dir --constraint "$checkout/constraints.txt")
if [ -n "$site_packages" ]; then
    echo "$site_packages" >"$("$prefix/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
    "$prefix/bin/python" -m pip uninstall --quiet --yes setuptools # the older one of venv
    "${install[@]}" --no-deps --no-build-isolation "$build/source"
else
    "${install[@]}" "$(grep '^torch==' "$checkout/constraints.txt")"
    "${install[@]}" "$(grep '^setuptools==' "$checkout/constraints.txt")"
    "${install[@]}" --no-build-isolation "$build/source"
    "$prefix/bin/python" -m pip check
fi
"$prefix/bin/polygraft" --version
