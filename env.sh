# Source this in bash: `. ./env.sh [dev]`. Afterwards `python` can import valle and what it needs.
#
# A Python that has all of it is taken as it is; otherwise a virtual environment is made in .venv and
# filled once. "dev" adds what the tests need.

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
_extra=${1:-demo}
_modules="valle, torch, lhotse, transformers, soundfile, tensorboard, matplotlib, mido"
if [ "$_extra" = dev ]; then
  _modules="$_modules, ruff, pytest, hypothesis, mypy, h5py, phonemizer, espeakng_loader"
fi

_has_all() {
  # -I: valle must be installed, lying in the working directory is not enough
  "$1" -I -c "import importlib.util as u, sys; sys.exit(any(
    u.find_spec(m) is None for m in '$_modules'.split(', ')))" 2> /dev/null
}

if ! { command -v python > /dev/null && _has_all python; }; then
  if [ ! -x "$_root/.venv/bin/python" ]; then
    echo "Making a virtual environment in $_root/.venv"
    python3 -m venv "$_root/.venv"
  fi
  if ! _has_all "$_root/.venv/bin/python"; then
    echo "Installing valle[$_extra] (a minute or two)"
    # this version of torch is the one the tests run on; setup.py says what else will do
    "$_root/.venv/bin/python" -c 'import torch' 2> /dev/null ||
      "$_root/.venv/bin/python" -m pip install -q 'torch==2.13.0'
    "$_root/.venv/bin/python" -m pip install -q -e "$_root[$_extra]"
  fi
  export PATH="$_root/.venv/bin:$PATH"
fi
# a valle installed from elsewhere must not take the place of this one
export PYTHONPATH="$_root${PYTHONPATH:+:$PYTHONPATH}"
unset _root _extra _modules
unset -f _has_all
