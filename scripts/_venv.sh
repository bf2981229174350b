# shellcheck shell=sh
# Sourced by the commands beside it, with `root` set to the folder of the checkout.
# Finds a Python, makes $root/.venv the first time and sets `venv`; says nothing when there is nothing to do.
# PYTHON=/path/to/python chooses the Python.

venv=${root:?}/.venv
_stamp=$venv/.transact-stamp # written last: a .venv without it is half made

_fail() {
    echo "$*" >&2
    exit 1
}

# What python "$1" is: "3.12.1", or nothing if it does not run.
_version_of() {
    "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || true
}

_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

_has_venv() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

# Sets `_python` to the first Python that will do.
_find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.11 python3.12 python3.13 python3.14
    fi
    _too_old=''
    _without_venv=''
    for _python in "$@"; do
        if ! _new_enough "$_python"; then
            _found=$(_version_of "$_python")
            _too_old="$_too_old${_found:+, $_python is $_found}"
        elif ! _has_venv "$_python"; then
            _without_venv=${_without_venv:-$_python}
        else
            return 0 # without a number it is the status of the test above, which is what `set -e` ends on
        fi
    done
    [ -z "$_without_venv" ] ||
        _fail "$_without_venv cannot make virtual environments: on Debian or Ubuntu run 'apt-get install python3-venv'"
    _fail "transact needs Python 3.11 or newer${_too_old:-, and there is no $1}: install it, or name it with PYTHON=/path/to/python3"
}

_make_venv() {
    _find_python
    echo "Making .venv with Python $(_version_of "$_python") (only the first time)"
    rm -rf "$venv"
    "$_python" -m venv "$venv" || _fail "$_python could not make $venv: see above"
}

_fill_venv() {
    echo "Installing the packages of requirements-dev.txt into .venv (a minute or two)"
    rm -f "$_stamp"
    _quiet=''
    [ -t 1 ] || _quiet=-qq # progress bars are for people
    # The project's build backend is among the packages, so its own build needs nothing more from outside.
    # shellcheck disable=SC2086,SC2015
    "$venv/bin/python" -m pip install $_quiet --disable-pip-version-check -r "$root/requirements-dev.txt" &&
        "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e "$root" ||
        _fail "The packages could not be installed: see above, then run this again"
    _place >"$_stamp"
    _needs >>"$_stamp"
}

# The first line of the stamp. A .venv knows its own path, and its Python may be upgraded: then it is made again.
_place() {
    echo "$root, Python $(_version_of "$venv/bin/python")"
}

# The second line: what is installed.
_needs() {
    cat "$root/requirements-dev.txt" "$root/pyproject.toml" | cksum
}

_is_made() {
    [ "$(sed -n 1p "$_stamp" 2>/dev/null)" = "$(_place)" ] &&
        { [ -z "${PYTHON:-}" ] || [ "$(_version_of "$PYTHON")" = "$(_version_of "$venv/bin/python")" ]; }
}

_is_made || _make_venv
[ "$(sed -n 2p "$_stamp" 2>/dev/null)" = "$(_needs)" ] || _fill_venv
