#!/bin/sh
# Replicas of the new image or settings first, then the old ones go, each after what it has begun. No request is lost; when
# the new ones do not get ready, they go and the old ones stay. Needs room for twice the replicas (20 at most).
#   docker compose build service && sh docker/rolling_update.sh          COMPOSE="docker-compose -p name" for another
set -eu
cd "$(dirname "$0")/.."
compose=${COMPOSE:-docker compose}
within_s=${WITHIN_S:-180}
old=$($compose ps -q service)
count=$(echo "$old" | wc -w)
[ "$count" -gt 0 ] || { echo "no replica runs; start with: $compose up --detach" >&2; exit 2; }
[ "$count" -le 10 ] || { echo "the proxy knows 20 replicas at most; $count run already" >&2; exit 2; }

$compose up --detach --no-build --no-deps --no-recreate --scale "service=$((2 * count))" service
new=$($compose ps -q service | grep -v -x -F "$old")
until=$(($(date +%s) + within_s))
for id in $new; do
  until [ "$(docker inspect -f '{{.State.Health.Status}}' "$id")" = healthy ]; do
    if [ "$(date +%s)" -gt "$until" ]; then
      echo "not ready within $within_s s, so the old replicas stay; the last lines of a new one:" >&2
      docker logs "$id" 2>&1 | grep -v 'GET /readyz' | tail -n 5 >&2
      docker rm --force $new >/dev/null
      exit 1
    fi
    sleep 1
  done
done
sleep 3 # the proxy has found them
for id in $old; do
  docker stop "$id" >/dev/null
  docker rm "$id" >/dev/null
done
echo "$count new replicas serve"
