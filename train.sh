#!/usr/bin/env bash
# Trains a network with the document's hyper-parameters; edit them here.
#
#     bash train.sh                              # ResNet-50 with CBAM
#     bash train.sh shufflenet --batch_size 64   # options are passed on
#     bash train.sh mobilenet_v2                 # or another compact network
#     bash train.sh faces --labels FILE.csv --data_dir DIR   # as the shipped
#                                                # network was, on such a table
#     NPROC=4 bash train.sh                      # on 4 GPUs of this machine
#
# Without a data set in data/ it trains on a small rendered sample instead.
set -euo pipefail
cd "$(dirname "$0")"

gpu=0
num_epochs=25
batch_size=32
lr=0.00001
alpha=2

network=attnet
if [[ $# -gt 0 && $1 != -* ]]; then
    network=$1
    shift
fi
recipe=()
case $network in
    attnet) checkpoint=resnet ;;
    shufflenet) checkpoint=shufflenet ;;
    mobilenet_v2 | mobilenet_v3_large | mobilenet_v3_small | efficientnet_b0 | \
        efficientnet_lite0)
        checkpoint=$network
        recipe=(--backbone "$network")
        network=shufflenet ;;
    faces)  # not the document's recipe; checkpoints/README.md has its reasons
        network=shufflenet checkpoint=shufflenet_own
        num_epochs=180 batch_size=128 lr=0.006 alpha=0.02
        recipe=(--pretrained none --image_size 64 96 96 128 --one_cycle
                --weight_decay 0.05 --head_factor 1 --ema 0.999 --rotate 30
                --find_box --soft_bins --test_framing --box_jitter 0.35
                --color_jitter 0.3 --low_resolution 0.15 --light 0.5
                --occlude 0.2 --weak_end 0.1 --amp off) ;;
    *) echo "train.sh: '$network' is none of attnet, shufflenet," \
           "mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small," \
           "efficientnet_b0, efficientnet_lite0, faces" >&2
       exit 2 ;;
esac

launch=python
if [[ ${NPROC:-1} != 1 ]]; then
    launch="torchrun --standalone --nproc_per_node $NPROC"
fi

data=data/300W_LP
[[ -d $data ]] || data=data/300W-LP
where=(--data_dir "$data" --filename_list "$data/filename_list.txt")
for word in "$@"; do
    [[ $word != --labels* ]] || where=()  # the table lists the images
done
if [[ ${#where[@]} == 0 || -d $data ]]; then
    exec $launch "train_$network.py" --gpu "$gpu" --num_epochs "$num_epochs" \
        --batch_size "$batch_size" --lr "$lr" --dataset Pose_300W_LP \
        --alpha "$alpha" --output "checkpoints/$checkpoint.pkl" \
        ${where[@]+"${where[@]}"} ${recipe[@]+"${recipe[@]}"} "$@"
fi
if [[ $checkpoint == shufflenet_own ]]; then
    echo "train.sh faces: data/300W_LP is not there; for other data, add" \
        "--labels FILE.csv --data_dir DIR" >&2
    exit 1
fi

# The sample: small pictures and a fresh start, so that it takes minutes. Few
# images in few steps teach most by a fast cycle, from boxes and tilts that
# vary; the squared error, in degrees, must not drown the classes. Nothing is
# lost with an earlier result of it.
num_epochs=12 lr=0.001
[[ $network == attnet ]] || num_epochs=30 lr=0.003  # its steps are cheaper
python -m tools.sample_data data/sample
exec $launch "train_$network.py" --gpu "$gpu" --num_epochs "$num_epochs" \
    --batch_size 16 --lr "$lr" --one_cycle --head_factor 1 --image_size 64 \
    --pretrained none --alpha 0.02 --rotate 20 --box_jitter 0.15 \
    --data_dir data/sample/300W_LP \
    --output "checkpoints/sample/$checkpoint.pkl" --overwrite \
    ${recipe[@]+"${recipe[@]}"} "$@"
