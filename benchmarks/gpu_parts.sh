# What gpu.sh and gpu_quality.sh share: their arguments, and parts that end in time. `name` is set.
set -uo pipefail

cifar="" photos="" out="" device=cuda quick=""
while [ $# -gt 0 ]; do
  case "$1" in
    --cifar) cifar=$2; shift 2 ;;
    --photos) photos=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    --quick) quick=1; shift ;;
    *) echo "$name has no argument $1." >&2; exit 2 ;;
  esac
done
if [ -z "$cifar" ] || [ -z "$photos" ] || [ -z "$out" ]; then
  echo "$name needs --cifar ARCHIVE, --photos ARCHIVE and --out FOLDER." >&2
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
bench() { # NAME SECONDS SCRIPT ARGUMENTS...
  local name=$1 limit=$2 script=$3
  shift 3
  part "$name" "$limit" "$python" "$here/$script" "$@" --device "$device" --json "$out/$name.json"
}


begin() { # the first part
  part machine 20 "$python" -c "
import platform, torch, torchvision
print(platform.platform(), torch.__version__, torchvision.__version__)
print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')"
}

finish() { # writes summary.json and exits
  IFS=,
  printf '{"device": "%s", "seconds": %d, "parts": [%s]}\n' \
      "$device" $((SECONDS - began)) "${parts[*]}" > "$out/summary.json"
  cat "$out/summary.json"
  exit $failed
}
