#!/usr/bin/env bash
# Make the golden files anew: remake.sh FOLDER [PYTHON]
#
# FOLDER gets one environment for each library, 1 GB apiece; one that is already there
# is used as it is. The libraries ask for older torches than Python 3.11 machines keep,
# so that each comes without its dependencies, and only what its model needs is added.
set -euo pipefail

folder=${1:?"usage: remake.sh FOLDER [PYTHON]"}
python=${2:-python3.11}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

environment() { # NAME PACKAGE DEPENDENCY...
    local pip=$folder/$1/bin/pip
    test -e "$folder/$1/.installed" && return
    "$python" -m venv "$folder/$1"
    # First, so that no other package chooses another build of it.
    "$pip" install --quiet torch==2.13.0
    "$pip" install --quiet 'numpy<2' safetensors pyyaml sacrebleu "${@:3}"
    "$pip" install --quiet --no-deps "$2"
    if [ "$1" = opennmt ]; then
        # Text transforms that import spaCy, fastText and others; every file of that
        # folder is imported with the library, and the model uses none of them.
        (cd "$folder/$1"/lib/python*/site-packages/onmt/transforms &&
            rm -f terminology.py inlinetags.py clean.py fuzzymatch.py)
    fi
    touch "$folder/$1/.installed"
}

environment opennmt OpenNMT-py==3.5.1 configargparse pyonmttok six
environment joeynmt joeynmt==2.3.0 sentencepiece==0.1.99 subword-nmt \
    importlib_metadata matplotlib packaging plotly tensorboard tqdm
environment sockeye sockeye==3.1.34
# This one installs as it is: named as a dependency, it comes with its own.
environment marian transformers==5.23.0 transformers==5.23.0

for library in opennmt joeynmt sockeye marian; do
    "$folder/$library/bin/python" -W ignore "$here/make_$library.py"
done
"$folder/marian/bin/python" -W ignore "$here/make_torch.py"
