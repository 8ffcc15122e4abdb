#!/usr/bin/env bash
# Trains, evaluates and predicts on three synthetic categories, in the folder demo/.
source "$(dirname "$0")/setup.sh"
echo "Making synthetic images, 60 normal ones to learn from and 50 to test on:"
padim-synth demo/data --kind texture
padim-synth demo/data --kind object
padim-synth demo/data --kind plate --pose rotate
echo "Training on the normal images:"
padim-train --data demo/data --category texture object --preset demo --output demo/runs
echo "Evaluating on the test images:"
padim-eval --data demo/data --category texture object --output demo/runs
echo "Plates that lie at any angle, as they lie:"
padim-train --data demo/data --category plate --preset demo --size 256 --output demo/unaligned --eval
echo "The same plates aligned:"
padim-train --data demo/data --category plate --preset demo --size 256 --align rotate --output demo/runs --eval
for category in texture object plate; do
    padim-predict --model "demo/runs/$category/model.safetensors" "demo/data/$category/test" \
        --out "demo/heatmaps/$category" >"demo/$category.jsonl"
done
echo "Heatmaps: demo/heatmaps; scores: demo/texture.jsonl, demo/object.jsonl and demo/plate.jsonl"
