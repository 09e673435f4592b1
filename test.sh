#!/usr/bin/env bash
# Tests a trained network on AFLW2000-3D.
#
#     bash test.sh                               # ResNet-50 with CBAM
#     bash test.sh shufflenet --landmarks raw    # options are passed on
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
    *) echo "test.sh: '$network' is none of attnet, shufflenet" >&2; exit 2 ;;
esac

launch=python
if [[ ${NPROC:-1} != 1 ]]; then
    launch="torchrun --standalone --nproc_per_node $NPROC"
fi

data=data/AFLW2000
snapshot=checkpoints/$checkpoint.pkl
if [[ ! -d $data ]]; then
    python -m tests.sample_data data/sample
    data=data/sample/AFLW2000
    snapshot=checkpoints/sample/$checkpoint.pkl
fi
exec $launch "test_$network.py" --gpu "$gpu" --dataset AFLW2000 \
    --batch_size "$batch_size" --data_dir "$data" \
    --filename_list "$data/filename_list.txt" --snapshot "$snapshot" "$@"
