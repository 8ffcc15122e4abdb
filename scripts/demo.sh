#!/usr/bin/env bash
# Trains, evaluates and predicts on two synthetic categories, in the folder demo/.
source "$(dirname "$0")/setup.sh"
echo "Making synthetic images, 60 normal ones to learn from and 50 to test on:"
padim-synth demo/data --kind texture
padim-synth demo/data --kind object
echo "Training on the normal images:"
padim-train --data demo/data --category texture object --preset demo --output demo/runs
echo "Evaluating on the test images:"
padim-eval --data demo/data --category texture object --output demo/runs
for category in texture object; do
    padim-predict --model "demo/runs/$category/model.safetensors" "demo/data/$category/test" \
        --out "demo/heatmaps/$category" >"demo/$category.jsonl"
done
echo "Heatmaps: demo/heatmaps/texture and demo/heatmaps/object; scores: demo/texture.jsonl and demo/object.jsonl"
