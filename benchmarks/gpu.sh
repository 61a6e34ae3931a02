#!/usr/bin/env bash
# Everything that is claimed only with a GPU, measured in under nine minutes:
#
#   benchmarks/gpu.sh --cifar cifar10.zip --photos photographs.zip --out results
#   benchmarks/gpu.sh --cifar cifar10.zip --photos photographs.zip --out /tmp/tiny --device cpu --quick
#
# The package need not be installed and no network is used: its dependencies must be there. JSON,
# images and what was said go to --out; summary.json says how each part ended. A part that fails or
# outlasts its time does not stop the others; the exit code is 1 if any did.
set -uo pipefail

cifar="" photos="" out="" device=cuda quick=""
while [ $# -gt 0 ]; do
  case "$1" in
    --cifar) cifar=$2; shift 2 ;;
    --photos) photos=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --quick) quick=1; shift ;;
    *) echo "gpu.sh has no argument $1." >&2; exit 2 ;;
  esac
done
if [ -z "$cifar" ] || [ -z "$photos" ] || [ -z "$out" ]; then
  echo "gpu.sh needs --cifar ARCHIVE, --photos ARCHIVE and --out FOLDER." >&2
  exit 2
fi

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" MPLBACKEND=Agg PYTHONUNBUFFERED=1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export UNFREEZE_CACHE="$scratch/cache"
mkdir -p "$out"
began=$SECONDS failed=0 parts=()

part() { # NAME SECONDS COMMAND...: what it says goes to the screen and to NAME.log
  local name=$1 limit=$2 start=$SECONDS code
  [ -n "$quick" ] && limit=$((4 * limit)) # a busy CPU is slow
  shift 2
  echo "== $name"
  timeout "$limit" "$@" 2>&1 | tee "$out/$name.log"
  code=${PIPESTATUS[0]}
  [ "$code" -eq 0 ] || failed=1
  parts+=("{\"part\": \"$name\", \"exit_code\": $code, \"seconds\": $((SECONDS - start))}")
}
# the limits of all parts together are below nine minutes
bench() { # NAME SECONDS SCRIPT ARGUMENTS...
  local name=$1 limit=$2 script=$3
  shift 3
  part "$name" "$limit" "$python" "$here/$script" "$@" --device "$device" --json "$out/$name.json"
}

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

part machine 20 "$python" -c "
import platform, torch, torchvision
print(platform.platform(), torch.__version__, torchvision.__version__)
print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')"
part unpack 30 "$python" -m zipfile -e "$photos" "$scratch/photographs"
bench check 50 device_check.py
bench step 80 step.py "${step[@]}" --plot "$out/step.png"
bench step-resnet50 70 step.py "${resnet50[@]}" --plot "$out/step-resnet50.png"
bench epoch 80 epoch.py --archive "$cifar" "${epoch[@]}"
bench end-to-end 110 end_to_end.py --peer plain --images "$scratch/photographs" "${ends[@]}" \
  --plot "$out/end-to-end.png"
bench growth 90 growth.py "${growth[@]}" --scratch "$scratch" --plot "$out/growth.png"

IFS=,
printf '{"device": "%s", "seconds": %d, "parts": [%s]}\n' \
  "$device" $((SECONDS - began)) "${parts[*]}" > "$out/summary.json"
cat "$out/summary.json"
exit $failed
