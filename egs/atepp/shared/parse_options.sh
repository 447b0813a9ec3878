#!/usr/bin/env bash
# Lets a recipe script take its variables from the command line:
#
#   stage=0
#   src_dir=download/recordings
#   . "$(dirname "$0")/shared/parse_options.sh"     # ./prepare.sh --stage 1 --src-dir my/folder
#
# `--some-name value` and `--some-name=value` set the variable `some_name`. Only variables that the
# script gave a value before this line can be set: anything else is refused, so that a typing error
# does not pass. A variable that is true or false stays one of the two. `--help` lists what there is.
# Arguments after `--`, and everything from the first one that is not an option, are left in "$@".

_refuse() {
  echo "$0: $1" >&2
  echo "$0: --help lists the options" >&2
  exit 2
}

# Variables that stand in the script as `name=...` at the start of a line, in their order.
_names_in_script() {
  sed -n 's/^\([a-z][a-z0-9_]*\)=.*/\1/p' "$0" | awk '!seen[$0]++'
}

_print_options() {
  echo "Usage: $0 [--option value ...]; options and their values now:"
  local _name
  for _name in $(_names_in_script); do
    [ -n "${!_name+set}" ] && echo "  --${_name//_/-} '${!_name}'"
  done
  return 0
}

while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h)
      _print_options
      exit 0
      ;;
    --)
      shift
      break
      ;;
    --*=*)
      _option="${1%%=*}"
      _value="${1#*=}"
      shift
      ;;
    --*)
      _option="$1"
      [ $# -ge 2 ] || _refuse "$_option needs a value"
      _value="$2"
      shift 2
      ;;
    -*) _refuse "unknown option $1 (options begin with two dashes)" ;;
    *) break ;;
  esac
  _name="${_option#--}"
  _name="${_name//-/_}"
  [[ "$_name" =~ ^[a-z][a-z0-9_]*$ ]] || _refuse "unknown option $_option"
  _declared=$(declare -p "$_name" 2>/dev/null) || _refuse "unknown option $_option"
  # exported variables belong to the environment, unless the script gave them another value
  if [[ "$_declared" =~ ^declare\ -[a-zA-Z]*x ]] && ! _names_in_script | grep -x "$_name" > /dev/null; then
    _refuse "unknown option $_option ($_name is a variable of the environment)"
  fi
  case "${!_name}:$_value" in
    true:true | true:false | false:true | false:false) ;;
    true:* | false:*) _refuse "$_option takes true or false, got '$_value'" ;;
  esac
  printf -v "$_name" '%s' "$_value"
done
unset _option _value _name _declared
