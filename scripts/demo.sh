#!/usr/bin/env bash
# Trains, evaluates, exports and predicts on three synthetic categories, in the folder demo/.
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
echo "Exporting a model, and evaluating the export:"
padim-export --model demo/runs/object/model.safetensors
padim-eval --model demo/runs/object/model.onnx --data demo/data --output demo/exported
echo "Predicting with the export, without torch:"
python -c 'import sys; sys.modules["torch"] = None; from padim.cli.predict import main; sys.exit(main())' \
    --model demo/runs/object/model.onnx demo/data/object/test >demo/onnx.jsonl
python - <<'END'
import json

figures = [json.load(open(f"demo/{folder}/object/eval.json")) for folder in ("runs", "exported")]
lines = [[json.loads(line) for line in open(f"demo/{name}.jsonl")] for name in ("object", "onnx")]
keys = "image_auroc", "pixel_auroc", "aupro", "pixel_ap", "defects_found"
pairs = [(figures[0][key], figures[1][key]) for key in keys] + [(a["score"], b["score"]) for a, b in zip(*lines)]
assert len(lines[0]) == len(lines[1]) == 50
assert all(a["verdict"] == b["verdict"] for a, b in zip(*lines))
assert all(abs(a - b) <= 1e-4 * max(1, a) for a, b in pairs), "the export differs"
print("Figures, scores and verdicts of the export are those of the model, to 1e-4.")
END
