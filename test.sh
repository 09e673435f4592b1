#!/usr/bin/env bash
# Tests a trained network on AFLW2000-3D.
#
#     bash test.sh                               # ResNet-50 with CBAM
#     bash test.sh shufflenet --landmarks raw    # options are passed on
#     bash test.sh faces                         # the network that is shipped
#     bash test.sh all                           # every checkpoint; two tables
#     NPROC=4 bash test.sh                       # on 4 GPUs of this machine
#
# Without a data set in data/ it tests on a small rendered sample instead.
set -euo pipefail
cd "$(dirname "$0")"

gpu=0
batch_size=32

network=attnet
if [[ $# -gt 0 && $1 != -* ]]; then
    network=$1
    shift
fi
case $network in
    attnet) checkpoint=resnet ;;
    shufflenet) checkpoint=shufflenet ;;
    mobilenet_v2 | mobilenet_v3_large | mobilenet_v3_small | efficientnet_b0 | \
        efficientnet_lite0)
        checkpoint=$network network=shufflenet ;;
    faces)  # the published protocol, then three looks
        network=shufflenet checkpoint=shufflenet_faces
        set -- --looks 3 "$@" ;;
    all) checkpoint= ;;
    *) echo "test.sh: '$network' is none of attnet, shufflenet," \
           "mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small," \
           "efficientnet_b0, efficientnet_lite0, faces, all" >&2
       exit 2 ;;
esac

launch=python
if [[ ${NPROC:-1} != 1 ]]; then
    launch="torchrun --standalone --nproc_per_node $NPROC"
fi

data=data/AFLW2000
folder=checkpoints
if [[ ! -d $data ]]; then
    [[ $checkpoint != shufflenet_faces ]] ||
        echo "test.sh faces: the README's figure is of re-crops of AFLW2000;" \
            "data/AFLW2000 is not there, this one is of rendered heads" >&2
    python -m tools.sample_data data/sample
    data=data/sample/AFLW2000
    folder=checkpoints/sample
fi

run() { # network snapshot option...
    $launch "test_$1.py" --gpu "$gpu" --dataset AFLW2000 \
        --batch_size "$batch_size" --data_dir "$data" \
        --filename_list "$data/filename_list.txt" --snapshot "$2" "${@:3}"
}

if [[ $network == all ]]; then
    reports=() failed=0
    [[ $folder == checkpoints ]] || shipped=checkpoints/shufflenet_faces.pkl
    for snapshot in "$folder"/*.pkl ${shipped-}; do
        [[ -f $snapshot && $snapshot != *_last.pkl ]] || continue
        report=output/all/$(basename "$snapshot" .pkl)
        echo "== $snapshot, report in $report"
        # Either script rebuilds the network that the checkpoint names.
        if run shufflenet "$snapshot" --report "$report" "$@"; then
            reports+=("$report")
        else
            failed=1
        fi
    done
    python -m tools.tables "${reports[@]}"
    exit $failed
fi

snapshot=$folder/$checkpoint.pkl
if [[ ! -f $snapshot && $folder == checkpoints/sample ]]; then
    [[ $checkpoint == shufflenet_faces ]] ||
        echo "$snapshot is not there: testing the network that is shipped."
    network=shufflenet
    snapshot=checkpoints/shufflenet_faces.pkl
elif [[ ! -f $snapshot && " $*" != *" --snapshot"* ]]; then
    echo "$snapshot is not there: training on data/300W_LP writes it; bash" \
        "test.sh faces tests the network that is shipped" >&2
    exit 1
fi
run "$network" "$snapshot" "$@"
