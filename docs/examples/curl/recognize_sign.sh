#!/bin/sh
# Which sign is in a video? Asks Triton's `recognize_sign` over HTTP. Needs curl and POSIX tools.
#
#     sh recognize_sign.sh localhost:8000 clip.mp4
#
# Prints `rank gloss confidence`, best first.
set -eu

if [ $# -ne 2 ]; then
    echo "usage: sh recognize_sign.sh SERVER VIDEO" >&2
    exit 1
fi
server=$1 video=$2
if [ ! -r "$video" ]; then
    echo "cannot read $video" >&2
    exit 1
fi
size=$(($(wc -c <"$video")))

# The body is JSON, then the raw bytes of VIDEO: one BYTES element, which is its length in four bytes, the least first,
# and the file as it is, whatever its container. Further inputs, where wanted:
# {"name":"TOP_K","datatype":"INT32","shape":[1],"data":[5]}. Where the server has several models:
# "parameters":{"model":"name"} beside "inputs".
json='{"inputs":[{"name":"VIDEO","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":'$((size + 4))'}}],
"outputs":[{"name":"GLOSS"},{"name":"CONFIDENCE"}]}'

length() {
    for shift in 0 8 16 24; do
        # shellcheck disable=SC2059 # the byte is the format
        printf "\\$(printf %03o $((size >> shift & 255)))"
    done
}

answer=$({ printf %s "$json" && length && cat -- "$video"; } |
    curl --silent --show-error --max-time 60 --data-binary @- \
        --header 'Content-Type: application/octet-stream' \
        --header "Inference-Header-Content-Length: ${#json}" \
        "http://$server/v2/models/recognize_sign/infer") || exit 1

# {"outputs":[{"name":"GLOSS",...,"data":["book",...]},{"name":"CONFIDENCE",...,"data":[0.97,...]}]}, or {"error":"..."}
printf '%s\n' "$answer" | awk '
    function data(name, opening, closing) {
        tail = substr($0, index($0, "\"name\":\"" name "\""))
        tail = substr(tail, index(tail, "\"data\":" opening) + length("\"data\":" opening))
        return substr(tail, 1, index(tail, closing) - 1)
    }
    /^\{"error":/ {
        sub(/^\{"error":"/, ""); sub(/"\}$/, ""); gsub(/\\"/, "\"")
        print > "/dev/stderr"
        exit 1
    }
    {
        split(data("GLOSS", "[\"", "\"]"), glosses, "\",\"")
        count = split(data("CONFIDENCE", "[", "]"), confidences, ",")
        for (rank = 1; rank <= count; rank++) printf "%d %s %.4f\n", rank, glosses[rank], confidences[rank]
    }'
