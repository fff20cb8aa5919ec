#!/bin/sh
# What the set-up needs beside Python: bubblewrap, the sandbox for model-written code.
set -eu
command -v bwrap >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing bubblewrap, the sandbox for model-written code"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y bubblewrap >/dev/null
else
    echo "hillclimb needs bubblewrap: install it with 'sudo apt-get install bubblewrap' (or your system's package manager), then call this again" >&2
    exit 3
fi
