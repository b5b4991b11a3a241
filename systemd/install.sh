#!/bin/sh
# `make install` and `make uninstall`: puts the product where an administrator of Debian looks for local software.
#
#   PREFIX/lib/llm-optimizer   a virtual environment of its own: the product and its libraries, nothing of the checkout
#   PREFIX/bin                 links to llm-optimizer and optimizerctl
#   PREFIX/share               completions of optimizerctl for bash, zsh and fish
#   /etc/llm-optimizer         llm-optimizer.toml; one that is there already is left alone
#   UNITDIR, SYSUSERSDIR       the unit, its optional sockets, its user
#
# DESTDIR stands in front of every path while files are written, and in none of them.
set -eu
umask 022
unset PYTHONPATH PYTHONHOME
cd "$(dirname "$0")/.."

PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}
PYTHON=${PYTHON:-python3}
UNITDIR=${UNITDIR:-/lib/systemd/system}
SYSUSERSDIR=${SYSUSERSDIR:-/usr/lib/sysusers.d}

home=$PREFIX/lib/llm-optimizer
config=/etc/llm-optimizer/llm-optimizer.toml
bash_dir=$PREFIX/share/bash-completion/completions
zsh_dir=$PREFIX/share/zsh/site-functions
fish_dir=$PREFIX/share/fish/vendor_completions.d

uninstall() {
  rm -rf "$DESTDIR$home" "$DESTDIR$home.new"
  rm -f "$DESTDIR$PREFIX/bin/llm-optimizer" "$DESTDIR$PREFIX/bin/optimizerctl"
  rm -f "$DESTDIR$bash_dir/optimizerctl" "$DESTDIR$zsh_dir/_optimizerctl" "$DESTDIR$fish_dir/optimizerctl.fish"
  for unit in systemd/*.service systemd/*.socket; do rm -f "$DESTDIR$UNITDIR/${unit##*/}"; done
  rm -f "$DESTDIR$SYSUSERSDIR/llm-optimizer.conf"
  echo "removed; /etc/llm-optimizer, /var/lib/llm-optimizer and the user llm-optimizer are left to you"
}

# The environment is built beside the old one and takes its place when it is whole.
environment() {
  stage=$DESTDIR$home.new
  rm -rf "$stage"
  mkdir -p "$DESTDIR$PREFIX/lib"
  "$PYTHON" -m venv "$stage"
  source=$(mktemp -d)
  trap 'rm -rf "$source"' EXIT
  cp -R pyproject.toml README.md LICENSE optimizer workers "$source" # setuptools would leave build/ in the checkout
  "$stage/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$source"
  "$stage/bin/python" -m pip uninstall --quiet --yes pip setuptools
  completions
  grep -rlIF -- "$stage" "$stage/bin" "$stage/pyvenv.cfg" | while read -r file; do
    sed -i "s|$stage|$home|g" "$file"
  done
  "$stage/bin/python" -m compileall -q -j 0 -s "$stage" -p "$home" "$stage/lib"
  rm -rf "$DESTDIR$home"
  mv "$stage" "$DESTDIR$home"
  mkdir -p "$DESTDIR$PREFIX/bin"
  for program in llm-optimizer optimizerctl; do
    ln -sfn "../lib/llm-optimizer/bin/$program" "$DESTDIR$PREFIX/bin/$program"
  done
}

completions() {
  mkdir -p "$DESTDIR$bash_dir" "$DESTDIR$zsh_dir" "$DESTDIR$fish_dir"
  "$stage/bin/optimizerctl" completion bash >"$DESTDIR$bash_dir/optimizerctl"
  "$stage/bin/optimizerctl" completion zsh >"$DESTDIR$zsh_dir/_optimizerctl"
  "$stage/bin/optimizerctl" completion fish >"$DESTDIR$fish_dir/optimizerctl.fish"
}

configuration() {
  mkdir -p "$DESTDIR${config%/*}"
  if [ ! -e "$DESTDIR$config" ]; then
    cp etc/llm-optimizer.toml "$DESTDIR$config"
  elif ! cmp -s etc/llm-optimizer.toml "$DESTDIR$config"; then
    cp etc/llm-optimizer.toml "$DESTDIR$config.new"
    echo "$config is yours and stays; the new default is $config.new"
  fi
}

units() {
  mkdir -p "$DESTDIR$UNITDIR" "$DESTDIR$SYSUSERSDIR"
  for unit in systemd/*.service systemd/*.socket; do
    sed "s|/usr/local/bin/|$PREFIX/bin/|" "$unit" >"$DESTDIR$UNITDIR/${unit##*/}"
  done
  cp systemd/llm-optimizer.sysusers "$DESTDIR$SYSUSERSDIR/llm-optimizer.conf"
}

if [ "${1:-}" = --remove ]; then
  uninstall
  exit
fi
environment
configuration
units
echo "installed. Next, as root: systemd-sysusers && systemctl daemon-reload && systemctl enable --now llm-optimizer"
