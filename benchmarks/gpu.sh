#!/usr/bin/env bash
# Everything that is claimed only with a GPU, measured in under nine minutes:
#
#   benchmarks/gpu.sh --cifar cifar10.zip --photos photographs.zip --out results
#   benchmarks/gpu.sh --cifar cifar10.zip --photos photographs.zip --out /tmp/tiny --device cpu --quick
#
# The package need not be installed and no network is used: its dependencies must be there. JSON,
# images and what was said go to --out; summary.json says how each part ended. A part that fails or
# outlasts its time does not stop the others; the exit code is 1 if any did.
name=gpu.sh
source "$(dirname "$0")/gpu_parts.sh"

if [ -n "$quick" ]; then
  step=(--cases "resnet18 small stem, 2x32" --rounds 1 --steps 1 --threads 1)
  resnet50=("${step[@]}")
  epoch=(--arch unfreeze/tiny --limit 128 --batch-size 32 --epochs 2)
  ends=(--count 4 --batch-size 2 --rounds 1 --workers 1 --threads 1)
  growth=(--only prototypes --quick --rounds 1)
else
  cores=$(nproc)
  workers=$((cores > 2 ? cores - 1 : 1))
  step=(--cases "resnet18, 2x224 + 6x96" "resnet18 small stem, 2x32" --rounds 5 --steps 10 --batch-factor 16)
  resnet50=(--cases "resnet50, 2x224 + 6x96" --rounds 5 --steps 5 --batch-factor 16)
  epoch=(--epochs 6 --batch-size 512)
  ends=(--count 720 --batch-size 64 --rounds 3 --epochs 4 --workers "$workers")
  growth=(--only prototypes queue --most 16384 --rounds 5)
fi

# the limits of all parts together are below nine minutes
begin
part unpack 30 "$python" -m zipfile -e "$photos" "$scratch/photographs"
bench check 50 device_check.py
bench step 80 step.py "${step[@]}" --plot "$out/step.png"
bench step-resnet50 70 step.py "${resnet50[@]}" --plot "$out/step-resnet50.png"
bench epoch 80 epoch.py --archive "$cifar" "${epoch[@]}"
bench end-to-end 110 end_to_end.py --peer plain --images "$scratch/photographs" "${ends[@]}" \
  --plot "$out/end-to-end.png"
bench growth 90 growth.py "${growth[@]}" --scratch "$scratch" --plot "$out/growth.png"

finish
