#!/usr/bin/env bash
# A lent GPU's fifteen minutes, prepared; tools/README.md says how.
#
#     bash tools/gpu_plan.sh pack --labels FILE.csv --data_dir DIR
#     bash tools/gpu_plan.sh measure            # there, in the first call
#     bash tools/gpu_plan.sh train --minutes 8  # there, in the last
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
part=$PWD/output/gpu/part1

if [[ ${1:-} == pack ]]; then
    python3 -m tools.gpu_pack "${@:2}"
    # What the device lacks: a reader of JPEGs, and the commit's name.
    python3 -m pip download -q --no-deps --only-binary=:all: -d "$part" \
        --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 "$(grep ^simplejpeg requirements.txt)"
    exec git clone -q --bare --depth 1 --filter=blob:none --upload-pack \
        'git -c uploadpack.allowFilter=true upload-pack' \
        "file://$PWD" "$part/git"
fi

if ! python3 -c 'import simplejpeg' 2>/dev/null; then
    site=/tmp/site
    [[ -d $site ]] || python3 -m pip install -q --no-index --no-deps \
        --no-compile --target "$site" "$part"/*.whl
    export PYTHONPATH=$site
fi
if [[ ! -e .git && -d $part/git ]]; then
    export GIT_DIR=$part/git GIT_WORK_TREE=$PWD
    git read-tree HEAD
fi
exec python3 -m tools.gpu_plan "$@"
