"""One run of DeepCTR-Torch's DCN (matrix form) in the peer's own environment, timed epoch by epoch.

The model is the one measured on the other side: no wide part and no penalty terms, both of which would only
slow the peer down. Its own `fit` does the work, shuffling and batching included, with metrics off.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from importlib import metadata
from typing import Any


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Train for `epochs` epochs over the first `examples` rows and time each.

    Args:
        request: ids [B, 26], dense [B, 13] and labels [B] as paths of .npy files, examples (rows used),
            rows (of each feature's table), width, hidden, cross_layers, batch_size, epochs, threads.

    Returns:
        seconds of each epoch, the loss of each, the number of parameters, versions.
    """
    # Imported here: these packages are in the peer's environment only.
    import numpy as np
    import torch
    from deepctr_torch.callbacks import Callback
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import DCN

    torch.set_num_threads(request["threads"])
    ids, dense, labels = (np.load(request[key])[: request["examples"]] for key in ("ids", "dense", "labels"))
    sparse = [SparseFeat(f"C{f + 1}", request["rows"], embedding_dim=request["width"]) for f in range(ids.shape[1])]
    numbers = [DenseFeat(f"I{n + 1}", 1) for n in range(dense.shape[1])]
    inputs = {feature.name: ids[:, f].astype(np.float32) for f, feature in enumerate(sparse)}
    inputs |= {feature.name: dense[:, n].astype(np.float32) for n, feature in enumerate(numbers)}
    model = DCN(
        linear_feature_columns=[],
        dnn_feature_columns=[*sparse, *numbers],
        cross_num=request["cross_layers"],
        cross_parameterization="matrix",
        dnn_hidden_units=tuple(request["hidden"]),
        l2_reg_linear=0,
        l2_reg_embedding=0,
        l2_reg_cross=0,
        device="cpu",
    )
    model.compile("adam", "binary_crossentropy")

    seconds: list[float] = []
    losses: list[float] = []

    class Clock(Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.started = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds.append(time.perf_counter() - self.started)
            losses.append(float(logs["loss"]))

    with contextlib.redirect_stdout(sys.stderr):
        model.fit(
            inputs,
            labels,
            batch_size=request["batch_size"],
            epochs=request["epochs"],
            verbose=0,
            shuffle=True,
            callbacks=[Clock()],
        )
    return {
        "examples": len(labels),
        "epoch_seconds": seconds,
        "epoch_loss": losses,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": {name: metadata.version(name) for name in ("deepctr-torch", "torch", "numpy")},
    }


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
