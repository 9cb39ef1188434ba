#!/bin/sh
# Time from `make serve` in a new clone to the first scored image, and the installed size.
#   sh benchmarks/first_score.sh        run it in a clone that has no .venv-serve yet
set -eu
cd "$(dirname "$0")/.."
[ ! -e .venv-serve ] || { echo "remove .venv-serve first: this measures a new machine" >&2; exit 2; }
port=${PORT:-8765}
work=$(mktemp -d)
start=$(date +%s.%N)
setsid make serve PORT="$port" >"$work/log" 2>&1 &
group=$!
trap 'kill -- "-$group" 2>/dev/null || true; rm -rf "$work"' EXIT
until curl -sf -H 'Content-Type: image/png' --data-binary @examples/digit-2.png \
    "http://127.0.0.1:$port/score?map=none" >"$work/answer" 2>/dev/null; do
  kill -0 "$group" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
  sleep 0.2
done
end=$(date +%s.%N)
awk -v a="$start" -v b="$end" 'BEGIN { printf "first score after %.1f s\n", b - a }'
echo "installed: $(du -sm .venv-serve | cut -f1) MB"
cat "$work/answer"
echo
