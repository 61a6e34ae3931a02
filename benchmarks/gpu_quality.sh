#!/usr/bin/env bash
# What is claimed with a GPU and does not fit into gpu.sh, in under ten minutes: k-NN accuracy on
# CIFAR-10 after five minutes of pretraining, and the pass of a frozen ResNet-50 at 224 pixels.
#
#   benchmarks/gpu_quality.sh --cifar cifar10.zip --photos photographs.zip --out results
#   benchmarks/gpu_quality.sh --cifar cifar10.zip --photos photographs.zip --out /tmp/tiny --device cpu --quick
#
# Everything else is as in gpu.sh. Fifteen minutes: benchmarks/knn.py --minutes 15.
name=gpu_quality.sh
source "$(dirname "$0")/gpu_parts.sh"

if [ -n "$quick" ]; then
  knn=(--epochs 1 --arch unfreeze/tiny --share 0.01)
  pass=(--arch resnet18 --size 32 --copies 1 --limit 4)
else
  knn=(--minutes 5)
  pass=(--copies 12)
fi

# the limits of all parts together are below ten minutes
begin
bench feature-pass 150 feature_pass.py --photos "$photos" "${pass[@]}"
bench knn 425 knn.py --archive "$cifar" "${knn[@]}"
finish
