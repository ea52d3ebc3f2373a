#!/bin/sh
# Asks a server (`dasheng-edge serve`) with curl: sh client.sh AUDIO [FORMAT], where FORMAT is text, json, srt, vtt or verbose_json.
set -eu
server=${SERVER:-http://127.0.0.1:8000/v1}
model=$(curl -sS --fail-with-body -H "Authorization: Bearer ${KEY:-none}" "$server/models" |
  sed 's/^[^[]*\[{"id":"\([^"]*\)".*/\1/')
curl -sS --fail-with-body -H "Authorization: Bearer ${KEY:-none}" \
  -F model="$model:caption" -F response_format="${2:-text}" -F file=@"$1" "$server/audio/transcriptions"
