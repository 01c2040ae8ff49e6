"""What feeds DeepCTR-Torch's training, in the peer's own environment: the loader that its `fit` makes, alone."""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata
from typing import Any


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Iterate over epochs of batches as `BaseModel.fit` does, without a model.

    Args:
        request: ids [B, 26], dense [B, 13] and labels [B] as paths of .npy files, batch_size, epochs, threads.

    Returns:
        By order, rows and seconds of every epoch; versions.
    """
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(request["threads"])
    ids, dense, labels = (np.load(request[key]) for key in ("ids", "dense", "labels"))
    # fit() takes a column a feature and joins them: all numbers, ids too, become one float tensor.
    inputs = np.concatenate([ids.astype(np.float32), dense.astype(np.float32)], axis=-1)
    data = TensorDataset(torch.from_numpy(inputs), torch.from_numpy(labels))
    answer: dict[str, Any] = {}
    for order in ("in order", "shuffled"):
        loader = DataLoader(dataset=data, shuffle=order == "shuffled", batch_size=request["batch_size"])
        answer[order] = []
        for _ in range(request["epochs"]):
            started = time.perf_counter()
            rows = 0
            for x, y in loader:
                x.to("cpu").float()
                rows += len(y.to("cpu").float())
            answer[order].append({"rows": rows, "seconds": time.perf_counter() - started})
    return {"epochs": answer, "versions": {name: metadata.version(name) for name in ("deepctr-torch", "torch")}}


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
