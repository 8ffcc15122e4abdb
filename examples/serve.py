"""Scoring over HTTP: an image in, its verdict, score and regions out, as padim-predict prints them.

    PADIM_MODEL=runs/bottle/model.onnx uvicorn examples.serve:app --workers 2
    curl --data-binary @part.png '127.0.0.1:8000/predict?heatmap=true'

With `heatmap`, the answer has a PNG, too, in base64. More than 20 MB are refused with 413, what is no image with 422.
"""

from __future__ import annotations

import io
import os
import sys
from base64 import b64encode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Request
from starlette.requests import ClientDisconnect

from padim import PadimError, Runtime, predict
from padim.report.colours import ColourScale
from padim.report.overlay import overlay

LARGEST = 20_000_000  # bytes of an image

try:
    model = Runtime.load(os.environ.get("PADIM_MODEL", "model.onnx"), threads=1)  # the requests share the cores
except PadimError as error:
    sys.exit(f"PADIM_MODEL: {error}")
app = FastAPI(title="padim")
cores = CapacityLimiter(os.cpu_count() or 1)  # so many images are decoded and scored at a time, the others in turn


@app.post("/predict")
async def verdict(request: Request, heatmap: bool = False) -> dict[str, Any]:
    """What the model says of the image that is sent; a thread computes it, while others are received."""
    return await to_thread.run_sync(scored, await received(request), heatmap, limiter=cores)


async def received(request: Request) -> bytes:
    """The body of a request, of which no more than the limit is ever held."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST:
                raise HTTPException(413, f"an image may have {LARGEST} bytes")
    except ClientDisconnect as gone:
        raise HTTPException(400, "the upload was broken off") from gone
    return bytes(body)


def scored(image: bytes, heatmap: bool) -> dict[str, Any]:
    """The line of padim-predict on the image of a file, without its path, and with the heatmap if that is wanted."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "upload")
        path.write_bytes(image)
        (prediction,) = predict(model, path, keep_originals=heatmap)
    if prediction.problem:
        raise HTTPException(422, str(prediction.problem).replace(f"{folder}/", ""))
    answer = {key: value for key, value in prediction.summary().items() if key != "path"}
    if heatmap and prediction.anomaly_map is not None:
        scale, png = ColourScale.about(prediction.thresholds.threshold, model.dimensions), io.BytesIO()
        overlay(prediction, scale).save(png, "PNG")
        answer["heatmap"] = b64encode(png.getvalue()).decode()
    return answer
