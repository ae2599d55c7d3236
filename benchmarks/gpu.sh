#!/usr/bin/env bash
# The GPU benchmarks on a machine without a network, in less than ten minutes: random weights of real shapes, toy rationales.
#
#     benchmarks/gpu.sh wheels FOLDER    # where pip works: downloads what the machine needs beside torch, transformers, peft and scipy
#     benchmarks/gpu.sh run FOLDER       # on the machine
set -euo pipefail
cd "$(dirname -- "$0")/.."
WHEELS=(hydra-core omegaconf antlr4-python3-runtime datasets dill multiprocess pytorch-lightning lightning-utilities torchmetrics rich)  # pure Python
folder=${2:?a folder of wheels}
case ${1:-} in
  wheels) python -m pip wheel --no-deps -c constraints.txt -w "$folder" "${WHEELS[@]}" ;;
  run)
    python3 -m pip install --quiet --no-index --no-deps --target "$folder/site" "$folder"/*.whl
    PYTHONPATH="$folder/site:$PWD" timeout 570 python3 benchmarks/students.py gpu --task toy_arithmetic --turns 1 --steps 100 --rows 96 ;;
  *) sed -n '2,5p' "$0"; exit 1 ;;
esac
